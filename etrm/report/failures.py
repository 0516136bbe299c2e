"""Classes of wrong answers, and the figure `failures`: their shares over all held-out answers.

The classes are those that people found in the answers of the original ETRM by looking; here they
are counted, by rules that need nothing but the answer and the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from etrm.evaluation.voting import to_array
from etrm.report import style
from etrm.report.run_view import RunView, StudyView, by_name, last_stage

if TYPE_CHECKING:
    from etrm.arc.task import Task

SOLID = 0.95  # share of one colour from which on a grid is collapsed
NEARLY = 0.9  # share of right cells from which on an answer is nearly right
CLASSES = {  # name: colour, words
    "right": (style.RIGHT, "right"),
    "nearly": ("#56B4E9", f"nearly right: {100 * NEARLY:g}\u00a0% of cells"),
    "rearranged": ("#0072B2", "rearranged: the colours are right"),
    "structured": ("#E69F00", "structured but wrong"),
    "size": ("#CC79A7", "wrong size"),
    "collapsed": ("#555555", f"collapsed: {100 * SOLID:g}\u00a0% of one colour"),
}
COLUMNS = ["task", "query", "height", "width", "grid"]


def failure(grid: np.ndarray, truth: np.ndarray) -> str:
    """Return the class of an answer (uint8 [height, width]): the first of these that holds.

    `right`; `collapsed`, where the truth is not as uniform; wrong `size`, an empty grid included;
    `nearly`; `rearranged`: it has the colours of the truth, and no others; else `structured`.
    """
    if np.array_equal(grid, truth):
        return "right"
    if grid.size and _solid(grid) >= SOLID > _solid(truth):
        return "collapsed"
    if grid.shape != truth.shape:
        return "size"
    if (grid == truth).mean() >= NEARLY:
        return "nearly"
    same = np.array_equal(np.unique(grid), np.unique(truth))
    return "rearranged" if same else "structured"


def _solid(grid: np.ndarray) -> float:
    """Return the share of the most frequent colour."""
    return float(np.bincount(grid.ravel()).max() / grid.size)


def shares(view: RunView, truths: Mapping[tuple[str, int], np.ndarray]) -> Counter[str]:
    """Count the classes of all answers of a run, those of every variant; equal ones at once."""
    if view.predictions is None:
        return Counter()
    table = pq.read_table(view.predictions, columns=COLUMNS).group_by(COLUMNS)
    counted = table.aggregate([([], "count_all")])
    found: Counter[str] = Counter()
    rows = zip(*(counted[name].to_pylist() for name in [*COLUMNS, "count_all"]), strict=True)
    for task, query, *cells, count in rows:
        if (truth := truths.get((task, query))) is not None:
            found[failure(to_array(*cells), truth)] += count
    return found


def truths_of(tasks: Sequence[Task]) -> dict[tuple[str, int], np.ndarray]:
    """Return the known outputs by task and query."""
    pairs = ((task.id, q, pair.output) for task in tasks for q, pair in enumerate(task.queries))
    return {(task, query): output for task, query, output in pairs if output is not None}


@style.figure
def failures(study: StudyView) -> Figure:
    """Draw the shares of right answers and of each class of wrong ones, an experiment a row.

    All single answers count, before the vote, of all variants and seeds.
    """
    truths = truths_of(study.tasks)
    counts: dict[str, Counter[str]] = {}
    scored = [view for view in study.runs if view.predictions is not None]
    for name, mine in by_name(scored).items():
        total = sum((shares(view, truths) for view in mine), Counter[str]())
        if total:
            counts[name] = total
    if not counts:
        raise style.EmptyFigureError("no answer to a held-out task has a known output yet")
    rows = style.Rows(list(counts), study.style)
    size = study.style.width, rows.height + 0.75 * study.style.font_scale
    fig = Figure(figsize=size, layout="constrained")
    style.heading(fig, study.style, last_stage([v for v in scored if v.experiment in counts])[1])
    axes = fig.subplots()
    style.title(axes, "Single answers to held-out tasks, of all variants", study.style, 1)
    left = np.zeros(len(counts))
    for name, (colour, _) in CLASSES.items():
        share = np.array([of[name] / of.total() for of in counts.values()])
        axes.barh(rows.at, share, 0.7 * rows.at[0] * 2, left, color=colour)
        left += share
    rows.label(axes)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(style.percent)
    style.legend_below(
        fig, [Patch(lw=0, color=c, label=w) for c, w in CLASSES.values()], study.style
    )
    return fig
