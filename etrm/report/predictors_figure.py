"""The figure `predictors`: measures of encoders against exact match on unseen tasks, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from etrm.report import style
from etrm.report.formats import number_of
from etrm.report.predictors import SCORE, Point, correlation_of, points, strata, words
from etrm.report.run_view import StudyView, by_name

PANELS = {  # a choice: the table has all measures
    "train/encoder_cross_sample_var": "Cross-sample variance",
    "encoder/effective_rank": "Effective rank",
    "encoder/between_puzzle_ratio": "Variance between puzzles",
    "encoder/puzzle_knn_accuracy": "Neighbour of same puzzle",
    "encoder/context_swap_drop": "Loss by another's context",
    "grad/encoder_share": "Encoder's gradient share",
    "readout/rule": "Read-out of the rule",
    "readout/parameters": "Read-out of parameters",
    "all.exact_accuracy": "Train exact match",
}
COLUMNS = 3


@style.figure
def predictors(study: StudyView) -> Figure:
    """Draw a point for each full run of an encoder, of the largest group of comparable runs.

    The title of a panel has the rank correlation with its interval, where there are runs enough.
    """
    look_of = style.looks(view.experiment for view in study.runs)
    groups = strata(study.runs)
    if not groups:
        raise style.EmptyFigureError("no full run with an encoder has a score or a validation yet")
    shown = max(groups, key=lambda group: len(group.runs))
    panels = {name: found for name in PANELS if (found := points(shown, name))}
    fig, grid, columns = style.small_multiples(study.style, max(1, len(panels)), COLUMNS, 0.85)
    style.share_y(grid, columns)
    number = "Spearman's rank correlation with its 95 % interval"
    style.heading(fig, study.style, "Full runs, a mark each", number)
    for axes, (measure, runs) in zip(grid, panels.items(), strict=False):
        style.title(axes, f"{PANELS[measure]}\n{_draw(axes, runs, look_of)}", study.style, columns)
    for axes in grid[::columns]:
        axes.set_ylabel("pass@1" if shown.outcome == SCORE else "validation")
    top = max(0.05, *(outcome for _, outcome in shown.runs))
    grid[0].set_ylim(-0.04 * top, 1.06 * top)  # shared by all panels
    grid[0].yaxis.set_major_formatter(style.percent)
    names = by_name(view for view, _ in shown.runs)
    marks = [style.entry(name, ms=4.5, ls="none", **look_of[name].mark) for name in names]
    style.legend_below(fig, marks, study.style)
    return fig


def _draw(axes: Axes, runs: Sequence[Point], look_of: dict[str, style.Look]) -> str:
    """Draw a mark for each run; return the correlation in words, or their number."""
    for point in runs:
        look: dict[str, Any] = {"ms": 4.5, "ls": "none", "mec": "white", "mew": 0.4, "zorder": 3}
        mark = look_of[point.view.experiment].mark
        axes.plot([point.measure], [point.outcome], **mark, **look)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    found = correlation_of(runs)
    return words(found.value, found.low, found.high) if found else number_of(len(runs), "run")
