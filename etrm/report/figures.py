"""The figures of the paper. Each function takes what to show and returns a Figure: no files here.

Curves are means over samples smoothed over a twentieth of the run; several seeds of an experiment
become their mean with a band from the lowest to the highest. TRM is dashed, ETRM solid. Give the
names of all experiments of a study as `names` and each keeps its colour in every figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, PercentFormatter

from etrm.report.qualitative import qualitative
from etrm.report.run_view import STAGES, RunView, distinct, load_run
from etrm.report.style import GUIDE, Look, legend_below, looks, say, theme

if TYPE_CHECKING:
    from etrm.config.execution import FigureStyle

__all__ = [
    "RunView",
    "encoder_statistics",
    "gradient_flow",
    "load_run",
    "qualitative",
    "training_curves",
]

ENCODER_STATISTICS = {
    "train/encoder_cross_sample_var": "Cross-sample variance",
    "train/encoder_output_std": "Output standard deviation",
    "train/encoder_output_norm": "Output norm",
    "train/encoder_token_std": "Standard deviation across tokens",
}


def training_curves(
    runs: Sequence[RunView], style: FigureStyle, *, names: Sequence[str] | None = None
) -> Figure:
    """Train exact match (`train/exact_accuracy`) over steps, one panel per stage.

    A dot is a run's last `all.exact_accuracy`, over all training episodes with averaged weights:
    what the gate judges, whose threshold is a line on the overfit panel. A cross marks where an
    experiment was stopped, by its verdict or by a health rule.
    """
    look_of = looks(names or [view.experiment for view in runs])
    with theme(style):
        fig = Figure(figsize=(style.width, 0.4 * style.width), layout="constrained")
        panels = fig.subplots(1, len(STAGES), sharey=True)
        drawn: list[RunView] = []
        evaluated = False
        for axes, stage in zip(panels, STAGES, strict=True):
            views = [view for view in runs if view.stage == stage]
            title = {"pretrain": "pretraining", "overfit": "overfit", "full": "full"}[stage]
            axes.set_title(title.capitalize())
            shown = _curves(axes, views, "train/exact_accuracy", look_of)
            _stops(axes, shown, look_of)
            evaluated |= _evaluated(axes, shown, look_of)
            _steps_axis(axes)
            drawn += shown
            if not shown:
                say(axes, f"no {title} run has finished yet")
        panels[0].set_ylim(-0.02, 1.02)
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        first = next((axes for axes in panels if axes.axison), panels[0])
        first.set_ylabel("train exact match")
        first.tick_params(labelleft=True)
        handles = _handles(drawn, look_of)
        handles += _gate_lines(panels[STAGES.index("overfit")], drawn)
        marks = {"stopped": ("X", any(view.stopped for view in drawn))}
        marks["all episodes"] = ("o", evaluated)
        handles += [
            Line2D([], [], label=label, color=GUIDE, marker=marker, ms=6, linestyle="none")
            for label, (marker, used) in marks.items()
            if used
        ]
        legend_below(fig, handles, style)
    return fig


def encoder_statistics(
    runs: Sequence[RunView],
    style: FigureStyle,
    *,
    stage: str = "overfit",
    names: Sequence[str] | None = None,
    variance_lines: tuple[float, float] = (0.1, 0.3),
) -> Figure:
    """The encoder's output in one stage: cross-sample variance, spread, norm, spread over tokens.

    `variance_lines` are the bounds under which the variance means collapse and a warning.
    """
    look_of = looks(names or [view.experiment for view in runs])
    with theme(style):
        fig = Figure(figsize=(style.width, 0.68 * style.width), layout="constrained")
        views = _encoder_runs(runs, stage, tuple(ENCODER_STATISTICS))
        if not views:
            return _only_words(fig, f"no ETRM {stage} run with encoder statistics has finished yet")
        panels = fig.subplots(2, 2, sharex=True).ravel()
        for axes, (metric, title) in zip(panels, ENCODER_STATISTICS.items(), strict=True):
            axes.set_title(title)
            if not _curves(axes, views, metric, look_of):
                say(axes, f"no run has logged {metric}")
                continue
            if metric.endswith("cross_sample_var"):
                _log_axis(axes, min(variance_lines) / 10)
                _threshold(axes, variance_lines[0], f"collapse\n< {variance_lines[0]:g}")
                _threshold(axes, variance_lines[1], f"good\n> {variance_lines[1]:g}")
            else:
                low, high = axes.get_ylim()
                axes.set_ylim(min(0.0, low), max(1.1 * high, 0.0))
        for axes in panels:
            _steps_axis(axes, labelled=axes in panels[2:])
        legend_below(fig, _handles(views, look_of), style)
    return fig


def gradient_flow(
    runs: Sequence[RunView],
    style: FigureStyle,
    *,
    stage: str = "overfit",
    names: Sequence[str] | None = None,
    norm_lines: tuple[float, float] = (0.05, 0.2),
    share_line: float = 0.1,
) -> Figure:
    """Gradient that reaches the encoder in one stage: its norm and its share of the total.

    `norm_lines` are the bounds of starvation and of a warning, `share_line` that of the share. The
    norm's axis is linear below the first, so that a gradient of exactly zero can be seen.
    """
    look_of = looks(names or [view.experiment for view in runs])
    with theme(style):
        fig = Figure(figsize=(style.width, 0.42 * style.width), layout="constrained")
        views = _encoder_runs(runs, stage, ("grad/encoder_norm", "grad/encoder_share"))
        if not views:
            return _only_words(fig, f"no ETRM {stage} run with gradient norms has finished yet")
        norm, share = fig.subplots(1, 2)
        norm.set_title("Gradient norm of the encoder")
        share.set_title("Encoder's share of the gradient")
        if _curves(norm, views, "grad/encoder_norm", look_of):
            _log_axis(norm, norm_lines[0])
            _threshold(norm, norm_lines[0], f"starved\n< {norm_lines[0]:g}")
            _threshold(norm, norm_lines[1], f"good\n> {norm_lines[1]:g}")
        else:
            say(norm, "no run has logged grad/encoder_norm")
        if _curves(share, views, "grad/encoder_share", look_of):
            share.set_ylim(bottom=-0.02)
            share.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            _threshold(share, share_line, f"bad\n< {100 * share_line:g} %")
        else:
            say(share, "no run has logged grad/encoder_share")
        for axes in (norm, share):
            _steps_axis(axes)
        legend_below(fig, _handles(views, look_of), style)
    return fig


def smoothed(view: RunView, metric: str) -> pd.Series:
    """The metric's mean over samples in a window of a twentieth of the logged values.

    The window is centred, and at both ends it is the first or last full one.
    """
    values, weights = view.series(metric), view.weights(metric)
    window = max(1, len(values) // 20)
    start = np.clip(np.arange(len(values)) - window // 2, 0, len(values) - window)
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in (values * weights, weights)]
    total, weight = (part[start + window] - part[start] for part in sums)
    return pd.Series(total / weight, index=values.index, name=metric)


def over_seeds(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Mean, low and high over seeds at every step that any of them has.

    Between its own steps a curve is interpolated; outside of them it does not count.
    """
    steps = np.unique(np.concatenate([curve.index.to_numpy() for curve in curves]))
    table = [np.interp(steps, curve.index, curve, left=np.nan, right=np.nan) for curve in curves]
    frame = pd.DataFrame(np.stack(table, axis=1), index=steps)
    return pd.DataFrame(
        {"mean": frame.mean(axis=1), "low": frame.min(axis=1), "high": frame.max(axis=1)}
    )


