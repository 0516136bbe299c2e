"""Curves over training. Each figure is a function from a `StudyView` to a `Figure`: no files here.

Curves are means over samples smoothed over a twentieth of the run; several seeds of an experiment
become their mean with a band from the lowest to the highest. TRM is dashed, ETRM solid. An
experiment has the same colour in every figure of a study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator, PercentFormatter

from etrm.config.health import HealthConfig, guide_rules
from etrm.report.run_view import STAGES, RunView, StudyView, distinct
from etrm.report.style import GUIDE, Look, legend_below, looks, say, theme

SHARES = ("grad/encoder_coverage", "grad/encoder_share", "train/steps_share")
VALIDATION = "validation.exact_accuracy"
DOTTED: Any = (0, (1, 1.5))
PERCENT = partial(PercentFormatter, 1.0, decimals=0, symbol=" %")


def training_curves(study: StudyView) -> Figure:
    """Draw train exact match (`train/exact_accuracy`) over steps, one panel per stage.

    A dot is a run's last `all.exact_accuracy`, over all training episodes with averaged weights,
    which the gate judges; its threshold is a line on the overfit panel. A cross marks where an
    experiment was stopped, by its verdict or by a health rule. Dotted lines are exact match on
    validation tasks (`validation.exact_accuracy`), with averaged weights too.
    """
    look_of, style = looks(view.experiment for view in study.runs), study.style
    with theme(style):
        fig = Figure(figsize=(style.width, 0.4 * style.width), layout="constrained")
        panels = fig.subplots(1, len(STAGES), sharey=True)
        drawn: list[RunView] = []
        for axes, stage in zip(panels, STAGES, strict=True):
            title = {"pretrain": "pretraining"}.get(stage, stage)
            axes.set_title(title.capitalize())
            runs = [view for view in study.runs if view.stage == stage]
            shown = _curves(axes, runs, "train/exact_accuracy", look_of)
            _validation_curves(axes, runs, look_of)
            for view in shown:
                _end_mark(axes, view, look_of[view.experiment].colour)
            _steps_axis(axes)
            drawn += shown
            if not shown:
                say(axes, f"no {title} run has finished yet")
        panels[0].set_ylim(-0.02, 1.02)  # shared by all panels
        panels[0].yaxis.set_major_formatter(PERCENT())
        first = next((axes for axes in panels if axes.axison), panels[0])
        first.set_ylabel("exact match")
        first.tick_params(labelleft=True)  # sharing the axis has taken its labels
        handles = _handles(drawn, look_of) + _gate_lines(panels[STAGES.index("overfit")], drawn)
        ended = [view for view in drawn if len(view.series("all.exact_accuracy"))]
        for label, marker, used in (
            ("stopped", "X", any(view.stopped for view in drawn)),
            ("all episodes", "o", any(not view.stopped for view in ended)),
        ):
            if used:
                mark: dict[str, Any] = {"color": GUIDE, "marker": marker, "ms": 6, "ls": "none"}
                handles.append(Line2D([], [], label=label, **mark))
        if any(len(view.series(VALIDATION)) for view in drawn):
            line = {"color": GUIDE, "linestyle": DOTTED, "marker": ".", "ms": 4}
            handles.append(Line2D([], [], label="validation tasks", **line))
        legend_below(fig, handles, style)
    return fig


@dataclass(frozen=True)
class Panel:
    """One metric over steps, with thresholds (value, words) and its axis."""

    metric: str
    title: str
    lines: tuple[tuple[float, str], ...] = ()
    linear_below: float | None = None  # logarithmic above; None: linear
    percent: bool = False
    floor: bool = False  # the value before the first step is a dashed line


def encoder_statistics(study: StudyView) -> Figure:
    """Draw the encoder's output in overfit runs: variance across samples, spread, norm, tokens.

    Spread and norm are those before normalisation: after it they are all but constants.
    """
    fail, warn = bounds(study.health, "collapse")
    return _overfit_panels(
        study,
        Panel(
            "train/encoder_cross_sample_var",
            "Cross-sample variance",
            ((fail, f"collapse\n< {fail:g}"), (warn, f"good\n> {warn:g}")),
            linear_below=min(fail, warn) / 10,
        ),
        Panel("train/encoder_raw_std", "Standard deviation before normalisation"),
        Panel("train/encoder_raw_norm", "Norm before normalisation"),
        Panel("train/encoder_token_std", "Standard deviation across tokens"),
        subject="encoder statistics",
    )


def gradient_flow(study: StudyView) -> Figure:
    """Draw the gradient that reaches the encoder in overfit runs: its norm, and its share."""
    fail, warn = bounds(study.health, "gradient_starvation")
    least, _ = bounds(study.health, "low_gradient_share")
    return _overfit_panels(
        study,
        Panel(
            "grad/encoder_norm",
            "Gradient norm of the encoder",
            ((fail, f"starved\n< {fail:g}"), (warn, f"good\n> {warn:g}")),
            linear_below=fail,  # so that a gradient of exactly zero can be seen
        ),
        Panel(
            "grad/encoder_share",
            "Encoder's share of the gradient",
            ((least, f"bad\n< {100 * least:g} %"),),
            percent=True,
        ),
        subject="gradient norms",
    )


def encoder_probe(study: StudyView) -> Figure:
    """Draw how far contexts depend on puzzle and task in overfit runs, and on what answers lose.

    The value of an experiment's untrained encoder is a dashed line of its colour.
    """
    return _overfit_panels(
        study,
        Panel(
            "encoder/puzzle_knn_accuracy", "Nearest neighbour: same puzzle", (), None, True, True
        ),
        Panel("encoder/task_knn_accuracy", "Nearest neighbour: same task", (), None, True, True),
        Panel("encoder/between_puzzle_ratio", "Variance between puzzles", (), None, True, True),
        Panel("encoder/context_swap_drop", "Loss by another's context", (), None, True, True),
        subject="probes",
    )


def overfit_dynamics(study: StudyView) -> Figure:
    """Draw losses and ACT steps of overfit runs, and each metric whose rule ended a run.

    The threshold of the rule is a line, and a cross is the end of a run that it ended.
    """
    return _overfit_panels(
        study,
        Panel("train/lm_loss", "Loss of the answer"),
        Panel("train/q_halt_loss", "Loss of the halting head"),
        Panel("train/steps", "ACT steps of a sample"),
        *_stopping_panels(study.runs),
        subject="losses",
    )


def _stopping_panels(runs: Sequence[RunView]) -> list[Panel]:
    """Return a panel for each metric that ended an overfit run, with its thresholds."""
    lines: dict[str, dict[float, str]] = {}
    for view in _of_encoders(runs):
        if (by := view.stopped_by) is not None:
            at, value = by["threshold"], by["value"]
            side = "<" if value is not None and at is not None and value < at else ">"
            words = {} if at is None else {at: f"stopped\n{side} {at:g}"}
            lines[by["metric"]] = lines.get(by["metric"], {}) | words
    return [
        Panel(
            metric,
            f"{metric}: ended a run",
            tuple(of.items()),
            linear_below=None if metric in SHARES else min(of, default=None),
            percent=metric in SHARES,
        )
        for metric, of in lines.items()
    ]


def _of_encoders(runs: Sequence[RunView]) -> list[RunView]:
    return [view for view in runs if view.stage == "overfit" and not view.is_trm]


def bounds(health: HealthConfig, finding: str) -> tuple[float, float]:
    """Return where a rule fails and where it warns; the guide's if the study has no such rule."""
    rule = health.rules.get(finding) or guide_rules()[finding]
    given = [bound for bound in (rule.fail, rule.warn, rule.stop) if bound is not None]
    return (given[0], given[min(1, len(given) - 1)]) if given else (0.0, 0.0)


