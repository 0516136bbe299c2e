"""An ARC task: demonstration pairs that show a rule, and queries to apply it to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Pair:
    """One input grid, and the output grid that the task's rule makes of it."""

    input: np.ndarray  # uint8 [height, width], colours 0-9, 1-30 on each side
    output: np.ndarray | None  # of the same kind; None only for a query whose answer is not known
    content_key: str | None = field(default=None, init=False, repr=False)  # `pair_keys` fills it in

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pair):
            return NotImplemented
        # Two outputs of None are equal, None and a grid are not.
        same_output = np.array_equal(self.output, other.output)  # type: ignore[arg-type]
        return same_output and np.array_equal(self.input, other.input)

    __hash__ = None  # type: ignore[assignment]  # it holds arrays


@dataclass(frozen=True)
class Rule:
    """The rule that a generated task was made by: its ground truth, which no model is shown."""

    name: str  # as in "recolour", or "mirror+fill" of a composition
    parameters: str  # canonical JSON
    novelty: str | None = None  # of a held-out task: the part of it that no training task has


@dataclass(frozen=True)
class Task:
    """One ARC item."""

    id: str  # unique in a study
    demos: tuple[Pair, ...]  # at least one
    queries: tuple[Pair, ...]  # at least one
    rule: Rule | None = None  # of a generated task, where it is known
    # Whether it is another task when it is turned or in other colours, as a colour or a direction
    # may be what its demos show: it has no variants, and its content is its grids as they are.
    exact: bool = False
