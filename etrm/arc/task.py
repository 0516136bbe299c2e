"""An ARC task: demonstration pairs that show a rule, and queries to apply it to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    # may be all that its demos show: it has no variants, and its content is its grids as they are.
    exact: bool = False
    # The public task whose rule all pairs follow, where they were generated for one. It is shown to
    # nobody, but this task counts as that one, by id and content: whoever sees it knows the rule.
    original: Task | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the ids under which the task is known: its own, and that of its original."""
        return (self.id,) if self.original is None else (self.id, self.original.id)


def task_to_json(task: Task) -> dict[str, Any]:
    """Return a task, with its id, as official files have it; unknown outputs are left out."""

    def pairs(of: tuple[Pair, ...]) -> list[dict[str, Any]]:
        grids = ({"input": pair.input, "output": pair.output} for pair in of)
        return [{k: g.tolist() for k, g in pair.items() if g is not None} for pair in grids]

    return {"id": task.id, "train": pairs(task.demos), "test": pairs(task.queries)}


def task_from_json(entry: Mapping[str, Any]) -> Task:
    """Return the task of `task_to_json`."""

    def pairs(of: list[dict[str, Any]]) -> tuple[Pair, ...]:
        grids = ((np.array(p["input"], np.uint8), p.get("output")) for p in of)
        return tuple(Pair(i, None if o is None else np.array(o, np.uint8)) for i, o in grids)

    return Task(entry["id"], pairs(entry["train"]), pairs(entry["test"]))