def _overfit_panels(study: StudyView, *panels: Panel, subject: str) -> Figure:
    """Draw metrics of ETRM's overfit runs, two panels a row."""
    look_of, style = looks(view.experiment for view in study.runs), study.style
    logged, rows = _of_encoders(study.runs), -(-len(panels) // 2)
    views = [view for view in logged if any(len(view.series(panel.metric)) for panel in panels)]
    with theme(style):
        if not views:
            fig = Figure(figsize=(style.width, 0.25 * style.width), layout="constrained")
            say(fig.subplots(), f"no ETRM overfit run with {subject} has finished yet")
            return fig
        height = (0.15 + 0.27 * rows) * style.width
        fig = Figure(figsize=(style.width, height), layout="constrained")
        grid = fig.subplots(rows, 2, sharex=True, squeeze=False)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid.ravel(), panels, strict=False):
            axes.set_title(panel.title)
            if not _curves(axes, views, panel.metric, look_of):
                say(axes, f"no run has logged {panel.metric}")
                continue
            if panel.floor:
                _floors(axes, views, panel.metric, look_of)
            for value, words in panel.lines:
                _threshold(axes, value, words)
            for view in views:
                if (by := view.stopped_by) is not None and by["metric"] == panel.metric:
                    _mark(axes, smoothed(view, panel.metric), "X", look_of[view.experiment].colour)
            low, high = axes.get_ylim()
            if panel.linear_below is not None:
                _log_axis(axes, panel.linear_below)
            elif panel.percent:
                axes.set_ylim(bottom=-0.02)  # a line at zero stays in sight
                axes.yaxis.set_major_formatter(PERCENT())
            else:
                axes.set_ylim(min(0.0, low), max(1.1 * high, 0.0))
        for axes in grid.ravel():
            _steps_axis(axes, labelled=axes in list(grid[-1]))
        handles = _handles(views, look_of)
        if any(panel.floor for panel in panels):
            handles.append(Line2D([], [], color=GUIDE, linestyle="--", label="untrained"))
        legend_below(fig, handles, style)
    return fig


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


