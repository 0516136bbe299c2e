"""The figure `predictors`: measures of encoders against exact match on unseen tasks, run by run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from etrm.report.predictors import (
    SCORE,
    Point,
    correlation_of,
    points,
    strata,
    words,
)
from etrm.report.run_view import StudyView, distinct
from etrm.report.style import (
    Look,
    empty_figure,
    heading,
    legend_below,
    looks,
    percent,
    share_y,
    small_multiples,
    theme,
    title,
)

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


def predictors(study: StudyView) -> Figure:
    """Draw a point for each full run of an encoder, of the largest group of comparable runs.

    The title of a panel has the rank correlation with its interval, where there are runs enough.
    """
    look_of, style = looks(view.experiment for view in study.runs), study.style
    groups = strata(study.runs)
    with theme(style):
        if not groups:
            return empty_figure(
                style, "no full run with an encoder has a score or a validation yet"
            )
        shown = max(groups, key=lambda group: len(group.runs))
        panels = {name: found for name in PANELS if (found := points(shown, name))}
        fig, grid, columns = small_multiples(style, max(1, len(panels)), COLUMNS, 0.85)
        share_y(grid, columns)
        number = "Spearman's rank correlation with its 95 % interval"
        heading(fig, style, "Full runs, a mark each", number)
        for axes, (measure, runs) in zip(grid, panels.items(), strict=False):
            title(axes, f"{PANELS[measure]}\n{_draw(axes, runs, look_of)}", style, columns)
        for axes in grid[::columns]:
            axes.set_ylabel("pass@1" if shown.outcome == SCORE else "validation")
        top = max(0.05, *(outcome for _, outcome in shown.runs))
        grid[0].set_ylim(-0.04 * top, 1.06 * top)  # shared by all panels
        grid[0].yaxis.set_major_formatter(percent)
        names = distinct(view.experiment for view, _ in shown.runs)
        legend_below(fig, [_mark(name, look_of[name]) for name in names], style)
    return fig


def _draw(axes: Axes, runs: Sequence[Point], look_of: dict[str, Look]) -> str:
    """Draw a mark for each run; return the correlation in words, or their number."""
    for point in runs:
        mark = _mark(point.view.experiment, look_of[point.view.experiment])
        mark.set_data([point.measure], [point.outcome])
        mark.set(mec="white", mew=0.4, zorder=3)
        axes.add_line(mark)
    axes.autoscale_view()
    found, count = correlation_of(runs), f"{len(runs)} run{'s' * (len(runs) > 1)}"
    axes.xaxis.set_major_locator(MaxNLocator(3))
    return words(found.value, found.low, found.high) if found else count


def _mark(name: str, look: Look) -> Line2D:
    marker = look.marker or "o"
    return Line2D([], [], label=name, color=look.colour, marker=marker, ms=4.5, ls="none")
