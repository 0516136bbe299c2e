"""Figures over training. Each is a function from a `StudyView` to a `Figure`: no files here.

An experiment has the same colour in every figure of a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etrm.report import curves, style
from etrm.report.panels import Panel, bounds, draw_panels
from etrm.report.run_view import STAGES, RunView, StudyView, by_name

TITLES = {"pretrain": "Pretraining", "overfit": "Overfit", "full": "Full"}
SHARES = ("grad/encoder_coverage", "grad/encoder_share", "train/steps_share")
DOTTED: Any = (0, (1, 1.5))
OVERFIT = "ETRM overfit run"
PROBES = {
    "puzzle_knn_accuracy": "Nearest neighbour: same puzzle",
    "task_knn_accuracy": "Nearest neighbour: same task",
    "between_puzzle_ratio": "Variance between puzzles",
    "between_task_ratio": "Variance between tasks",
    "effective_rank": "Effective rank",
    "context_swap_drop": "Loss by another's context",
}
DASHBOARD = (  # metrics of the experiment guide, after those with thresholds
    "grad/total_norm",
    *("train/lm_loss", "train/q_halt_loss", "train/steps"),
    *("train/encoder_output_norm", "train/encoder_output_std", "train/encoder_token_std"),
)


@style.figure
def training_curves(study: StudyView) -> Figure:
    """Draw train exact match (`train/exact_accuracy`) over steps, one panel per stage.

    A dot is a run's last `all.exact_accuracy`, over all training episodes with averaged weights,
    which the gate judges; its threshold is a line on the overfit panel. A cross marks where an
    experiment was stopped, by its verdict or by a health rule. Dotted lines are exact match on
    validation tasks (`validation.exact_accuracy`), with averaged weights too.
    """
    fig, panels, drawn, look_of = _by_stage(study, {"exact_accuracy": "exact match"}, 0.9)
    for view in drawn:
        _end_mark(panels[STAGES.index(view.stage)], view, look_of[view.experiment].colour)
    panels[0].set_ylim(-0.02, 1.02)  # shared by all panels
    handles = curves.legend_entries(drawn, look_of, panels)
    handles += _gate_lines(panels[STAGES.index("overfit")], drawn)
    ended = [view for view in drawn if len(view.series("all.exact_accuracy"))]
    if any(view.stopped for view in drawn):
        handles.append(curves.end_entry("end of a stopped run"))
    if any(not view.stopped for view in ended):
        handles.append(curves.end_entry("all episodes, averaged weights", "o"))
    handles += _validation_entries(drawn, "exact_accuracy")
    style.legend_below(fig, handles, study.style)
    return fig


@style.figure
def learning(study: StudyView) -> Figure:
    """Draw token accuracy and the loss of answers over steps, by stage: train against validation.

    Dotted lines are those of validation tasks, with averaged weights.
    """
    metrics = {"accuracy": "token accuracy", "lm_loss": "loss of the answer"}
    fig, panels, drawn, look_of = _by_stage(study, metrics, 0.75)
    panels[0].set_ylim(top=1.02)
    panels[len(STAGES)].set_ylim(bottom=0.0)
    handles = curves.legend_entries(drawn, look_of, panels)
    handles += _validation_entries(drawn, "accuracy")
    style.legend_below(fig, handles, study.style)
    return fig


def _by_stage(
    study: StudyView, metrics: Mapping[str, str], ratio: float
) -> tuple[Figure, list[Axes], list[RunView], Mapping[str, style.Look]]:
    """Draw metrics, in words, a row for each, a column for each stage; the first is a share.

    Return the figure, its panels, the runs that are shown, and their looks.
    """
    look_of, count = style.looks(view.experiment for view in study.runs), len(STAGES)
    shape = count * len(metrics), count, ratio
    fig, panels, across = style.small_multiples(study.style, *shape)
    drawn: list[RunView] = []
    for first, (name, words) in enumerate(metrics.items()):
        row = panels[first * count : (first + 1) * count]
        style.share_y(row, across)
        for axes, stage in zip(row, STAGES, strict=True):
            runs = [view for view in study.runs if view.stage == stage]
            shown = curves.draw_curves(axes, runs, f"train/{name}", look_of)
            _validation_curves(axes, runs, look_of, f"validation.{name}")
            curves.label_steps(axes, labelled=len(metrics) == 1 or axes in panels[-across:])
            drawn += shown
            if not shown:
                style.say(axes, f"no {TITLES[stage].lower()} run has finished yet")
            if first == 0 or across < count:
                axes.set_title(TITLES[stage])
        _name_rows(row, across, words)
    panels[0].yaxis.set_major_formatter(style.percent)
    return fig, panels, drawn, look_of


@style.figure
def encoder_statistics(study: StudyView) -> Figure:
    """Draw the encoder's output in overfit runs: variance across samples, spread, norm, tokens.

    Spread and norm are those before normalisation: after it they are all but constants.
    """
    fail, warn = bounds(study.health, "collapse")
    return _of_overfit_runs(
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


@style.figure
def gradient_flow(study: StudyView) -> Figure:
    """Draw the gradient that reaches the encoder in overfit runs: norm, share and coverage.

    Coverage is the share of samples whose contexts carry a gradient: all of them where demos are
    encoded anew at every ACT step, few where contexts are cached. Beside it stands the decoder's.
    """
    fail, warn = bounds(study.health, "gradient_starvation")
    least, _ = bounds(study.health, "low_gradient_share")
    covered, _ = bounds(study.health, "gradient_coverage")
    return _of_overfit_runs(
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
        Panel(
            "grad/encoder_coverage",
            "Samples whose context carries a gradient",
            ((covered, f"starved\n< {100 * covered:g} %"),),
            percent=True,
        ),
        Panel("grad/inner_norm", "Gradient norm of the decoder"),
        subject="gradient norms",
    )


@style.figure
def encoder_probe(study: StudyView) -> Figure:
    """Draw how far contexts depend on puzzle and task in overfit runs, and on what answers lose.

    The value of an experiment's untrained encoder is a dashed line of its colour.
    """
    return _of_overfit_runs(
        study,
        *(
            Panel(f"encoder/{name}", title, (), None, name != "effective_rank", floor=True)
            for name, title in PROBES.items()
        ),
        subject="probes",
    )


@style.figure
def overfit_dynamics(study: StudyView) -> Figure:
    """Draw losses and ACT steps of overfit runs, and each metric whose rule ended a run.

    The threshold of the rule is a line, and a cross is the end of a run that it ended.
    """
    return _of_overfit_runs(
        study,
        Panel("train/lm_loss", "Loss of the answer"),
        Panel("train/q_halt_loss", "Loss of the halting head"),
        Panel("train/steps", "ACT steps of a sample"),
        *_stopping_panels(study.runs),
        subject="losses",
    )


@style.figure
def dashboard(study: StudyView) -> Figure:
    """Draw the experiment guide's dashboard: its four panels are the rows, over overfit runs.

    pass@1 is that of the experiment's scored runs, at the seed's place from left to right.
    """
    fail, warn = bounds(study.health, "collapse")
    starved, _ = bounds(study.health, "gradient_starvation")
    scores = {
        name: [x for v in mine if (x := v.test_metric("ARC/pass@1")) is not None]
        for name, mine in by_name(study.runs).items()
    }

    def passes(axes: Axes, views: Sequence[RunView], look_of: Mapping[str, style.Look]) -> None:
        shown = [name for name in by_name(views) if scores[name]]
        if not shown:
            style.say(axes, "no score yet")
        for place, name in enumerate(shown):
            axes.plot([place] * len(scores[name]), scores[name], ls="", **look_of[name].mark)
        axes.set_xticks([])
        axes.yaxis.set_major_formatter(style.percent)

    panels = [
        Panel("train/exact_accuracy", "train/exact_accuracy", percent=True),
        Panel("all.exact_accuracy", "all.exact_accuracy", percent=True),
        Panel("ARC/pass@1", "ARC/pass@1, full runs", draw=passes),
        Panel(
            "train/encoder_cross_sample_var",
            "train/encoder_cross_sample_var",
            ((fail, f"< {fail:g}"), (warn, f"> {warn:g}")),
            linear_below=min(fail, warn) / 10,
        ),
        Panel("grad/encoder_norm", "grad/encoder_norm", ((starved, f"< {starved:g}"),)),
        *(Panel(name, name) for name in DASHBOARD),
    ]
    rows = ("success", "encoder health", "learning", "encoder output")
    views = _of_encoders(study.runs)
    shape: dict[str, Any] = {"columns": 3, "rows": rows, "ratio": 0.66}
    return draw_panels(study, views, panels, runs="Overfit runs", subject=OVERFIT, **shape)


def _name_rows(panels: Sequence[Axes], across: int, words: str) -> None:
    """Name the y axis of the first panel of each row that shows anything, and number it."""
    for start in range(0, len(panels), across):
        row = panels[start : start + across]
        first = next((axes for axes in row if axes.axison), row[0])
        first.set_ylabel(words)
        first.tick_params(labelleft=True)  # sharing the axis has taken its labels


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


def _of_overfit_runs(study: StudyView, *panels: Panel, subject: str) -> Figure:
    views, subject = _of_encoders(study.runs), f"ETRM overfit run with {subject}"
    return draw_panels(study, views, panels, runs="Overfit runs", subject=subject)


def _validation_entries(views: Sequence[RunView], name: str) -> list[Line2D]:
    """Return the legend entry of dotted lines, where any run has the metric."""
    line: dict[str, Any] = {"linestyle": DOTTED, "marker": ".", "ms": 4}
    known = any(len(view.series(f"validation.{name}")) for view in views)
    return [style.entry("validation tasks", **line)] if known else []


def _validation_curves(
    axes: Axes, views: Sequence[RunView], look_of: Mapping[str, style.Look], metric: str
) -> None:
    """Draw a metric of validation tasks, one dotted line per experiment: the mean over seeds."""
    for name, mine in by_name(view for view in views if len(view.series(metric))).items():
        curve = curves.over_seeds([view.series(metric) for view in mine])["mean"]
        colour = look_of[name].colour
        line: dict[str, Any] = {"linestyle": DOTTED, "marker": ".", "ms": 4, "zorder": 2.6}
        axes.plot(curve.index, curve, color=colour, **line)


def _end_mark(axes: Axes, view: RunView, colour: str) -> None:
    """Mark the end: a cross for a stopped run, else a dot at the last evaluation, if any."""
    if view.stopped:
        curves.mark_last(axes, curves.smoothed(view, "train/exact_accuracy"), "X", colour)
    else:
        curves.mark_last(axes, view.series("all.exact_accuracy"), "o", colour)


def _gate_lines(axes: Axes, views: Sequence[RunView]) -> list[Line2D]:
    thresholds = {view.verdict["threshold"] for view in views if view.verdict is not None}
    look: dict[str, Any] = {"color": style.GUIDE, "linestyle": ":", "linewidth": 1.0}
    for value in sorted(thresholds):
        axes.axhline(value, zorder=1.2, **look)
    if not thresholds:
        return []
    values = ", ".join(f"{100 * value:g} %" for value in sorted(thresholds))
    return [style.entry(f"gate: {values}", **look)]
