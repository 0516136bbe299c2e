"""Variants of a task: a dihedral transform and a permutation of colours 1-9, applied to all pairs.

They follow TRM's `build_arc_dataset.py`, with two differences. A variant is a recipe: no grid is
transformed to draw it. And what counts as a duplicate is decided by demos and query inputs alone,
so that a task's variants do not depend on its answers.

Shapes: N variants, G grids, H and W sides of a grid, L = 2 lanes (64 bits each) of a digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from etrm.arc.grid import MAX_SIDE
from etrm.arc.task import Pair, Task

DIHEDRAL_COUNT = 8
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
COLORS = 10
DRAWS_PER_VARIANT = 5
DIGEST_WORDS = 2
WORDS_PER_DRAW = COLORS  # one for the dihedral transform, nine to order the colours by

HASH_KEY = 0x7A5D_19C3_E84B_02F6  # of the random tables below; another key gives other digests
QUERY = np.uint64(0x9E37_79B9_7F4A_7C15)  # tells a query from a demo


def apply_dihedral(grid: np.ndarray, dihedral: int) -> np.ndarray:
    """A view of `grid` (`[h, w, ...]`), transformed in its first two axes.

    0 identity, 1-3 `np.rot90` by that many quarter turns, 4 left-right flip, 5 up-down flip,
    6 transpose, 7 left-right flip of a quarter turn. Raises ValueError for other ids.
    """
    if dihedral == 0:
        return grid
    if dihedral in (1, 2, 3):
        return np.rot90(grid, k=dihedral)
    if dihedral == 4:
        return np.fliplr(grid)
    if dihedral == 5:
        return np.flipud(grid)
    if dihedral == 6:
        return np.swapaxes(grid, 0, 1)
    if dihedral == 7:
        return np.fliplr(np.rot90(grid, k=1))
    raise ValueError(f"dihedral id {dihedral!r} is not in 0..{DIHEDRAL_COUNT - 1}")


@dataclass(frozen=True)
class Augmentation:
    """Recipe of one variant: `dihedral` as in `apply_dihedral`, colour c becomes `permutation[c]`.

    Raises ValueError unless `permutation` orders 0..9 with 0 in its place.
    """

    dihedral: int
    permutation: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dihedral", int(self.dihedral))
        object.__setattr__(self, "permutation", tuple(int(c) for c in self.permutation))
        if self.dihedral not in range(DIHEDRAL_COUNT):
            raise ValueError(f"dihedral id {self.dihedral} is not in 0..{DIHEDRAL_COUNT - 1}")
        if sorted(self.permutation) != list(range(COLORS)) or self.permutation[0] != 0:
            raise ValueError(f"{self.permutation} is not a permutation of 0..9 that keeps 0")

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """The variant of `grid` (`[h, w]`, colours 0-9), as a new uint8 array."""
        colors = np.array(self.permutation, dtype=np.uint8)
        return np.ascontiguousarray(apply_dihedral(colors[grid], self.dihedral))

    def inverse(self, grid: np.ndarray) -> np.ndarray:
        """The grid of which `grid` (`[h, w]`, colours 0-9) is the variant."""
        colors = np.argsort(self.permutation).astype(np.uint8)
        return np.ascontiguousarray(apply_dihedral(colors[grid], DIHEDRAL_INVERSE[self.dihedral]))

    def apply_to_task(self, task: Task) -> Task:
        """The variant of every pair of `task`, under the same id."""
        return Task(
            task.id,
            tuple(self._apply_to_pair(pair) for pair in task.demos),
            tuple(self._apply_to_pair(pair) for pair in task.queries),
        )

    def _apply_to_pair(self, pair: Pair) -> Pair:
        output = None if pair.output is None else self.apply(pair.output)
        return Pair(self.apply(pair.input), output)


@dataclass(frozen=True, eq=False)
class Variants:
    """Recipes of a task's variants, the identity first.

    `dihedral` is uint8 `[N]`, `permutation` uint8 `[N, 10]`, `digest` uint64 `[N, L]`: two
    variants of a task have the same digest exactly when they look the same (see `digests`).
    """

    dihedral: np.ndarray
    permutation: np.ndarray
    digest: np.ndarray

    def __len__(self) -> int:
        return len(self.dihedral)

    def __getitem__(self, variant: int) -> Augmentation:
        return Augmentation(int(self.dihedral[variant]), tuple(self.permutation[variant].tolist()))


def draw_variants(task: Task, count: int, seed: int) -> Variants:
    """Draw up to `count` variants of `task` that all look different; the first is the identity.

    At most five draws are made for each variant asked for besides the identity, so a task with
    few colours has fewer variants. The draws depend on `seed` and the task's id alone, and a
    smaller `count` gives a prefix. Raises ValueError for a `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; the identity alone makes 1")
    sums = _ColorSums(task)
    bits = _bit_generator(task.id, seed)
    dihedral = np.zeros(1, dtype=np.uint8)
    permutation = np.arange(COLORS, dtype=np.uint8)[None]
    digest = sums.digests(dihedral, permutation)
    draws_left = DRAWS_PER_VARIANT * (count - 1)
    while len(dihedral) < count and draws_left > 0:
        new_dihedral, new_permutation = _draw(bits, min(draws_left, count))
        draws_left -= len(new_dihedral)
        dihedral = np.concatenate([dihedral, new_dihedral])
        permutation = np.concatenate([permutation, new_permutation])
        digest = np.concatenate([digest, sums.digests(new_dihedral, new_permutation)])
        kept = _first_occurrences(digest)[:count]
        dihedral, permutation, digest = dihedral[kept], permutation[kept], digest[kept]
    return Variants(dihedral, permutation, digest)


def digests(task: Task, dihedral: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """What each variant of `task` looks like, in 128 bits: uint64 `[N, L]`.

    `dihedral` is `[N]`, `permutation` `[N, 10]`. Two variants, of one task or of two, have the
    same digest if, in any order, their demos are the same and their query inputs are the same
    (and, but for a chance of about 2^-128, only if). Query outputs play no part.
    """
    return _ColorSums(task).digests(dihedral, permutation)


class _ColorSums:
    """What it takes to hash any variant of one task without transforming a grid.

    The hash of a grid is the sum, modulo 2^64, of one random word for each (cell, colour). So
    the words of all cells of colour c, had they colour c', can be summed beforehand for each of
    the eight transforms; a variant then adds up one such sum for each of its colours. Pairs are
    told apart by mixing the bits of their sums before they are added to each other.
    """

    def __init__(self, task: Task) -> None:
        cells, shapes = _random_words()
        grids = [(pair.input, 0, i) for i, pair in enumerate(task.demos + task.queries)]
        grids += [
            (pair.output, 1, i) for i, pair in enumerate(task.demos) if pair.output is not None
        ]
        pairs = len(task.demos) + len(task.queries)
        # [pair, transform, colour, new colour, word] and [pair, transform, word]
        self.by_color = np.zeros(
            (pairs, DIHEDRAL_COUNT, COLORS, COLORS, DIGEST_WORDS), dtype=np.uint64
        )
        self.by_shape = np.zeros((pairs, DIHEDRAL_COUNT, DIGEST_WORDS), dtype=np.uint64)
        self.by_shape[len(task.demos) :] += QUERY
        colors: set[int] = set()
        for grid, role, pair in grids:
            present, sums = _sums_of_grid(grid, cells[role])
            colors.update(present.tolist())
            self.by_color[pair][:, present] += sums
            for dihedral in range(DIHEDRAL_COUNT):
                height, width = apply_dihedral(grid, dihedral).shape
                self.by_shape[pair, dihedral] += shapes[role, height - 1, width - 1]
        self.colors = np.array(sorted(colors))

    def digests(self, dihedral: np.ndarray, permutation: np.ndarray) -> np.ndarray:
        """See `digests`; colours that the task does not have are left out."""
        new_colors = permutation[:, self.colors]
        total = np.zeros((len(dihedral), DIGEST_WORDS), dtype=np.uint64)
        for by_color, by_shape in zip(self.by_color, self.by_shape, strict=True):
            words = by_color[dihedral[:, None], self.colors, new_colors]  # [N, colours, L]
            total += _mix(words.sum(axis=1) + by_shape[dihedral])
        return total


def _sums_of_grid(grid: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours present in `grid`, `[C]`, and the sums of their words, `[8, C, 10, L]`.

    `cells` holds the random words, `[30, 30, 10 * L]`: those at a transformed cell are found by
    transforming the table back on to the grid.
    """
    height, width = grid.shape
    words = np.empty((DIHEDRAL_COUNT, height * width, cells.shape[-1]), dtype=np.uint64)
    by_color = np.argsort(grid, axis=None, kind="stable")
    for dihedral in range(DIHEDRAL_COUNT):
        new_height, new_width = apply_dihedral(grid, dihedral).shape
        window = apply_dihedral(cells[:new_height, :new_width], DIHEDRAL_INVERSE[dihedral])
        words[dihedral] = window.reshape(height * width, -1)[by_color]
    present, starts = np.unique(grid.reshape(-1)[by_color], return_index=True)
    sums = np.add.reduceat(words, starts, axis=1)
    return present, sums.reshape(DIHEDRAL_COUNT, len(present), COLORS, DIGEST_WORDS)


@cache
def _random_words() -> tuple[np.ndarray, np.ndarray]:
    """Random words of cells, `[2, 30, 30, 10 * L]`, and shapes, `[2, 30, 30, L]`.

    The first axis is 0 for an input grid, 1 for an output grid.
    """
    bits = np.random.Philox(key=HASH_KEY)
    square = (2, MAX_SIDE, MAX_SIDE)
    cells = bits.random_raw(2 * MAX_SIDE**2 * COLORS * DIGEST_WORDS).reshape(
        *square, COLORS * DIGEST_WORDS
    )
    shapes = bits.random_raw(2 * MAX_SIDE**2 * DIGEST_WORDS).reshape(*square, DIGEST_WORDS)
    return cells, shapes


def _mix(words: np.ndarray) -> np.ndarray:
    """Make every bit of each uint64 depend on all of its bits (the last step of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return words ^ (words >> np.uint64(31))


def _bit_generator(task_id: str, seed: int) -> np.random.Philox:
    key = hashlib.sha256(f"variants/{seed}/{task_id}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little"))


def _draw(bits: np.random.Philox, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `count` draws: dihedral `[count]` and permutation `[count, 10]`.

    Made from raw words, ten a draw, because NumPy promises never to change that stream.
    """
    words = bits.random_raw(count * WORDS_PER_DRAW).reshape(count, WORDS_PER_DRAW)
    dihedral = (words[:, 0] >> np.uint64(61)).astype(np.uint8)
    permutation = np.zeros((count, COLORS), dtype=np.uint8)
    permutation[:, 1:] = 1 + np.argsort(words[:, 1:], axis=1, kind="stable")
    return dihedral, permutation


def _first_occurrences(digest: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the rows of `digest` (`[N, L]`) that equal no earlier row."""
    order = np.lexsort(digest.T)  # stable: of equal rows the earliest comes first
    ordered = digest[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[is_new])
