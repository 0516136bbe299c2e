"""The figure `examples`: a few held-out tasks, their demos, and the test input with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from etrm.report.run_view import StudyView
from etrm.report.style import draw_grid, empty_figure, theme

if TYPE_CHECKING:
    from etrm.arc.task import Task

TASKS, DEMOS = 4, 3  # that are drawn, of each task
SMALL = 12  # cells: tasks of larger grids are drawn only where there are no others


def examples(study: StudyView) -> Figure:
    """Draw held-out tasks whose answer is known: two columns for each pair, the test's last.

    They are drawn with a fixed seed, among those of small grids if there are enough.
    """
    style, chosen = study.style, choose(study.tasks, TASKS)
    with theme(style):
        if not chosen:
            return empty_figure(style, "no held-out task has a known answer")
        shown = min(DEMOS, max(len(task.demos) for task in chosen))
        columns = 2 * (shown + 1)
        side = style.width / columns
        fig = Figure(figsize=(style.width, (side + 0.06) * len(chosen) + 0.3), layout="constrained")
        grid = fig.subplots(len(chosen), columns, squeeze=False)
        font = min(6.5 * style.font_scale, 72 * side / 6)  # points: ten letters across a panel
        for row, task in zip(grid, chosen, strict=True):
            pairs = [*task.demos[:shown], *[None] * (shown - len(task.demos)), task.queries[0]]
            grids = [
                g for pair in pairs for g in ((pair.input, pair.output) if pair else (None,) * 2)
            ]
            most = max(max(each.shape) for each in grids if each is not None)
            for axes, each in zip(row, grids, strict=True):
                draw_grid(axes, each, (most, most), "", font)
        heads = [f"{what} {i + 1}" for i in range(shown) for what in ("input", "output")]
        for axes, words in zip(grid[0], [*heads, "test input", "truth"], strict=True):
            axes.set_title(words, fontsize=font)
    return fig


def choose(tasks: Sequence[Task], count: int, seed: int = 0) -> list[Task]:
    """Draw `count` tasks of a known answer, the small ones first."""
    known = [t for t in sorted(tasks, key=lambda t: t.id) if t.queries[0].output is not None]
    order = [known[i] for i in np.random.default_rng(seed).permutation(len(known))]
    return sorted(order, key=lambda task: _side(task) > SMALL)[:count]


def _side(task: Task) -> int:
    grids = [g for pair in (*task.demos, task.queries[0]) for g in (pair.input, pair.output)]
    return max(max(grid.shape) for grid in grids if grid is not None)
