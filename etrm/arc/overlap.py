"""The content of tasks, whatever their ids: pairs up to rotation, reflection and colours.

A held-out task is *touched* by tasks that were seen in training if one of these holds:

1. a seen task has its id;
2. a seen task *overlaps* with it: the pairs that both hold have `TELLING_CELLS` cells together, or
   are two or more and all but one of the smaller task's, or are all demos of the seen task;
3. all of its demos were seen, in whatever tasks.

The stage `tasks`, which leaves training tasks out, the check of initial weights and the held-out
status of a score all ask `SeenContent`, the one place that decides this.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from etrm.arc.augment import DIHEDRALS, apply_dihedral
from etrm.arc.task import Pair, Task

KEY_BYTES = 8
CACHED_PAIRS = 20_000  # of which keys are remembered: the stage `tasks` asks three times
# Pairs that two tasks share are no chance where they have this many cells together (input and
# output; two 4×4 grids have). Of 1,307 public tasks, two pairs of tasks share less: one pair of 10
# and one of 27 cells, by chance both.
TELLING_CELLS = 32


def pair_key(pair: Pair) -> str:
    """Return a key [16 hex digits] that is the same for all dihedral and colour variants of a pair.

    The pair is turned in the eight ways, its colours (0 as well) are numbered in the order in
    which they appear in input, then output, and the smallest result is hashed. A pair without an
    output has none to share: its key differs from that of any labelled pair.
    """
    known = [grid for grid in (pair.input, pair.output) if grid is not None]
    return _key(tuple((*grid.shape, grid.tobytes()) for grid in known))


@lru_cache(CACHED_PAIRS)
def _key(written: tuple[tuple[int, int, bytes], ...]) -> str:
    """Return the key of a pair from height, width and colours (a byte each) of its grids."""
    read = [np.frombuffer(cells, np.uint8).reshape(h, w) for h, w, cells in written]
    forms = []
    for dihedral in range(len(DIHEDRALS)):
        grids = [apply_dihedral(grid, dihedral) for grid in read]
        cells = np.concatenate([grid.ravel() for grid in grids])
        _, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
        number = np.argsort(np.argsort(first)).astype(np.uint8)  # of each colour, as it appears
        shapes = bytes(side for grid in grids for side in grid.shape)
        forms.append(bytes([len(grids)]) + shapes + number[inverse].tobytes())
    return hashlib.blake2b(min(forms), digest_size=KEY_BYTES).hexdigest()


@dataclass(frozen=True)
class TaskContent:
    """The pairs of a task, as keys."""

    demos: frozenset[str]
    answers: frozenset[str]  # labelled queries, without those that equal a demo of the task
    cells: Mapping[str, int]  # of every such pair, input and output together

    @classmethod
    def of(cls, task: Task) -> TaskContent:
        """Return the keys of a task's pairs; a query without a known output counts for nothing."""
        labelled = [pair for pair in task.queries if pair.output is not None]
        demos, answers = (
            {pair_key(p): p.input.size + (0 if p.output is None else p.output.size) for p in pairs}
            for pairs in (task.demos, labelled)
        )
        return cls(frozenset(demos), frozenset(answers.keys() - demos), answers | demos)


@dataclass(frozen=True)
class Overlap:
    """The seen tasks that touch a held-out one: their ids, sorted."""

    alone: tuple[str, ...]  # each by itself (cases 1 and 2 of the module)
    together: tuple[str, ...]  # they hold all of its demos between them (case 3)
    answers: tuple[str, ...]  # those of `alone` that hold a labelled test pair of it

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return all of them: without these the held-out task is not touched."""
        return tuple(sorted({*self.alone, *self.together}))


def find_distinct(tasks: Iterable[Task]) -> set[str]:
    """Return the ids of those `tasks` that share no pair with any other: none touches them."""
    contents = {task.id: TaskContent.of(task).cells for task in tasks}
    times = Counter(key for own in contents.values() for key in own)
    return {name for name, own in contents.items() if all(times[key] == 1 for key in own)}


class SeenContent:
    """The keys of the pairs of all tasks that were seen in training."""

    def __init__(
        self, pairs: Mapping[str, Set[str]], demos: Mapping[str, Set[str]] | None = None
    ) -> None:
        """Take for each task id all keys (`pairs`), and those of its demos, where they are known.

        A `run.json` does not tell demos from answers: all count as demos then, which finds less.
        """
        self._pairs, self._demos = pairs, pairs if demos is None else demos
        self._holders: dict[str, list[str]] = defaultdict(list)  # key → ids of tasks with that pair
        for name, keys in pairs.items():
            for key in keys:
                self._holders[key].append(name)

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> SeenContent:
        """Return the content of `tasks`; queries only where their output is known."""
        contents = {task.id: TaskContent.of(task) for task in tasks}
        pairs = {name: frozenset(content.cells) for name, content in contents.items()}
        return cls(pairs, {name: content.demos for name, content in contents.items()})

    def find_touched(self, held_out: Iterable[Task]) -> dict[str, Overlap]:
        """Return id → overlap of those tasks of `held_out` that have been touched."""
        overlaps = ((task.id, self._overlap(task)) for task in held_out)
        return {name: overlap for name, overlap in overlaps if overlap.tasks}

    def _overlap(self, task: Task) -> Overlap:
        content = TaskContent.of(task)
        shared: dict[str, set[str]] = defaultdict(set)  # id of a seen task → common keys
        for key in content.cells:
            for name in self._holders.get(key, ()):
                shared[name].add(key)
        alone = {task.id} & self._pairs.keys()
        for name, keys in shared.items():
            smaller = min(len(self._pairs[name]), len(content.cells))
            if (
                sum(content.cells[key] for key in keys) >= TELLING_CELLS
                or len(keys) >= max(2, smaller - 1)
                or self._demos[name] <= keys
            ):
                alone.add(name)
        whole = content.demos <= self._holders.keys()
        together = {name for name, keys in shared.items() if whole and keys & content.demos}
        answers = {name for name in alone if shared[name] & content.answers}
        return Overlap(*(tuple(sorted(names)) for names in (alone, together, answers)))
