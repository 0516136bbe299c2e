"""Variants of tasks: recipes, their inverses, and drawing them without duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.arc.augment import (
    DIHEDRAL_INVERSE,
    Augmentation,
    VariantHasher,
    Variants,
    apply_dihedral,
    draw_variants,
)
from etrm.arc.task import Pair, Task

IDENTITY = tuple(range(10))


def random_task(seed: int, colors: int, largest: int = 4) -> Task:
    """A task of few colours and cells, so that many variants look the same."""
    rng = np.random.default_rng(seed)
    palette = rng.permutation(10)[:colors]

    def grid() -> np.ndarray:
        return palette[rng.integers(0, colors, rng.integers(1, largest + 1, 2))].astype(np.uint8)

    demos = tuple(Pair(grid(), grid()) for _ in range(rng.integers(1, 4)))
    queries = tuple(Pair(grid(), grid()) for _ in range(rng.integers(1, 3)))
    return Task("t", demos, queries)


def random_recipes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    permutation = np.zeros((count, 10), dtype=np.uint8)
    permutation[:, 1:] = rng.permuted(np.tile(np.arange(1, 10), (count, 1)), axis=1)
    return rng.integers(0, 8, count).astype(np.uint8), permutation


def digest_of(task: Task) -> bytes:
    """The digest of a task as it is."""
    unchanged = np.zeros(1, np.uint8), np.arange(10, dtype=np.uint8)[None]
    return VariantHasher(task).digests(*unchanged)[0].tobytes()


def look(task: Task) -> tuple:
    """The look of a task, written out: its demos and its query inputs, in any order."""

    def cells(grid: np.ndarray) -> tuple:
        return grid.shape, grid.tobytes()

    demos = sorted((cells(pair.input), cells(pair.output)) for pair in task.demos)
    return tuple(demos), tuple(sorted(cells(pair.input) for pair in task.queries))


@pytest.mark.parametrize(
    ("dihedral", "expected"),
    [
        (0, [[1, 2, 3], [4, 5, 6]]),
        (1, [[3, 6], [2, 5], [1, 4]]),
        (2, [[6, 5, 4], [3, 2, 1]]),
        (3, [[4, 1], [5, 2], [6, 3]]),
        (4, [[3, 2, 1], [6, 5, 4]]),
        (5, [[4, 5, 6], [1, 2, 3]]),
        (6, [[1, 4], [2, 5], [3, 6]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
    ],
)
def test_dihedral_transforms_and_their_inverses(dihedral: int, expected: list) -> None:
    grid = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    transformed = apply_dihedral(grid, dihedral)
    assert transformed.tolist() == expected
    assert np.array_equal(apply_dihedral(transformed, DIHEDRAL_INVERSE[dihedral]), grid)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(0, 7), st.permutations(range(1, 10)), st.integers(0, 2**32 - 1))
def test_inverse_undoes_apply(dihedral: int, colors: list[int], seed: int) -> None:
    augmentation = Augmentation(dihedral, (0, *colors))
    grid = np.random.default_rng(seed).integers(0, 10, (3, 5)).astype(np.uint8)
    changed = augmentation.apply(grid)
    assert changed.dtype == np.uint8
    assert np.array_equal(augmentation.inverse(changed), grid)
    assert np.array_equal(changed == 0, apply_dihedral(grid, dihedral) == 0)


def test_augmentation_takes_arrays_and_changes_all_pairs() -> None:
    augmentation = Augmentation(np.uint8(6), np.array([0, 2, 1, *range(3, 10)]))
    assert augmentation == Augmentation(6, (0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
    row, column = np.array([[0, 1, 2]], dtype=np.uint8), np.array([[0], [2], [1]], dtype=np.uint8)
    changed = augmentation.apply_to_task(Task("t", (Pair(row, row),), (Pair(row, None),)))
    assert changed == Task("t", (Pair(column, column),), (Pair(column, None),))


@pytest.mark.parametrize(
    ("dihedral", "permutation"),
    [(8, IDENTITY), (-1, IDENTITY), (0, (1, 0, *range(2, 10))), (0, (0, 1)), (0, (0,) * 10)],
)
def test_invalid_recipes_are_errors(dihedral: int, permutation: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dihedral id|permutation of 0\.\.9"):
        Augmentation(dihedral, permutation)
    for wrong in (8, -1):
        with pytest.raises(ValueError, match="dihedral id"):
            apply_dihedral(np.zeros((1, 1)), wrong)


@pytest.mark.parametrize("colors", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_digests_are_equal_exactly_where_variants_look_the_same(seed: int, colors: int) -> None:
    """Against transforming every grid of every variant and comparing them cell by cell."""
    task = random_task(seed, colors)
    recipes = random_recipes(seed, 300)
    variants = [Augmentation(d, p).apply_to_task(task) for d, p in zip(*recipes, strict=True)]
    keys = [row.tobytes() for row in VariantHasher(task).digests(*recipes)]
    looks = [look(variant) for variant in variants]
    # One key for each look, and one look for each key.
    assert len(set(zip(looks, keys, strict=True))) == len(set(looks)) == len(set(keys))
    assert colors > 3 or len(set(looks)) < len(looks), "no duplicates: the test shows nothing"
    assert [digest_of(variant) for variant in variants[:20]] == keys[:20]


def test_digests_tell_apart_shape_side_role_and_pairing() -> None:
    a, b = np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8)
    tall = np.zeros((2, 1), np.uint8)
    tasks = [
        Task("t", (Pair(a, b),), (Pair(a, None),)),
        Task("t", (Pair(b, a),), (Pair(a, None),)),
        Task("t", (Pair(a, b),), (Pair(b, None),)),
        Task("t", (Pair(a, b),), (Pair(tall, None),)),
        Task("t", (Pair(a, b), Pair(a, b)), (Pair(a, None),)),
        Task("t", (Pair(a, b), Pair(b, a)), (Pair(a, None),)),
        Task("t", (Pair(a, a), Pair(b, b)), (Pair(a, None),)),
    ]
    assert len(set(map(digest_of, tasks))) == len(tasks)


@pytest.mark.parametrize("colors", [1, 3, 8])
def test_variants_are_distinct_and_start_with_the_identity(colors: int) -> None:
    task = random_task(4, colors)
    variants = draw_variants(task, 60, seed=0)
    assert variants[0] == Augmentation(0, IDENTITY)
    looks = [look(variants[i].apply_to_task(task)) for i in range(len(variants))]
    assert len(set(looks)) == len(variants) <= 60
    assert variants.dihedral.dtype == variants.permutation.dtype == np.uint8
    assert variants.permutation.shape == (len(variants), 10)
    assert variants.digest.shape == (len(variants), 2)
    assert len(variants) == 60 or colors < 8


def test_a_task_with_few_colors_has_fewer_variants() -> None:
    for color, side, expected in (
        (3, 1, 9),
        (0, 2, 1),
    ):  # a transform leaves such grids as they are
        grid = np.full((side, side), color, dtype=np.uint8)
        task = Task("one color", (Pair(grid, grid),), (Pair(grid, None),))
        assert len(draw_variants(task, 100, seed=0)) == expected


def assert_same(first: Variants, second: Variants) -> None:
    assert np.array_equal(first.dihedral, second.dihedral)
    assert np.array_equal(first.permutation, second.permutation)
    assert np.array_equal(first.digest, second.digest)


@pytest.mark.parametrize("colors", [2, 3, 9])
@pytest.mark.parametrize("few", [1, 2, 10])
def test_fewer_variants_are_a_prefix_of_more(few: int, colors: int) -> None:
    task = random_task(7, colors)
    some, many = draw_variants(task, few, seed=3), draw_variants(task, 100, seed=3)
    n = len(some)
    assert_same(some, Variants(many.dihedral[:n], many.permutation[:n], many.digest[:n]))


def test_draws_depend_on_seed_and_task_id_and_not_on_answers() -> None:
    task = random_task(5, 9)
    drawn = draw_variants(task, 20, seed=0)
    assert_same(drawn, draw_variants(task, 20, seed=0))
    hidden = Task(task.id, task.demos, tuple(Pair(q.input, None) for q in task.queries))
    assert_same(drawn, draw_variants(hidden, 20, seed=0))
    other_id = draw_variants(Task("u", task.demos, task.queries), 20, seed=0)
    for other in (draw_variants(task, 20, seed=1), other_id):
        assert not np.array_equal(drawn.permutation, other.permutation)


def test_draws_are_uniform_enough() -> None:
    variants = draw_variants(random_task(6, 10, largest=8), 4000, seed=0)
    assert len(variants) == 4000
    dihedrals = Counter(variants.dihedral.tolist())
    assert min(dihedrals.values()) > 400  # 500 expected each, standard deviation 21
    assert max(dihedrals.values()) < 600
    assert (variants.permutation[:, 0] == 0).all()
    for color in range(1, 10):
        counts = np.bincount(variants.permutation[:, color], minlength=10)[1:]
        assert 340 < counts.min() <= counts.max() < 560  # 444 expected, standard deviation 20


def test_the_draws_of_a_seed_are_pinned() -> None:
    """A change here changes every data set that was made before: say why in the log."""
    row = np.arange(10, dtype=np.uint8)[None]
    variants = draw_variants(Task("pinned", (Pair(row, row),), (Pair(row, None),)), 4, seed=0)
    assert variants.dihedral.tolist() == [0, 6, 6, 4]
    assert ["".join(map(str, row)) for row in variants.permutation.tolist()] == (
        ["0123456789", "0298561347", "0861294573", "0435729816"]
    )
    assert [row.astype("<u8").tobytes().hex() for row in variants.digest] == [
        "13247c7e32e04a65cf15938cfcba24f9",
        "5e44f500edad6aabde8d87fc3792dfe6",
        "8cd0fad32ee3cb3320c64781cddda685",
        "d7a7fdb4756edef1e0ed7679c92b502c",
    ]


def test_digests_of_many_variants_and_pairs_are_pinned() -> None:
    """More pairs and variants than are added up at once, and grids of every shape up to 5×5."""
    rng = np.random.default_rng(1)
    shapes = [(h, w) for h in range(1, 6) for w in range(1, 6)]
    pairs = [
        Pair(*(rng.integers(0, 4, shape).astype(np.uint8) for shape in (one, other)))
        for one, other in zip(shapes, reversed(shapes), strict=True)
    ]
    drawn = draw_variants(Task("pinned", tuple(pairs[:20]), tuple(pairs[20:])), 400, seed=0)
    assert hashlib.sha256(drawn.digest.astype("<u8").tobytes()).hexdigest() == (
        "f6b597eb7d8f68c77faef8d297f9a1dd4290f081171f05194122b5cb5713d00e"
    )


def test_an_exact_task_has_no_variant_but_itself() -> None:
    """And the digest of the identity is the same, however many variants there are."""
    for seed in range(20):
        task = random_task(seed, 5)
        if seed % 2:  # more demos than are hashed
            task = replace(task, demos=40 * task.demos)
        alone, many = draw_variants(task, 1, seed=0), draw_variants(task, 9, seed=0)
        assert len(many) > 1
        assert (alone.digest == many.digest[:1]).all()
    assert_same(draw_variants(replace(task, exact=True), 9, seed=0), alone)


def test_no_variant_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        draw_variants(random_task(0, 2), 0, seed=0)
