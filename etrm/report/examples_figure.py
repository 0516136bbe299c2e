"""The figure `examples`: a few held-out tasks, their demos, and the test input with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from etrm.report import style
from etrm.report.run_view import StudyView

if TYPE_CHECKING:
    from etrm.arc.task import Task

TASKS, DEMOS = 4, 3  # that are drawn, of each task
SMALL = 12  # cells: tasks of larger grids are drawn only where there are no others


@style.figure
def examples(study: StudyView) -> Figure:
    """Draw held-out tasks whose answer is known: two columns for each pair, the test's last.

    They are drawn with a fixed seed, among those of small grids if there are enough.
    """
    chosen = choose(study.tasks, TASKS)
    if not chosen:
        raise style.EmptyFigureError("no held-out task has a known answer")
    shown = min(DEMOS, max(len(task.demos) for task in chosen))
    columns = 2 * (shown + 1)
    side = study.style.width / columns
    frames = [_frame(task, shown) for task in chosen]
    ratios = [height / width for height, width in frames]
    high = side * sum(ratios) + 0.06 * len(chosen) + 0.45 * study.style.font_scale
    fig = Figure(figsize=(study.style.width, high), layout="constrained")
    style.heading(fig, study.style, style.part_of(len(chosen), len(study.tasks), "held-out tasks"))
    grid = fig.subplots(len(chosen), columns, squeeze=False, height_ratios=ratios)
    font = min(6.5 * study.style.font_scale, 72 * side / 6)  # points: ten letters across a panel
    for row, task, frame in zip(grid, chosen, frames, strict=True):
        pairs = [*task.demos[:shown], *[None] * (shown - len(task.demos)), task.queries[0]]
        grids = [g for pair in pairs for g in ((pair.input, pair.output) if pair else (None,) * 2)]
        for axes, each in zip(row, grids, strict=True):
            style.draw_grid(axes, each, frame, "", font)
    heads = [f"{what} {i + 1}" for i in range(shown) for what in ("input", "output")]
    for axes, words in zip(grid[0], [*heads, "test input", "truth"], strict=True):
        axes.set_title(words, fontsize=font)
    return fig


def choose(tasks: Sequence[Task], count: int, seed: int = 0) -> list[Task]:
    """Draw `count` tasks of a known answer: ARC's before generated ones, then small ones first."""
    known = [t for t in sorted(tasks, key=lambda t: t.id) if t.queries[0].output is not None]
    order = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    first = sorted(order, key=lambda task: (task.rule is not None, max(_sides(task)) > SMALL))
    return first[:count]


def _sides(task: Task, demos: int | None = None) -> tuple[int, int]:
    """Return the largest height and width of a task's grids."""
    pairs = (*task.demos[:demos], task.queries[0])
    grids = [grid for pair in pairs for grid in (pair.input, pair.output) if grid is not None]
    return max(grid.shape[0] for grid in grids), max(grid.shape[1] for grid in grids)


def _frame(task: Task, demos: int) -> tuple[int, int]:
    """Return the frame of a task's panels in cells: as wide as a panel, and not too flat."""
    height, width = _sides(task, demos)
    side = max(height, width)
    return max(height, side // 3), side