def _curves(
    axes: Axes, views: Sequence[RunView], metric: str, look_of: dict[str, Look]
) -> list[RunView]:
    """Draws one line per experiment; returns the runs that have the metric."""
    shown = [view for view in views if len(view.series(metric))]
    for name in distinct(view.experiment for view in shown):
        seeds = [view for view in shown if view.experiment == name]
        look = look_of[name]
        curve = over_seeds([smoothed(view, metric) for view in seeds])
        if len(seeds) == 1:
            raw = seeds[0].series(metric)
            axes.plot(raw.index, raw, color=look.colour, alpha=0.15, linewidth=0.5, zorder=1.5)
        else:
            band = (curve.index, curve["low"], curve["high"])
            axes.fill_between(*band, color=look.colour, alpha=0.18, linewidth=0, zorder=1.6)
        axes.plot(
            curve.index,
            curve["mean"],
            color=look.colour,
            linestyle="--" if seeds[0].is_trm else "-",
            marker=look.marker,
            markevery=max(1, len(curve) // 8),
            label=name,
            zorder=2.5,
        )
    return shown


def _stops(axes: Axes, views: Sequence[RunView], look_of: dict[str, Look]) -> None:
    for view in views:
        if view.stopped:
            curve = smoothed(view, "train/exact_accuracy")
            (cross,) = axes.plot(
                curve.index[-1:], curve[-1:], marker="X", ms=6, mec="white", zorder=4
            )
            cross.set(color=look_of[view.experiment].colour, clip_on=False)


def _evaluated(axes: Axes, views: Sequence[RunView], look_of: dict[str, Look]) -> bool:
    """A dot at the last evaluation over all episodes of each run; were there any?"""
    found = False
    for view in views:
        values = view.series("all.exact_accuracy")
        if len(values) and not view.stopped:
            (dot,) = axes.plot(
                values.index[-1:], values[-1:], marker="o", ms=6, mec="white", zorder=4
            )
            dot.set(color=look_of[view.experiment].colour, clip_on=False)
            found = True
    return found


def _gate_lines(axes: Axes, views: Sequence[RunView]) -> list[Line2D]:
    thresholds = {view.verdict["threshold"] for view in views if view.verdict is not None}
    look: dict[str, Any] = {"color": GUIDE, "linestyle": ":", "linewidth": 1.0}
    for value in sorted(thresholds):
        axes.axhline(value, zorder=1.2, **look)
    if not thresholds:
        return []
    values = ", ".join(f"{100 * value:g} %" for value in sorted(thresholds))
    return [Line2D([], [], label=f"gate: {values}", **look)]


def _handles(views: Sequence[RunView], look_of: dict[str, Look]) -> list[Line2D]:
    """Legend entries of the experiments, in the order given."""
    handles = {}
    for view in views:
        look = look_of[view.experiment]
        handles[view.experiment] = Line2D(
            [],
            [],
            label=view.experiment,
            color=look.colour,
            marker=look.marker,
            linestyle="--" if view.is_trm else "-",
        )
    return list(handles.values())


def _encoder_runs(runs: Sequence[RunView], stage: str, metrics: Sequence[str]) -> list[RunView]:
    views = [view for view in runs if view.stage == stage and not view.is_trm]
    return [view for view in views if any(len(view.series(metric)) for metric in metrics)]


def _steps_axis(axes: Axes, labelled: bool = True) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    if labelled:
        axes.set_xlabel("step")


def _log_axis(axes: Axes, linear_below: float) -> None:
    """Logarithmic, and linear from 0 to `linear_below`, so that zeros stay in sight."""
    linear_below = max(linear_below, 1e-3)
    axes.set_yscale("symlog", linthresh=linear_below, linscale=0.5)
    top = max(float(np.nanmax(np.asarray(line.get_ydata(), dtype=float))) for line in axes.lines)
    top = 1.3 * max(top, 10 * linear_below)
    decades = range(math.ceil(math.log10(linear_below)), math.floor(math.log10(top)) + 1)
    decades = decades[:: math.ceil(len(decades) / 6)]
    axes.set_yticks([0.0, *(10.0**decade for decade in decades)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.15 * linear_below, top)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _threshold(axes: Axes, value: float, words: str) -> None:
    """A line at `value`, named at the right of the panel."""
    axes.axhline(value, color=GUIDE, linestyle=":", linewidth=1.0, zorder=1.2)
    axes.annotate(
        words,
        xy=(1, value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize="x-small",
        linespacing=0.9,
        color=GUIDE,
        annotation_clip=False,
    )


def _only_words(fig: Figure, words: str) -> Figure:
    fig.set_figheight(0.25 * fig.get_figwidth())
    say(fig.subplots(), words)
    return fig
