"""Keys of content: equal for variants of a pair, different for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.arc.augment import apply_dihedral
from etrm.arc.overlap import (
    KEY_BYTES,
    Overlap,
    SeenContent,
    TaskContent,
    find_distinct,
    pair_keys,
)
from etrm.arc.sources import Loaded
from etrm.arc.task import Pair, Task

grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1)).map(
    lambda a: np.random.default_rng(a[2]).integers(0, 10, a[:2], dtype=np.uint8)
)


def pair_key(pair: Pair) -> str:
    return pair_keys([pair])[0]


def slow_key(pair: Pair) -> str:
    """The definition of a key, which records of runs hold: one pair, one turn after the other."""
    known = [grid for grid in (pair.input, pair.output) if grid is not None]
    forms = []
    for dihedral in range(8):
        turned = [apply_dihedral(grid, dihedral) for grid in known]
        cells = [cell for grid in turned for cell in grid.ravel().tolist()]
        number = {color: i for i, color in enumerate(dict.fromkeys(cells))}
        sides = [side for grid in turned for side in grid.shape]
        forms.append(bytes([len(turned), *sides, *(number[cell] for cell in cells)]))
    return blake2b(min(forms), digest_size=KEY_BYTES).hexdigest()


def test_keys_of_many_pairs_are_those_of_each_by_itself() -> None:
    """Of many shapes, with and without an output, few colours and all, more than a block holds."""
    rng = np.random.default_rng(5)
    shapes = [*rng.integers(1, 6, (150, 4)), *rng.integers(1, 31, (25, 4)), *[(3, 3, 3, 3)] * 400]
    many = []
    for number, (h, w, out_h, out_w) in enumerate(shapes):
        colors = rng.permutation(10)[: rng.integers(1, 11)].astype(np.uint8)
        output = rng.choice(colors, (out_h, out_w)) if number % 4 else None
        many.append(Pair(rng.choice(colors, (h, w)), output))
    expected = [slow_key(pair) for pair in many]
    assert pair_keys(many) == expected
    assert pair_keys(reversed(many)) == expected[::-1]  # as they were remembered
    assert len(set(expected)) > 400
    copies = [Pair(pair.input, pair.output) for pair in many]
    assert [pair_key(pair) for pair in copies] == expected


def test_pairs_of_exact_tasks_are_equal_as_they_are_alone() -> None:
    grid = np.array([[0, 1, 2]], np.uint8)
    pair, turned = Pair(grid, grid), Pair(grid[:, ::-1].copy(), grid[:, ::-1].copy())
    keys = [
        {key for p in (pair, turned) for key in pair_keys([replace(p)], exact)}
        for exact in (True, False)
    ]
    assert [len(own) for own in keys] == [2, 1]
    assert keys[0].isdisjoint(keys[1])
    tasks = [Task(name, (replace(p),), (), exact=True) for name, p in (("a", pair), ("b", turned))]
    assert find_distinct(tasks) == {"a", "b"}
    assert find_distinct(replace(t, exact=False, demos=(replace(t.demos[0]),)) for t in tasks) == (
        set()
    )


def test_a_key_is_what_it_always_was() -> None:
    """Records of finished runs hold it."""
    pair = Pair(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((1, 1), np.uint8))
    assert pair_keys([pair, Pair(pair.input, None)]) == ["b3aacd97c2cdbf08", "333090da16299d43"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(grids, grids, st.integers(0, 7), st.permutations(range(10)))
def test_variants_of_a_pair_have_its_key(
    left: np.ndarray, right: np.ndarray, dihedral: int, colors: list[int]
) -> None:
    table = np.array(colors, dtype=np.uint8)
    variant = Pair(*(table[apply_dihedral(grid, dihedral)] for grid in (left, right)))
    assert pair_key(variant) == pair_key(Pair(left, right))


def brute_force(a: Pair, b: Pair) -> bool:
    """Return whether a dihedral and a renaming of colours make one the other."""
    for dihedral in range(8):
        turned = [apply_dihedral(grid, dihedral) for grid in (a.input, a.output)]
        if [g.shape for g in turned] != [b.input.shape, b.output.shape]:
            continue
        cells = [np.concatenate([x.ravel(), y.ravel()]) for x, y in (turned, (b.input, b.output))]
        names = set(zip(*map(np.ndarray.tolist, cells), strict=True))
        if len(names) == len({x for x, _ in names}) == len({y for _, y in names}):
            return True
    return False


def test_keys_agree_with_brute_force_on_all_small_pairs() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        Pair(rng.integers(0, 2, (2, 2), dtype=np.uint8), rng.integers(0, 2, s, dtype=np.uint8))
        for s in [(2, 1), (1, 2), (2, 2)]
        for _ in range(25)
    ]
    same = [[pair_key(a) == pair_key(b) for b in pairs] for a in pairs]
    assert same == [[brute_force(a, b) for b in pairs] for a in pairs]
    assert 0 < np.sum(same) < len(pairs) ** 2


def test_an_unlabelled_pair_shares_nothing() -> None:
    grid = np.ones((2, 2), np.uint8)
    hidden = TaskContent.of(Task("t", (Pair(grid, grid),), (Pair(grid, None),)))
    assert hidden.cells == {pair_key(Pair(grid, grid)): 8}
    assert hidden.answers == frozenset()
    assert pair_key(Pair(grid, None)) != pair_key(Pair(grid, grid))


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (("training",), "evaluation", {"40853293": "070dd51e", "caa06a1f": "50a16a69"}),
        (("concept",), "evaluation", {}),
        (("training2",), "evaluation2", {}),
        (("training", "concept"), "evaluation2", {}),
    ],
)
def test_overlaps_of_the_public_sets(
    public_set: Callable[[str], Loaded],
    ours: tuple[str, ...],
    theirs: str,
    found: dict[str, str],
) -> None:
    seen = SeenContent.of(task for name in ours for task in public_set(name).tasks)
    overlaps = seen.find_touched(public_set(theirs).tasks)
    assert {name: hidden for hidden, o in overlaps.items() for name in o.tasks} == found
    # Each of them holds a test pair.
    assert {name: hidden for hidden, o in overlaps.items() for name in o.answers} == found


RNG = np.random.default_rng(0)


def pairs(count: int, side: int = 3) -> list[Pair]:
    """Random pairs of `2 * side**2` cells, none like another; two 3×3 grids tell nothing alone."""
    return [Pair(*RNG.integers(0, 10, (2, side, side), dtype=np.uint8)) for _ in range(count)]


def tiny(count: int) -> list[Pair]:
    """Pairs of 10 cells: three of them are less than `TELLING_CELLS` together."""
    grids = [RNG.integers(0, 10, (3, 3), dtype=np.uint8) for _ in range(count)]
    return [Pair(grid, grid[:1, :1]) for grid in grids]


def overlap(seen: list[Task], held_out: Task) -> Overlap | None:
    return SeenContent.of(seen).find_touched([held_out]).get(held_out.id)


def task(name: str, demos: list[Pair], queries: list[Pair] | None = None) -> Task:
    return Task(name, tuple(demos), tuple(queries or pairs(1)))


def test_a_telling_pair_or_several_smaller_ones_are_an_overlap() -> None:
    large, (a, b) = pairs(1, side=4), pairs(2)
    held_out = task("held", [*large, a, *pairs(6)], [b])
    assert overlap([task("t", pairs(3) + large)], held_out) == Overlap(("t",), (), ())
    assert overlap([task("t", [*pairs(3), a])], held_out) is None  # 18 cells, by chance perhaps
    assert overlap([task("t", [*pairs(3), a], [b])], held_out) == Overlap(("t",), (), ("t",))


def test_all_but_one_pair_of_a_small_task_are_an_overlap() -> None:
    """Both test pairs and all demos but one, less than 32 cells together."""
    demo, other, *tests = tiny(4)
    held_out = task("held", [demo, other], tests)
    assert overlap([task("t", [demo, *pairs(9)], tests)], held_out) == Overlap(("t",), (), ("t",))
    assert overlap([task("t", [*tests, *pairs(9)])], held_out) is None
    assert overlap([task("t", tests)], held_out) is not None  # all demos of the smaller one
    assert overlap([task("t", tests, tiny(1))], held_out) is not None


def test_a_tiny_pair_that_is_equal_by_chance_is_none() -> None:
    common, *rest = tiny(4)
    held_out = task("held", [common, rest[0]])
    assert overlap([task("t", [common, *rest[1:]])], held_out) is None
    assert overlap([task("t", [rest[1]], [common])], held_out) is None
    assert overlap([task("t", [common])], held_out) is not None  # all that it shows
    assert overlap([task("t", [common, *rest[1:]])], task("held", [common])) is not None


def test_demos_spread_over_several_tasks_are_seen() -> None:
    a, b, c = pairs(3)
    held_out = task("held", [a, b])
    one, two = task("one", [a, *pairs(3)]), task("two", [b, *pairs(3)])
    third = task("third", [*pairs(3), b, c])
    assert overlap([one], held_out) is None
    found = overlap([one, two, third], held_out)
    assert found == Overlap((), ("one", "third", "two"), ())
    assert overlap([two, third], held_out) is None


def test_a_task_is_touched_by_its_id_whatever_it_holds() -> None:
    assert overlap([task("held", pairs(2))], task("held", pairs(2))) == Overlap(("held",), (), ())


def test_a_test_pair_that_is_a_demo_as_well_gives_no_answer_away() -> None:
    large, other = pairs(1, side=4), pairs(1)
    assert overlap([task("t", large)], task("held", large, large)) == Overlap(("t",), ("t",), ())
    assert overlap([task("t", large)], task("held", other, large)) == Overlap(("t",), (), ("t",))


def test_keys_alone_find_what_the_tasks_do_where_they_are_enough() -> None:
    """A record of a run does not say which pairs were demos: all of them count as such."""
    a, b, *rest = tiny(4)
    held_out = task("held", [a, *rest])
    seen = [task("t", [a], [b])]
    assert overlap(seen, held_out) is not None
    keys = {one.id: frozenset(TaskContent.of(one).cells) for one in seen}
    assert SeenContent(keys).find_touched([held_out]) == {}
    assert SeenContent({"t": frozenset([pair_key(a)])}).find_touched([held_out]).keys() == {"held"}