def _curves(
    axes: Axes, views: Sequence[RunView], metric: str, look_of: dict[str, Look]
) -> list[RunView]:
    """Draw one line per experiment; return the runs that have the metric."""
    shown = [view for view in views if len(view.series(metric))]
    for name in distinct(view.experiment for view in shown):
        seeds = [view for view in shown if view.experiment == name]
        look = look_of[name]
        curve = over_seeds([smoothed(view, metric) for view in seeds])
        if len(seeds) == 1:  # the raw values, faint; several seeds have a band instead
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


def _floors(axes: Axes, views: Sequence[RunView], metric: str, look_of: dict[str, Look]) -> None:
    """Draw each experiment's value before the first step, the mean over its seeds."""
    for name in distinct(view.experiment for view in views):
        series = [view.series(metric) for view in views if view.experiment == name]
        if first := [values.loc[0] for values in series if 0 in values.index]:
            look: dict[str, Any] = {"color": look_of[name].colour, "linestyle": "--"}
            axes.axhline(float(np.mean(first)), linewidth=0.8, alpha=0.7, zorder=1.4, **look)


def _validation_curves(axes: Axes, views: Sequence[RunView], look_of: Mapping[str, Look]) -> None:
    """Draw exact match on validation tasks, one dotted line per experiment: the mean over seeds."""
    shown = [view for view in views if len(view.series(VALIDATION))]
    for name in distinct(view.experiment for view in shown):
        seeds = [view.series(VALIDATION) for view in shown if view.experiment == name]
        curve, colour = over_seeds(seeds)["mean"], look_of[name].colour
        line: dict[str, Any] = {"linestyle": DOTTED, "marker": ".", "ms": 4, "zorder": 2.6}
        axes.plot(curve.index, curve, color=colour, **line)


def _end_mark(axes: Axes, view: RunView, colour: str) -> None:
    """Mark the end: a cross for a stopped run, else a dot at the last evaluation, if any."""
    if view.stopped:
        _mark(axes, smoothed(view, "train/exact_accuracy"), "X", colour)
    else:
        _mark(axes, view.series("all.exact_accuracy"), "o", colour)


def _mark(axes: Axes, values: pd.Series, marker: str, colour: str) -> None:
    """Mark the last value, if any."""
    (mark,) = axes.plot(values.index[-1:], values[-1:], marker=marker, ms=6, mec="white", zorder=4)
    mark.set(color=colour, clip_on=False)  # whole also at the edge of a panel


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
    """Return legend entries of the experiments, in the order given."""
    handles = {}
    for view in views:
        name, line = view.experiment, "--" if view.is_trm else "-"
        look = look_of[name]
        handles[name] = Line2D([], [], label=name, color=look.colour, marker=look.marker, ls=line)
    return list(handles.values())


def _steps_axis(axes: Axes, labelled: bool = True) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2k for 2000
    axes.set_xlim(left=0)
    if labelled:
        axes.set_xlabel("step")


def _log_axis(axes: Axes, linear_below: float) -> None:
    """Make the axis logarithmic, but linear up to `linear_below`: zeros stay in sight."""
    linear_below = max(linear_below, 1e-3)  # a bound of 0 has no logarithm
    axes.set_yscale("symlog", linthresh=linear_below, linscale=0.5)
    top = max(float(np.nanmax(np.asarray(line.get_ydata(), dtype=float))) for line in axes.lines)
    top = 1.3 * max(top, 10 * linear_below)  # at least one decade
    decades = range(math.ceil(math.log10(linear_below)), math.floor(math.log10(top)) + 1)
    decades = decades[:: math.ceil(len(decades) / 6)]  # at most six labels
    axes.set_yticks([0.0, *(10.0**decade for decade in decades)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.15 * linear_below, top)  # room for a line at zero
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _threshold(axes: Axes, value: float, words: str) -> None:
    """Draw a line at `value`, named at the right of the panel."""
    axes.axhline(value, color=GUIDE, linestyle=":", linewidth=1.0, zorder=1.2)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    look: dict[str, Any] = {"va": "center", "fontsize": "x-small", "linespacing": 0.9}
    look |= {"color": GUIDE, "annotation_clip": False}  # outside of the panel
    axes.annotate(words, xy=(1, value), xytext=(3, 0), **place, **look)
