"""Figures over training. Each is a function from a `StudyView` to a `Figure`: no files here.

An experiment has the same colour in every figure of a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from etrm.config.health import HealthConfig, guide_rules
from etrm.report.curves import (
    draw_curves,
    draw_threshold,
    label_steps,
    legend_entries,
    make_logarithmic,
    mark_last,
    over_seeds,
    smoothed,
)
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
            shown = draw_curves(axes, runs, "train/exact_accuracy", look_of)
            _validation_curves(axes, runs, look_of)
            for view in shown:
                _end_mark(axes, view, look_of[view.experiment].colour)
            label_steps(axes)
            drawn += shown
            if not shown:
                say(axes, f"no {title} run has finished yet")
        panels[0].set_ylim(-0.02, 1.02)  # shared by all panels
        panels[0].yaxis.set_major_formatter(PERCENT())
        first = next((axes for axes in panels if axes.axison), panels[0])
        first.set_ylabel("exact match")
        first.tick_params(labelleft=True)  # sharing the axis has taken its labels
        handles = legend_entries(drawn, look_of) + _gate_lines(
            panels[STAGES.index("overfit")], drawn
        )
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
            if not draw_curves(axes, views, panel.metric, look_of):
                say(axes, f"no run has logged {panel.metric}")
                continue
            if panel.floor:
                _floors(axes, views, panel.metric, look_of)
            for value, words in panel.lines:
                draw_threshold(axes, value, words)
            for view in views:
                if (by := view.stopped_by) is not None and by["metric"] == panel.metric:
                    mark_last(
                        axes, smoothed(view, panel.metric), "X", look_of[view.experiment].colour
                    )
            low, high = axes.get_ylim()
            if panel.linear_below is not None:
                make_logarithmic(axes, panel.linear_below)
            elif panel.percent:
                axes.set_ylim(bottom=-0.02)  # a line at zero stays in sight
                axes.yaxis.set_major_formatter(PERCENT())
            else:
                axes.set_ylim(min(0.0, low), max(1.1 * high, 0.0))
        for axes in grid.ravel():
            label_steps(axes, labelled=axes in list(grid[-1]))
        handles = legend_entries(views, look_of)
        if any(panel.floor for panel in panels):
            handles.append(Line2D([], [], color=GUIDE, linestyle="--", label="untrained"))
        legend_below(fig, handles, style)
    return fig


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
        mark_last(axes, smoothed(view, "train/exact_accuracy"), "X", colour)
    else:
        mark_last(axes, view.series("all.exact_accuracy"), "o", colour)


def _gate_lines(axes: Axes, views: Sequence[RunView]) -> list[Line2D]:
    thresholds = {view.verdict["threshold"] for view in views if view.verdict is not None}
    look: dict[str, Any] = {"color": GUIDE, "linestyle": ":", "linewidth": 1.0}
    for value in sorted(thresholds):
        axes.axhline(value, zorder=1.2, **look)
    if not thresholds:
        return []
    values = ", ".join(f"{100 * value:g} %" for value in sorted(thresholds))
    return [Line2D([], [], label=f"gate: {values}", **look)]
