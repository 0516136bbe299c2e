"""Variants of a task: a dihedral transform and a permutation of colours 1-9, applied to all pairs.

They follow `build_arc_dataset.py` of TRM, with two differences. A variant is a recipe: no grid is
transformed to draw it. And demos and query inputs alone decide which variants are duplicates, so
the variants of a task do not depend on its answers.

Shapes: N variants, C colours present in a grid, h and w its sides, W = 2 words of a digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from etrm.arc.task import Pair, Task
from etrm.config.lanes import MAX_SIDE

DIHEDRALS = (  # by id, as TRM numbers them
    lambda grid: grid,
    np.rot90,  # counter-clockwise
    partial(np.rot90, k=2),
    partial(np.rot90, k=3),
    np.fliplr,
    np.flipud,
    lambda grid: np.swapaxes(grid, 0, 1),
    lambda grid: np.fliplr(np.rot90(grid)),  # transpose along the other diagonal
)
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)  # only quarter turns are not their own inverse
COLORS = 10
HASHED_PAIRS = 32  # that tell variants apart, of demos and of queries; a pool has a thousand
DRAWS_PER_VARIANT = 5  # at most: tasks with few colours run out of variants
DIGEST_WORDS = 2  # of 64 bits: no two variants of any data set collide by chance
BLOCK_WORDS = 2**16  # of pairs, variants and colours that are added up at once
WORDS_PER_DRAW = COLORS  # one for the dihedral transform, nine to order the colours by

HASH_KEY = 0x7A5D_19C3_E84B_02F6  # of the random tables below; another key gives other digests
QUERY = np.uint64(0x9E37_79B9_7F4A_7C15)  # tells a query from a demo


def apply_dihedral(grid: np.ndarray, dihedral: int) -> np.ndarray:
    """Return a view of `grid` (`[h, w, ...]`), transformed in its first two axes.

    0 identity, 1-3 `np.rot90` by that many quarter turns, 4 left-right flip, 5 up-down flip,
    6 transpose, 7 left-right flip of a quarter turn. Raises ValueError for other ids.
    """
    if dihedral not in range(len(DIHEDRALS)):
        raise ValueError(f"dihedral id {dihedral!r} is not in 0..{len(DIHEDRALS) - 1}")
    return DIHEDRALS[dihedral](grid)


@dataclass(frozen=True)
class Augmentation:
    """Recipe of one variant: `dihedral` as in `apply_dihedral`, colour c becomes `permutation[c]`.

    Raises ValueError unless `permutation` orders 0..9 with 0 in its place.
    """

    dihedral: int
    permutation: tuple[int, ...]

    def __post_init__(self) -> None:
        # Rows of tables come as NumPy numbers; equality and hashes want plain ones.
        object.__setattr__(self, "dihedral", int(self.dihedral))
        object.__setattr__(self, "permutation", tuple(int(c) for c in self.permutation))
        if self.dihedral not in range(len(DIHEDRALS)):
            raise ValueError(f"dihedral id {self.dihedral} is not in 0..{len(DIHEDRALS) - 1}")
        if sorted(self.permutation) != list(range(COLORS)) or self.permutation[0] != 0:
            raise ValueError(f"{self.permutation} is not a permutation of 0..9 that keeps 0")

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """Return the variant of `grid` (`[h, w]`, colours 0-9), as a new uint8 array."""
        colors = np.array(self.permutation, dtype=np.uint8)
        return np.ascontiguousarray(apply_dihedral(colors[grid], self.dihedral))

    def inverse(self, grid: np.ndarray) -> np.ndarray:
        """Return the grid of which `grid` (`[h, w]`, colours 0-9) is the variant."""
        colors = np.argsort(self.permutation).astype(np.uint8)
        return np.ascontiguousarray(apply_dihedral(colors[grid], DIHEDRAL_INVERSE[self.dihedral]))

    def apply_to_task(self, task: Task) -> Task:
        """Return the variant of every pair of `task`, under the same id."""

        def variants(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
            outputs = [None if pair.output is None else self.apply(pair.output) for pair in pairs]
            return tuple(Pair(self.apply(p.input), o) for p, o in zip(pairs, outputs, strict=True))

        return replace(task, demos=variants(task.demos), queries=variants(task.queries))


@dataclass(frozen=True, eq=False)
class Variants:
    """Recipes of a task's variants, the identity first.

    Two variants of a task have the same digest exactly when they look the same (`VariantHasher`).
    """

    dihedral: np.ndarray  # [N] uint8
    permutation: np.ndarray  # [N, 10] uint8
    digest: np.ndarray  # [N, W] uint64

    def __len__(self) -> int:
        return len(self.dihedral)

    def __getitem__(self, variant: int) -> Augmentation:
        return Augmentation(self.dihedral[variant], self.permutation[variant])


def draw_variants(task: Task, count: int, seed: int) -> Variants:
    """Draw up to `count` variants of `task` that all look different; the first is the identity.

    An exact task has no others. At most five draws are made for each variant asked for besides the
    identity, so a task with few colours has fewer variants. The draws depend on `seed` and the
    task's id alone, and a smaller `count` gives a prefix. Raises ValueError for a `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; the identity alone makes 1")
    dihedral = np.zeros(1, dtype=np.uint8)
    permutation = np.arange(COLORS, dtype=np.uint8)[None]
    if count == 1 or task.exact:
        return Variants(dihedral, permutation, identity_digest(task))
    hasher = VariantHasher(task)
    key = hashlib.sha256(f"variants/{seed}/{task.id}".encode()).digest()[:16]
    bits = np.random.Philox(key=int.from_bytes(key, "little"))
    digest = np.empty((0, DIGEST_WORDS), dtype=np.uint64)
    draws_left = DRAWS_PER_VARIANT * (count - 1)
    while True:
        new_dihedral, new_permutation = _draw(bits, min(draws_left, count))
        draws_left -= len(new_dihedral)
        dihedral = np.concatenate([dihedral, new_dihedral])
        permutation = np.concatenate([permutation, new_permutation])
        new = slice(len(digest), None)
        digest = np.concatenate([digest, hasher.digests(dihedral[new], permutation[new])])
        kept = _first_of_equal(digest)[:count]
        dihedral, permutation, digest = dihedral[kept], permutation[kept], digest[kept]
        if len(dihedral) == count or draws_left == 0:
            return Variants(dihedral, permutation, digest)


