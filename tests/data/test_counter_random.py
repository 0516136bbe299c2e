"""Counter-based random numbers: functions of their counters, uniform, and told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from etrm.data import counter_random as random
from etrm.data.counter_random import integers, uniform

MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser, as published."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def reference(seed: int, step: int, stream: int, slot: int, column: int) -> float:
    golden, key = 0x9E3779B97F4A7C15, 0
    for part in (seed, step, stream):
        key = mix((key + part + 1) * golden & MASK)
    x = mix((slot * golden + key) & MASK)
    return (mix((x + (column + 1) * golden) & MASK) >> 11) / 2**53


def test_numbers_are_those_of_plain_integer_arithmetic() -> None:
    slots = [0, 1, 5, 2**40]
    for counters in [(0, 0, 0), (3, 10**9, 6), (2**31, 17, 2)]:
        found = uniform(*counters, torch.tensor(slots), columns=3)
        assert found.dtype == torch.float64
        expected = [[reference(*counters, slot, column) for column in range(3)] for slot in slots]
        assert found.tolist() == expected


def test_numbers_do_not_depend_on_the_other_slots_or_columns() -> None:
    whole = uniform(1, 2, 3, torch.arange(64), columns=5)
    part = uniform(1, 2, 3, torch.tensor([40, 7]), columns=2)
    assert torch.equal(part, whole[[40, 7], :2])


def test_numbers_are_uniform() -> None:
    found = uniform(0, 0, 0, torch.arange(4096), columns=8).flatten().numpy()
    assert 0.0 <= found.min() < found.max() < 1.0
    counts = np.bincount((found * 64).astype(int), minlength=64)
    expected = len(found) / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("axis", ["seed", "step", "stream"])
def test_counters_that_differ_give_numbers_that_are_not_correlated(axis: str) -> None:
    base, slots = {"seed": 4, "step": 9, "stream": 2}, torch.arange(4096)

    def numbers(more: int) -> torch.Tensor:
        return uniform(**{**base, axis: base[axis] + more}, slots=slots)[:, 0]

    first = numbers(0)
    pairs = [(first, numbers(more)) for more in (1, 2, 7)] + [(first[1:], first[:-1])]
    for one, two in pairs:
        assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 5 / 64


def test_seed_and_step_are_not_exchangeable_and_streams_have_numbers_of_their_own() -> None:
    slots = torch.arange(8)
    assert not torch.equal(uniform(1, 2, 0, slots), uniform(2, 1, 0, slots))
    names = ("EPISODE", "VARIANT", "DEMOS", "OFFSET", "EXPLORE", "MINIMUM", "SUBSET")
    assert len({getattr(random, name) for name in (*names, "NOISE", "PROBE")}) == len(names) + 2


def test_integers_cover_their_range_and_stay_below_the_bound() -> None:
    u = uniform(0, 0, 0, torch.arange(2000))[:, 0]
    assert integers(u, 7).unique().tolist() == list(range(7))
    bounds = torch.tensor([1, 3, 10]).repeat(1000)[:2000]
    drawn = integers(u, bounds)
    assert drawn.dtype == torch.int64
    assert bool((drawn < bounds).all())
    last = torch.tensor([1.0 - 2.0**-53], dtype=torch.float64)
    assert integers(last, 900).tolist() == [899]
