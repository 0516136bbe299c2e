"""The parts of figures over training: curves of runs, marks, thresholds, axes.

Curves are means over samples smoothed over a twentieth of the run; several seeds of an experiment
become their mean with a band from the lowest to the highest. TRM is dashed, ETRM solid, and an
encoder whose contexts are cached, so that no gradient reaches it through them, dash-dotted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from etrm.report.run_view import RunView, by_name
from etrm.report.style import GUIDE, Look, entry

BANDS = 8  # experiments: bands of more would hide each other


def smoothed(view: RunView, metric: str) -> pd.Series:
    """Return the metric's mean over samples in a window of a twentieth of the logged values.

    The window is centred, and at both ends it is the first or last full one.
    """
    values, weights = view.series(metric), view.weights(metric)
    window = max(1, len(values) // 20)  # in logged values
    start = np.clip(np.arange(len(values)) - window // 2, 0, len(values) - window)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (values * weights, weights)]
    total, weight = (part[start + window] - part[start] for part in sums)
    return pd.Series(total / weight, index=values.index, name=metric)


def over_seeds(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Return mean, low and high over seeds at every step that any of them has.

    Between its own steps a curve is interpolated; outside of them it does not count.
    """
    steps = np.unique(np.concatenate([curve.index.to_numpy() for curve in curves]))  # sorted
    table = [np.interp(steps, curve.index, curve, left=np.nan, right=np.nan) for curve in curves]
    frame = pd.DataFrame(np.stack(table, axis=1), index=steps)  # [step, seed], NaN outside a run
    return pd.DataFrame(
        {"mean": frame.mean(axis=1), "low": frame.min(axis=1), "high": frame.max(axis=1)}
    )


def draw_curves(
    axes: Axes, views: Sequence[RunView], metric: str, look_of: Mapping[str, Look]
) -> list[RunView]:
    """Draw one line per experiment; return the runs that have the metric.

    Unless there are too many experiments, several seeds have a band, and one its raw values.
    """
    shown = [view for view in views if len(view.series(metric))]
    runs = by_name(shown)
    for name, seeds in runs.items():
        look = look_of[name]
        curve = over_seeds([smoothed(view, metric) for view in seeds])
        if len(runs) <= BANDS and len(seeds) == 1:
            raw = seeds[0].series(metric)  # faint; several seeds have a band instead
            axes.plot(raw.index, raw, color=look.colour, alpha=0.15, linewidth=0.5, zorder=1.5)
        elif len(runs) <= BANDS:
            band = (curve.index, curve["low"], curve["high"])
            axes.fill_between(*band, color=look.colour, alpha=0.18, linewidth=0, zorder=1.6)
        axes.plot(
            curve.index,
            curve["mean"],
            color=look.colour,
            linestyle=line_of(seeds[0]),
            marker=look.marker or "." * (len(curve) == 1),  # a line of one point cannot be seen
            markevery=max(1, len(curve) // 8),
            label=name,
            zorder=2.5,
        )
    return shown


def line_of(view: RunView) -> str:
    """Return the style of a run's line."""
    return "--" if view.is_trm else "-." if view.is_cached else "-"


def mark_last(axes: Axes, values: pd.Series, marker: str, colour: str) -> None:
    """Mark the last value, if any."""
    if not len(values):
        return  # an empty line without a clip would have no extent, and break the layout
    (mark,) = axes.plot(values.index[-1:], values[-1:], marker=marker, ms=6, mec="white", zorder=4)
    mark.set(color=colour, clip_on=False)  # whole also at the edge of a panel


def legend_entries(
    views: Sequence[RunView], look_of: Mapping[str, Look], panels: Sequence[Axes]
) -> list[Artist]:
    """Return legend entries of the experiments, in the order given, and of bands and dashes."""
    handles: dict[str, Artist] = {}
    for view in views:
        look, line = look_of[view.experiment], line_of(view)
        handles[view.experiment] = entry(view.experiment, look.colour, marker=look.marker, ls=line)
    notes: list[Artist] = []
    if any(axes.collections for axes in panels):
        notes.append(Patch(color=GUIDE, alpha=0.18, linewidth=0, label="range of seeds"))
    if any(view.is_cached for view in views):
        notes.append(entry("contexts cached", linestyle="-."))
    return [*handles.values(), *notes]


def end_entry(label: str, marker: str = "X") -> Line2D:
    """Return the legend entry of a mark at the end of runs."""
    return entry(label, marker=marker, ms=6, ls="none")


def label_steps(axes: Axes, labelled: bool = True) -> None:
    """Show the steps from 0 on, as 2k for 2000; the name of the axis where it is `labelled`."""
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2k for 2000
    axes.set_xlim(left=0)
    if labelled:
        axes.set_xlabel("step")


def make_logarithmic(axes: Axes, linear_below: float) -> None:
    """Make the axis logarithmic, but linear up to `linear_below`: zeros stay in sight."""
    linear_below = max(1e-3, linear_below)  # a bound of 0 or NaN has no logarithm
    axes.set_yscale("symlog", linthresh=linear_below, linscale=0.5)
    top = max(float(np.nanmax(np.asarray(line.get_ydata(), dtype=float))) for line in axes.lines)
    top = 1.3 * max(top, 10 * linear_below)  # at least one decade
    decades = range(math.ceil(math.log10(linear_below)), math.floor(math.log10(top)) + 1)
    decades = decades[:: math.ceil(len(decades) / 6)]  # at most six labels
    axes.set_yticks([0.0, *(10.0**decade for decade in decades)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.15 * linear_below, top)  # room for a line at zero
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def draw_threshold(axes: Axes, value: float, words: str, beside: str = "center") -> None:
    """Draw a line at `value`, named at the right of the panel; `beside`: vertical alignment."""
    axes.axhline(value, color=GUIDE, linestyle=":", linewidth=1.0, zorder=1.2)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    look: dict[str, Any] = {"va": beside, "fontsize": "x-small", "linespacing": 1.1}
    look |= {"color": GUIDE, "annotation_clip": False}  # outside of the panel
    axes.annotate(words, xy=(1, value), xytext=(3, 0), **place, **look)
