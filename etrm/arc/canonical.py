"""The content of tasks, whatever their ids: pairs up to rotation, reflection and colours.

`Seen` is the one definition of a held-out task that training has touched. The stage `tasks`, which
leaves tasks out, the refusal of first weights and the status of a score all ask it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import numpy as np

from etrm.arc.augment import apply_dihedral
from etrm.arc.task import Pair, Task

KEY_BYTES = 8
# Pairs that two tasks share are no chance where they have this many cells together (input and
# output; two 4×4 grids have). Of 1,307 public tasks, two pairs of tasks share less: one pair of 10
# and one of 27 cells, by chance both.
TELLING_CELLS = 32


def pair_key(pair: Pair) -> str:
    """A key [16 hex digits] that is the same for all dihedral and colour variants of a pair.

    The pair is turned in the eight ways, its colours (0 as well) are numbered in the order in
    which they appear in input, then output, and the smallest result is hashed. A pair without an
    output has none to share: its key differs from that of any labelled pair.
    """
    forms = (_form(pair, dihedral) for dihedral in range(8))
    return hashlib.blake2b(min(forms), digest_size=KEY_BYTES).hexdigest()


def _form(pair: Pair, dihedral: int) -> bytes:
    grids = [apply_dihedral(pair.input, dihedral)]
    if pair.output is not None:
        grids.append(apply_dihedral(pair.output, dihedral))
    cells = np.concatenate([grid.ravel() for grid in grids])
    _, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.uint8)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.uint8)
    shape = bytes(side for grid in grids for side in grid.shape)
    return bytes([len(grids)]) + shape + number[inverse].tobytes()


@dataclass(frozen=True)
class TaskContent:
    """The pairs of a task, as keys."""

    demos: frozenset[str]
    answers: frozenset[str]  # labelled queries, without those that equal a demo of the task
    cells: Mapping[str, int]  # of every such pair, input and output together


def task_content(task: Task) -> TaskContent:
    """The keys of a task's pairs; a query whose output is not known counts for nothing."""
    labelled = [pair for pair in task.queries if pair.output is not None]
    demos, answers = (
        {pair_key(pair): _cells(pair) for pair in pairs} for pairs in (task.demos, labelled)
    )
    return TaskContent(frozenset(demos), frozenset(answers.keys() - demos), answers | demos)


def _cells(pair: Pair) -> int:
    return pair.input.size + (0 if pair.output is None else pair.output.size)


@dataclass(frozen=True)
class Overlap:
    """The seen tasks that touch a held-out one: their ids, sorted."""

    alone: tuple[str, ...]  # each of them overlaps with it
    together: tuple[str, ...]  # they hold all of its demos between them
    answers: tuple[str, ...]  # those of `alone` that hold a labelled test pair of it

    @property
    def tasks(self) -> tuple[str, ...]:
        """All of them: without these the held-out task is not touched."""
        return tuple(sorted({*self.alone, *self.together}))


class SeenContent:
    """What training has seen: for each task the keys of its pairs.

    `pairs`: id → all keys; `demos`: id → those of its demos, where that is known (a `run.json`
    holds only which keys a task had: all count as demos then, which finds less). Keys of content
    find a held-out task under another id, turned, recoloured, in another order, or in part.
    """

    def __init__(
        self, pairs: Mapping[str, Set[str]], demos: Mapping[str, Set[str]] | None = None
    ) -> None:
        self._pairs, self._demos = pairs, pairs if demos is None else demos
        self._holders: dict[str, list[str]] = defaultdict(list)
        for name, keys in pairs.items():
            for key in keys:
                self._holders[key].append(name)

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> SeenContent:
        """All pairs of `tasks`; queries only where their output is known."""
        contents = {task.id: task_content(task) for task in tasks}
        pairs = {name: frozenset(one.cells) for name, one in contents.items()}
        return cls(pairs, {name: one.demos for name, one in contents.items()})

    def find_touched(self, held_out: Iterable[Task]) -> dict[str, Overlap]:
        """Those of the tasks `held_out` that have been touched: id → by which seen tasks.

        Touched is a task whose id was seen, that overlaps with one seen task (`_overlap`), or all
        demos of which were seen, in whatever tasks.
        """
        touches = ((task.id, self._touch(task)) for task in held_out)
        return {name: touch for name, touch in touches if touch.tasks}

    def _touch(self, task: Task) -> Overlap:
        theirs = task_content(task)
        shared: dict[str, set[str]] = defaultdict(set)
        for key in theirs.cells:
            for name in self._holders.get(key, ()):
                shared[name].add(key)
        alone = {name for name, keys in shared.items() if self._overlap(name, keys, theirs)}
        alone |= {task.id} & self._pairs.keys()
        whole = theirs.demos <= self._holders.keys()
        together = {name for name, keys in shared.items() if whole and keys & theirs.demos}
        answers = {name for name in alone if shared[name] & theirs.answers}
        return Overlap(*(tuple(sorted(names)) for names in (alone, together, answers)))

    def _overlap(self, name: str, shared: Set[str], theirs: TaskContent) -> bool:
        """Does a seen task overlap with a held-out one, beyond what chance may do?

        `shared` are their common keys. They overlap where these have `TELLING_CELLS` together, or
        are two or more and all but one of the smaller task's, or hold all demos of the seen task.
        """
        smaller = min(len(self._pairs[name]), len(theirs.cells))
        return (
            sum(theirs.cells[key] for key in shared) >= TELLING_CELLS
            or len(shared) >= max(2, smaller - 1)
            or self._demos[name] <= shared
        )
