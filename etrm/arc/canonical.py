"""The content of tasks, whatever their ids: pairs up to rotation, reflection and colours."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from etrm.arc.augment import apply_dihedral
from etrm.arc.task import Pair, Task

KEY_BYTES = 8
# A pair with fewer cells (input and output) may be equal to another by chance: two 4×4 grids may
# not. It counts only together with all demos of its task.
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
class Content:
    """What a task holds that training can touch, as keys."""

    demos: frozenset[str]
    pairs: frozenset[str]  # demos and labelled queries
    telling: frozenset[str]  # those of `pairs` that are too large to be equal by chance

    def touched_by(self, seen: Set[str]) -> bool:
        """Has a task with this content been seen, in whole (all demos) or in a telling pair?"""
        return self.demos <= seen or bool(self.telling & seen)


def content(task: Task) -> Content:
    """The keys of a task's pairs; a query whose output is not known counts for nothing."""
    labelled = [pair for pair in task.queries if pair.output is not None]
    keys = {id(pair): pair_key(pair) for pair in [*task.demos, *labelled]}
    telling = [p for p in [*task.demos, *labelled] if _cells(p) >= TELLING_CELLS]
    return Content(
        demos=frozenset(keys[id(pair)] for pair in task.demos),
        pairs=frozenset(keys.values()),
        telling=frozenset(keys[id(pair)] for pair in telling),
    )


def _cells(pair: Pair) -> int:
    return pair.input.size + (0 if pair.output is None else pair.output.size)


def shared(tasks: Sequence[Task], held_out: Sequence[Task]) -> dict[str, str]:
    """Which of `tasks` are, or share a pair with, a held-out task: id → the held-out task's id.

    Content is compared up to dihedral and colours, so that a held-out task is found under another
    id, turned, recoloured, with its pairs in another order, or in part.
    """
    theirs = [(task.id, content(task)) for task in held_out]
    where: dict[str, list[int]] = defaultdict(list)
    for number, (_, hidden) in enumerate(theirs):
        for key in hidden.pairs:
            where[key].append(number)
    found = {}
    for task in tasks:
        ours = content(task)
        for number in sorted({n for key in ours.pairs for n in where.get(key, ())}):
            name, hidden = theirs[number]
            if hidden.touched_by(ours.pairs) or ours.touched_by(hidden.pairs):
                found[task.id] = name
                break
    return found
