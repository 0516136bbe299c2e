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
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from etrm.arc.augment import COLORS, DIHEDRALS, apply_dihedral
from etrm.arc.task import Pair, Task

KEY_BYTES = 8
BLOCK_CELLS = 2**15  # of all readings at once: in a block, some 20 bytes for each of them
# Pairs that two tasks share are no chance where they have this many cells together (input and
# output; two 4×4 grids have). Of 1,307 public tasks, two pairs of tasks share less: one pair of 10
# and one of 27 cells, by chance both.
TELLING_CELLS = 32


def pair_keys(pairs: Iterable[Pair], exact: bool = False) -> list[str]:
    """Return a key [16 hex digits] of each pair, the same for all its dihedral and colour variants.

    A pair is turned in the eight ways, its colours (0 as well) are numbered in the order in which
    they appear in input, then output, and the smallest result is hashed. A pair without an output
    has none to share: its key differs from that of any labelled pair. A pair keeps its key, and
    pairs of equal shapes are computed together: ask for many at once. Pairs of exact tasks have
    keys of their grids as they are, which differ from those of other tasks.
    """
    pairs = list(pairs)
    if exact:
        for pair in (each for each in pairs if each.content_key is None):
            cells = [(grid.shape, grid.tobytes()) for grid in _grids(pair)]
            _keep_key(pair, repr(cells).encode())
    alike: dict[tuple[tuple[int, ...], ...], list[Pair]] = defaultdict(list)  # by their shapes
    for pair in pairs:
        if pair.content_key is None:
            alike[tuple(grid.shape for grid in _grids(pair))].append(pair)
    for shapes, own in alike.items():
        header, places = _turned_places(shapes)
        most = max(1, BLOCK_CELLS // places.size)
        for block in (own[start : start + most] for start in range(0, len(own), most)):
            for pair, form in zip(block, _smallest_forms(block, places), strict=True):
                _keep_key(pair, header + form.tobytes())
    return [str(pair.content_key) for pair in pairs]


def _keep_key(pair: Pair, content: bytes) -> None:
    key = hashlib.blake2b(content, digest_size=KEY_BYTES).hexdigest()
    object.__setattr__(pair, "content_key", key)


def fill_keys(tasks: Iterable[Task]) -> None:
    """Compute the keys of all pairs of `tasks` at once, which takes less time than one by one."""
    tasks = list(tasks)
    for exact in (False, True):
        own = (task for task in tasks if task.exact == exact)
        pair_keys((pair for task in own for pair in (*task.demos, *task.queries)), exact)


def _grids(pair: Pair) -> list[np.ndarray]:
    return [grid for grid in (pair.input, pair.output) if grid is not None]


def _turned_places(shapes: Sequence[tuple[int, ...]]) -> tuple[bytes, np.ndarray]:
    """Return how the cells of a pair are read, of the eight ways those that can be the smallest.

    Number and shapes of the turned grids are compared first: they are the header, a byte each. The
    places [T, C] of C cells are numbered over both grids, in reading order.
    """
    ends = np.cumsum([h * w for h, w in shapes])
    grids = [np.arange(e - h * w, e).reshape(h, w) for e, (h, w) in zip(ends, shapes, strict=True)]
    ways: dict[bytes, list[np.ndarray]] = defaultdict(list)
    for dihedral in range(len(DIHEDRALS)):
        turned = [apply_dihedral(grid, dihedral) for grid in grids]
        header = bytes([len(grids), *(side for grid in turned for side in grid.shape)])
        ways[header].append(np.concatenate([grid.ravel() for grid in turned]))
    header = min(ways)
    return header, np.stack(ways[header])


def _smallest_forms(pairs: Sequence[Pair], places: np.ndarray) -> np.ndarray:
    """Return uint8 [N, C]: of each pair, the smallest of its T readings with colours numbered."""
    grids = zip(*map(_grids, pairs), strict=True)  # all inputs, all outputs
    cells = np.concatenate([np.stack(each).reshape(len(pairs), -1) for each in grids], axis=1)
    read = cells.take(places, axis=1)  # [N, T, C]
    is_color = read[:, :, None] == np.arange(COLORS, dtype=np.uint8)[:, None]  # [N, T, 10, C]
    present = is_color[:, :1].any(axis=-1)  # [N, 1, 10]: in one reading as in all
    first = np.where(present, is_color.argmax(axis=-1), cells.shape[1])  # [N, T, 10]
    number = first.argsort(axis=-1).argsort(axis=-1).astype(np.uint8)  # as colours appear
    row = np.arange(0, number.size, COLORS).reshape(*read.shape[:2], 1)
    forms = number.ravel().take(read + row)
    smallest = forms.view(f"S{forms.shape[-1]}")[..., 0].argmin(axis=1)
    return forms[np.arange(len(pairs)), smallest]


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
            {
                key: sum(grid.size for grid in _grids(pair))
                for key, pair in zip(pair_keys(pairs, task.exact), pairs, strict=True)
            }
            for pairs in (task.demos, labelled)
        )
        return cls(frozenset(demos), frozenset(answers.keys() - demos), answers | demos)

    @classmethod
    def of_all(cls, tasks: Iterable[Task]) -> dict[str, TaskContent]:
        """Return task id → its content, of all `tasks` in the time that their shapes take."""
        tasks = list(tasks)
        fill_keys(tasks)
        return {task.id: cls.of(task) for task in tasks}


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
    contents = TaskContent.of_all(tasks)
    times = Counter(key for own in contents.values() for key in own.cells)
    return {name for name, own in contents.items() if all(times[key] == 1 for key in own.cells)}


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
        contents = TaskContent.of_all(tasks)
        pairs = {name: frozenset(content.cells) for name, content in contents.items()}
        return cls(pairs, {name: content.demos for name, content in contents.items()})

    def find_touched(self, held_out: Iterable[Task]) -> dict[str, Overlap]:
        """Return id → overlap of those tasks of `held_out` that have been touched."""
        contents = TaskContent.of_all(held_out)
        overlaps = {name: self._overlap(name, own) for name, own in contents.items()}
        return {name: overlap for name, overlap in overlaps.items() if overlap.tasks}

    def _overlap(self, task_id: str, content: TaskContent) -> Overlap:
        shared: dict[str, set[str]] = defaultdict(set)  # id of a seen task → common keys
        for key in content.cells:
            for name in self._holders.get(key, ()):
                shared[name].add(key)
        alone = {task_id} & self._pairs.keys()
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
