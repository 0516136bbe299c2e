"""A task and its answers as a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from etrm.errors import UserError
from etrm.solve.terminal import attempts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from etrm.solve.solution import Solution

PANEL, GAP, TITLE, MARGIN = 1.5, 0.15, 0.25, 0.1  # inches
COLUMNS = 4  # panels in a line: two demos, or a test input, its attempts and its true output
FONT, DPI = 7.0, 150

FOUND = {True: "found", False: "not found"}

Panel = tuple[str, np.ndarray | None]  # title and grid


class PictureError(UserError):
    """Pictures need matplotlib, which a machine that only trains and evaluates may lack."""


def draw(solution: Solution) -> Figure:
    """Return a figure of demos, test inputs, attempts and their votes."""
    try:
        from matplotlib.figure import Figure

        from etrm.report.style import draw_grid
    except ModuleNotFoundError as error:
        raise PictureError(
            f"found no {error.name}, expected it for pictures: install etrm[pipeline]"
        ) from None
    lines = _lines(solution)
    shapes = [grid.shape for line in lines for _, grid in line if grid is not None]
    frame = max(h for h, _ in shapes), max(w for _, w in shapes)  # cells: one size in all panels
    high = PANEL * frame[0] / max(frame)
    wide = PANEL * frame[1] / max(frame)
    wide = max(wide, 0.9 * PANEL)  # room for a title
    width = 2 * MARGIN + COLUMNS * (wide + GAP) - GAP
    height = 2 * MARGIN + len(lines) * (TITLE + high)
    figure = Figure(figsize=(width, height), facecolor="white")
    for i, line in enumerate(lines):
        bottom = 1 - (MARGIN + (i + 1) * (TITLE + high)) / height
        for j, (title, grid) in enumerate(line):
            left = (MARGIN + j * (wide + GAP)) / width
            axes = figure.add_axes((left, bottom, wide / width, high / height))
            axes.set_title(title, fontsize=FONT, pad=3)
            draw_grid(axes, grid, frame, "no grid", FONT)
    return figure


def _lines(solution: Solution) -> list[list[Panel]]:
    demos: list[Panel] = []
    for number, pair in enumerate(solution.task.demos, 1):
        demos += [(f"demo {number}", pair.input), ("→", pair.output)]
    lines = [demos[i : i + COLUMNS] for i in range(0, len(demos), COLUMNS)]
    for number, query in enumerate(solution.task.queries):
        line: list[Panel] = list(attempts(solution, number))
        if query.output is not None:
            line.append((f"true output, {FOUND[bool(solution.correct[number])]}", query.output))
        lines.append(line)
    return lines


def png(figure: Figure) -> bytes:
    """Return the bytes of a PNG; the same figure gives the same."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