def _first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Return the ascending indices of those rows of uint64 `[N, W]` that no earlier row equals."""
    order = np.lexsort(rows.T)  # stable: of equal rows the earliest comes first
    differs = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    return np.sort(order[np.concatenate([[True], differs])])


def _draw(bits: np.random.Philox, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the next `count` recipes: dihedral `[count]` and permutation `[count, 10]`."""
    # From raw words, because NumPy promises never to change that stream.
    words = bits.random_raw(count * WORDS_PER_DRAW).reshape(count, WORDS_PER_DRAW)
    dihedral = (words[:, 0] >> np.uint64(61)).astype(np.uint8)  # its top 3 bits: 0..7
    permutation = np.zeros((count, COLORS), dtype=np.uint8)
    permutation[:, 1:] = 1 + np.argsort(words[:, 1:], axis=1, kind="stable")
    return dihedral, permutation


class VariantHasher:
    """Digests of any variant of one task, without transforming a grid.

    Two variants, of one task or of two, have the same digest if, in any order, their demos are the
    same and their query inputs are the same (and, but for a chance of about 2^-128, only if).
    Query outputs play no part, nor do pairs beyond the first `HASHED_PAIRS` of each kind.

    The hash of a grid is the sum, modulo 2^64, of one random word for each (cell, colour). So
    the words of all cells of colour c, had they colour c', can be summed beforehand for each of
    the eight transforms; a variant then adds up one such sum for each of its colours. Pairs are
    told apart by mixing the bits of their sums before they are added to each other.
    """

    def __init__(self, task: Task) -> None:
        cells, shapes = _random_words()
        demos, queries = task.demos[:HASHED_PAIRS], task.queries[:HASHED_PAIRS]
        pairs = demos + queries
        # [pair, transform, colour, new colour, W] and [pair, transform, W]
        sums = (len(pairs), len(DIHEDRALS), COLORS, COLORS, DIGEST_WORDS)
        self.by_color = np.zeros(sums, dtype=np.uint64)
        self.by_shape = np.zeros((len(pairs), len(DIHEDRALS), DIGEST_WORDS), dtype=np.uint64)
        self.by_shape[len(demos) :] += QUERY
        for i, pair in enumerate(pairs):
            self._add(i, pair.input, cells[0], shapes[0])
            if i < len(demos) and pair.output is not None:
                self._add(i, pair.output, cells[1], shapes[1])
        # Colours that the task does not have are left out: they change nothing.
        self.colors = np.flatnonzero(self.by_color.any(axis=(0, 1, 3, 4)))

    def _add(self, pair: int, grid: np.ndarray, cells: np.ndarray, shapes: np.ndarray) -> None:
        """Add the words of a grid: of `cells` `[30, 30, 10 * W]` and `shapes` `[30, 30, W]`."""
        by_color = np.argsort(grid, axis=None, kind="stable")
        number = np.bincount(grid.reshape(-1), minlength=COLORS)  # of cells of each colour
        present = np.flatnonzero(number)
        starts = (number.cumsum() - number)[present]
        places, corners = _turned_places(*grid.shape)
        words = cells.reshape(MAX_SIDE**2, -1)[places[:, by_color]]  # [8, cells, 10 * W]
        sums = np.add.reduceat(words, starts, axis=1).reshape(
            len(DIHEDRALS), len(present), COLORS, DIGEST_WORDS
        )
        self.by_color[pair][:, present] += sums
        self.by_shape[pair] += shapes.reshape(MAX_SIDE**2, -1)[corners]

    def digests(self, dihedral: np.ndarray, permutation: np.ndarray) -> np.ndarray:
        """Return uint64 `[N, W]` for the recipes `dihedral` `[N]` and `permutation` `[N, 10]`."""
        new_colors = permutation[:, self.colors]
        total = np.zeros((len(dihedral), DIGEST_WORDS), dtype=np.uint64)
        most = max(1, BLOCK_WORDS // (new_colors.size * DIGEST_WORDS))  # pairs at once
        for start in range(0, len(self.by_color), most):
            pairs = slice(start, start + most)
            words = self.by_color[pairs][:, dihedral[:, None], self.colors, new_colors]
            words = words.sum(axis=2) + self.by_shape[pairs][:, dihedral]  # [pairs, N, W]
            total += _mix(words).sum(axis=0)
        return total


def identity_digest(task: Task) -> np.ndarray:
    """Return uint64 `[1, W]`: the digest of a task as it is, in far less time than of variants."""
    cells, shapes = (each.reshape(2, MAX_SIDE**2, -1) for each in _random_words())
    total = np.zeros(DIGEST_WORDS, dtype=np.uint64)
    demos, queries = task.demos[:HASHED_PAIRS], task.queries[:HASHED_PAIRS]
    for i, pair in enumerate(demos + queries):
        is_demo = i < len(demos)
        words = np.full(DIGEST_WORDS, 0 if is_demo else QUERY, dtype=np.uint64)
        for kind, grid in enumerate((pair.input, pair.output)[: 1 + is_demo]):
            if grid is not None:
                places, corners = (each[0] for each in _turned_places(*grid.shape))
                at = cells[kind].reshape(-1, DIGEST_WORDS)[places * COLORS + grid.reshape(-1)]
                words += at.sum(axis=0) + shapes[kind][corners]
        total += _mix(words)
    return total[None]


@cache
def _turned_places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the cells [8, h·w] of a grid are in each of its turns, and the last cell [8].

    Places are numbered along the rows of a square of `MAX_SIDE` cells.
    """
    square = np.arange(MAX_SIDE**2, dtype=np.int16).reshape(MAX_SIDE, MAX_SIDE)
    grid, places, corners = np.empty((height, width), dtype=bool), [], []
    for dihedral, inverse in enumerate(DIHEDRAL_INVERSE):
        h, w = apply_dihedral(grid, dihedral).shape
        # The places of the transformed cells, transformed back on to the grid.
        places.append(apply_dihedral(square[:h, :w], inverse).ravel())
        corners.append(square[h - 1, w - 1])
    return np.stack(places), np.array(corners)


@cache
def _random_words() -> tuple[np.ndarray, np.ndarray]:
    """Return random words of cells, `[2, 30, 30, 10 * W]`, and shapes, `[2, 30, 30, W]`."""
    bits = np.random.Philox(key=HASH_KEY)
    square = (2, MAX_SIDE, MAX_SIDE)  # input or output grid, row, column
    cells = bits.random_raw(2 * MAX_SIDE**2 * COLORS * DIGEST_WORDS)
    shapes = bits.random_raw(2 * MAX_SIDE**2 * DIGEST_WORDS)
    return cells.reshape(*square, -1), shapes.reshape(*square, -1)


def _mix(words: np.ndarray) -> np.ndarray:
    """Make every bit of each uint64 depend on all of its bits (the last step of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return words ^ (words >> np.uint64(31))
