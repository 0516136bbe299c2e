"""A task and its answers as text: grids side by side, in ARC's colours or as digits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from etrm.evaluation.pass_at_k import ATTEMPTS

if TYPE_CHECKING:
    from etrm.solve.solution import Solution

# Of the 256 colours that all terminals have, those nearest to ARC's; black is a dark grey, which
# can be told from the terminal's own background.
CODES = (236, 32, 203, 41, 220, 248, 199, 208, 117, 88)
GAP = "   "  # between grids
ARROW = " → "
MARKS = {True: ", right", False: ", wrong", None: ""}


@dataclass(frozen=True)
class Block:
    """Lines of one width in letters, which colours do not count to."""

    width: int
    lines: list[str]

    @staticmethod
    def of_grid(title: str, grid: np.ndarray, colour: bool) -> Block:
        """Return a grid under its title."""
        rows = [_row(row, colour) for row in grid.tolist()] or ["(no grid)"]
        cells = grid.shape[1] * (2 if colour else 1) if grid.size else len(rows[0])
        width = max(len(title), cells)
        fill = " " * (width - cells)
        return Block(width, [title.ljust(width), *(row + fill for row in rows)])

    def beside(self, other: Block, gap: str) -> Block:
        """Return both side by side; `gap` is between their first rows of cells, else spaces."""
        height, lines = max(len(self.lines), len(other.lines)), []
        for i in range(height):
            left, right = (
                each.lines[i] if i < len(each.lines) else " " * each.width for each in (self, other)
            )
            lines.append(left + (gap if i == 1 else " " * len(gap)) + right)
        return Block(self.width + len(gap) + other.width, lines)


def render(solution: Solution, width: int, colour: bool) -> str:
    """Return demos, test inputs and attempts with their votes, at most `width` letters wide.

    A grid that is wider is not cut.
    """
    lines = [f"task {solution.task.id}", ""]
    demos = []
    for number, pair in enumerate(solution.task.demos, 1):
        assert pair.output is not None
        left = Block.of_grid(f"demo {number}", pair.input, colour)
        demos.append(left.beside(Block.of_grid("", pair.output, colour), ARROW))
    lines += _flow(demos, width)
    for number, right in enumerate(solution.correct):
        blocks = [Block.of_grid(*each, colour) for each in attempts(solution, number)]
        lines += _flow(blocks, width)
        counts = solution.votes.loc[solution.votes["query"] == number, "votes"].tolist()
        lines += [f"test {number + 1}: {summary(counts, solution.variants, right)}", ""]
    return "\n".join(line.rstrip() for line in lines)


def attempts(solution: Solution, number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a test input and the attempts at it, each grid under its title: "3 of 8 votes"."""
    yield f"test {number + 1}", solution.task.queries[number].input
    best = solution.votes[solution.votes["query"] == number].head(ATTEMPTS)
    total = f"{solution.variants} vote{'s' if solution.variants != 1 else ''}"
    for rank, (of, grid) in enumerate(zip(best["votes"], best["grid"], strict=True), 1):
        yield f"attempt {rank}: {of} of {total}", grid


def summary(votes: Sequence[int], variants: int, right: bool | None) -> str:
    """Return the votes on one test input in words, and whether an attempt is right."""
    if not votes:
        return "no answer"
    listed = " + ".join(map(str, votes[:5])) + (" + …" if len(votes) > 5 else "")
    answers = f"{len(votes)} answer{'s' if len(votes) > 1 else ''}"
    return f"{answers} of {variants} variant{'s' if variants > 1 else ''} ({listed}){MARKS[right]}"


def _row(colours: Iterable[int], colour: bool) -> str:
    if not colour:
        return "".join(map(str, colours))
    return "".join(f"\x1b[48;5;{CODES[c]}m  " for c in colours) + "\x1b[0m"


def _flow(blocks: Sequence[Block], width: int) -> list[str]:
    """Return blocks side by side, as many as fit, then the next ones under them."""
    lines: list[str] = []
    line = blocks[0]
    for block in blocks[1:]:
        if line.width + len(GAP) + block.width > width:
            lines += [*line.lines, ""]
            line = block
        else:
            line = line.beside(block, GAP)
    return [*lines, *line.lines, ""]
