"""Keys of content: equal for variants of a pair, different for everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.arc.augment import apply_dihedral
from etrm.arc.canonical import content, pair_key, shared
from etrm.arc.sources import load_sources
from etrm.arc.task import Pair, Task
from etrm.config.sources import KaggleSource

grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1)).map(
    lambda a: np.random.default_rng(a[2]).integers(0, 10, a[:2], dtype=np.uint8)
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(grids, grids, st.integers(0, 7), st.permutations(range(10)))
def test_variants_of_a_pair_have_its_key(
    left: np.ndarray, right: np.ndarray, dihedral: int, colors: list[int]
) -> None:
    table = np.array(colors, dtype=np.uint8)
    variant = Pair(*(table[apply_dihedral(grid, dihedral)] for grid in (left, right)))
    assert pair_key(variant) == pair_key(Pair(left, right))


def brute_force(a: Pair, b: Pair) -> bool:
    """Is there a dihedral and a renaming of colours that makes one the other?"""
    for dihedral in range(8):
        turned = [apply_dihedral(grid, dihedral) for grid in (a.input, a.output)]
        if [g.shape for g in turned] != [b.input.shape, b.output.shape]:
            continue
        cells = zip(
            np.concatenate([g.ravel() for g in turned]).tolist(),
            np.concatenate([b.input.ravel(), b.output.ravel()]).tolist(),
            strict=True,
        )
        names = set(cells)
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
    hidden = Task("t", (Pair(grid, grid),), (Pair(grid, None),))
    assert content(hidden).pairs == {pair_key(Pair(grid, grid))}
    assert pair_key(Pair(grid, None)) != pair_key(Pair(grid, grid))


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        ("training", "evaluation", {"40853293": "070dd51e", "caa06a1f": "50a16a69"}),
        ("concept", "evaluation", {}),
    ],
)
def test_duplicates_between_the_public_sets(
    arc: Path, ours: str, theirs: str, found: dict[str, str]
) -> None:
    def load(name: str) -> list[Task]:
        stem = arc / f"arc-agi_{name}"
        source = KaggleSource(
            challenges=f"{stem}_challenges.json", solutions=f"{stem}_solutions.json"
        )
        return load_sources({name: source})[name]

    assert shared(load(ours), load(theirs)) == found


def test_small_pairs_count_only_with_all_demos_of_their_task() -> None:
    rng = np.random.default_rng(0)

    def pair(side: int) -> Pair:
        return Pair(*rng.integers(0, 10, (2, side, side), dtype=np.uint8))

    small, large, others = pair(3), pair(4), [pair(4) for _ in range(4)]
    held_out = [Task("held", (small, others[0]), (large,)), Task("tiny", (small,), (others[3],))]
    assert shared([Task("a", (others[1], large), (others[2],))], held_out) == {"a": "held"}
    assert shared([Task("a", (others[1], small), (others[2],))], held_out[:1]) == {}
    assert shared([Task("a", (others[1], small), (others[2],))], held_out) == {"a": "tiny"}
    assert shared([Task("a", (small,), (others[2],))], held_out[:1]) == {"a": "held"}
    assert shared([Task("a", (others[1],), (others[2],))], held_out) == {}
