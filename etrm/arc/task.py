"""An ARC task: demonstration pairs that show a rule, and queries to apply it to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Pair:
    """One input grid and what the task's rule makes of it.

    `input` is uint8 `[height, width]`, colours 0-9, 1-30 on each side. `output` is the same kind
    of grid; it is None only for a query whose answer is not known.
    """

    input: np.ndarray
    output: np.ndarray | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pair):
            return NotImplemented
        if self.output is None or other.output is None:
            same_output = self.output is other.output
        else:
            same_output = np.array_equal(self.output, other.output)
        return same_output and np.array_equal(self.input, other.input)

    __hash__ = None  # type: ignore[assignment]  # it holds arrays


@dataclass(frozen=True)
class Task:
    """One ARC item: `id` is unique in a study, `demos` and `queries` hold at least one pair."""

    id: str
    demos: tuple[Pair, ...]
    queries: tuple[Pair, ...]
