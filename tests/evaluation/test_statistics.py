"""Intervals and tests: known values, orders that must hold, and their error rates by simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etrm.evaluation.statistics import (
    beta_cdf,
    clopper_pearson,
    difference_interval,
    difference_p_value,
    holm,
    mean_interval,
    sign_flip_p_value,
    t_p_value,
    t_quantile,
)

TASKS = 400


def credits(*counts: int, tasks: int = TASKS) -> np.ndarray:
    """Credits [S, T] of seeds that have solved the first so many tasks."""
    return np.array([np.arange(tasks) < count for count in counts], dtype=np.float64)


def simulated(
    rng: np.random.Generator, *, logit: float, seeds: int, sd_task: float, sd_seed: float
) -> np.ndarray:
    """Credits of new seeds on new tasks, whose effects add on the scale of logits."""
    effects = sd_task * rng.normal(size=TASKS) + sd_seed * rng.normal(size=(seeds, 1))
    return (rng.random((seeds, TASKS)) < 1 / (1 + np.exp(-logit - effects))).astype(float)


def rate(logit: float, sd: float) -> float:
    """The mean success over normal effects, by quadrature."""
    x, weight = np.polynomial.hermite_e.hermegauss(80)
    return float((weight / (1 + np.exp(-logit - sd * x))).sum() / weight.sum())


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (0, 20, 0.0, 0.16843),  # published tables
        (1, 20, 0.00127, 0.24873),
        (10, 20, 0.27196, 0.72804),
        (20, 20, 0.83157, 1.0),
        (0, 400, 0.0, 0.0091798),
    ],
)
def test_clopper_pearson_is_the_published_one(count: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(count, n) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("count", "n"), [(3, 12), (7, 40), (1, 400), (399, 400)])
def test_its_bounds_leave_a_tail_of_the_binomial(count: int, n: int) -> None:
    low, high = clopper_pearson(count, n)

    def at_most(k: int, p: float) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    assert 1 - at_most(count - 1, low) == pytest.approx(0.025, rel=1e-6)
    assert at_most(count, high) == pytest.approx(0.025, rel=1e-6)


def test_students_t_is_the_published_one() -> None:
    table = {1: 12.7062, 2: 4.30265, 10: 2.22814, 100: 1.98397}
    for freedom, quantile in table.items():
        assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)
        assert t_p_value(quantile, freedom) == pytest.approx(0.05, abs=1e-5)


@given(st.floats(0.001, 0.999), st.floats(0.05, 500.0), st.floats(0.05, 500.0))
def test_the_beta_distribution_is_one(x: float, a: float, b: float) -> None:
    assert 0.0 <= beta_cdf(x, a, b) <= 1.0
    assert beta_cdf(x, a, b) == pytest.approx(1 - beta_cdf(1 - x, b, a), abs=1e-9)
    assert beta_cdf(x, 1.0, b) == pytest.approx(1 - (1 - x) ** b, abs=1e-9)


@pytest.mark.parametrize("seeds", [1, 3])
def test_bounds_rise_with_the_count(seeds: int) -> None:
    """With the bootstrap the upper bound of 1 of 400 was below that of none."""
    found = [mean_interval(credits(*[count] * seeds)) for count in range(0, TASKS + 1, 4)]
    assert all(one[0] <= other[0] and one[1] < other[1] for one, other in pairwise(found[:-1]))
    assert mean_interval(credits(0))[1] < mean_interval(credits(1))[1]
    assert mean_interval(credits(0, 0, 0))[1] < mean_interval(credits(0, 0, 1))[1]


def test_seeds_without_a_hit_know_no_more_than_their_tasks() -> None:
    assert mean_interval(credits(0, 0, 0)) == mean_interval(credits(0)) == clopper_pearson(0, TASKS)
    assert mean_interval(credits(*[TASKS] * 3)) == clopper_pearson(TASKS, TASKS)


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, apart = mean_interval(credits(40, 40, 40)), mean_interval(credits(10, 40, 70))
    assert apart[0] < alike[0]
    assert alike[1] < apart[1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_fractions_of_a_task_are_covered(seeds: int) -> None:
    """A third of the tasks has two outputs, one or both of which are hit."""
    rng, p, inside = np.random.default_rng(0), 0.02, 0
    for _ in range(400):
        hit = rng.random((2, seeds, TASKS)) < p
        two = np.arange(TASKS) % 3 == 0
        low, high = mean_interval(np.where(two, hit.mean(0), hit[0]))
        inside += low <= p <= high
    assert inside / 400 >= 0.95


@pytest.mark.parametrize("logit", [-6.0, -4.6, -3.0])  # rates from 0.2 % to 10 %
@pytest.mark.parametrize(("sd_task", "sd_seed"), [(0.0, 0.0), (2.0, 0.3), (2.0, 0.7)])
def test_intervals_over_seeds_and_tasks_cover(logit: float, sd_task: float, sd_seed: float) -> None:
    rng, true = np.random.default_rng(1), rate(logit, math.hypot(sd_task, sd_seed))
    shape = {"logit": logit, "seeds": 3, "sd_task": sd_task, "sd_seed": sd_seed}
    found = [mean_interval(simulated(rng, **shape)) for _ in range(250)]
    assert np.mean([low <= true <= high for low, high in found]) >= 0.93
    assert min(high - low for low, high in found) >= clopper_pearson(0, TASKS)[1]


def test_the_sign_flip_test_is_mcnemars_for_one_seed() -> None:
    differences = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 90)
    binomial = 2 * sum(math.comb(10, i) for i in range(3)) / 2**10  # 2 of 10 discordant, two-sided
    assert sign_flip_p_value(differences) == pytest.approx(binomial)
    assert sign_flip_p_value(np.zeros(9)) == 1.0
    assert sign_flip_p_value(np.array([1.0])) == 1.0


def test_the_sign_flip_test_counts_all_signs_of_fractions() -> None:
    values = np.array([1 / 3, -1 / 6, 2 / 3, 1 / 2, 1 / 3])
    signs = 2 * (np.arange(32)[:, None] >> np.arange(5) & 1) - 1
    sums = np.abs(signs @ np.abs(values))
    expected = np.mean(sums >= abs(values.sum()) - 1e-9)
    assert sign_flip_p_value(values) == pytest.approx(expected)


def test_holm_is_the_step_down_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_has_an_interval_where_both_have_solved_nothing() -> None:
    low, high = difference_interval(credits(0, 0, 0), credits(0, 0, 0))
    assert low == -high < -0.009
    assert difference_p_value(credits(0, 0, 0), credits(0, 0, 0)) == 1.0


def test_a_difference_is_paired_over_tasks() -> None:
    """The same tasks solved by both say more about their difference than other tasks do."""
    ours, theirs = credits(40), credits(30)
    low, high = difference_interval(ours, theirs)
    assert low < 10 / TASKS < high
    other_low, other_high = difference_interval(ours, theirs[:, ::-1])
    assert high - low < (other_high - other_low) / 2
    assert difference_p_value(ours, theirs) < 0.01 < difference_p_value(ours, theirs[:, ::-1])


@pytest.mark.parametrize("sd_seed", [0.0, 0.5])
def test_equal_experiments_rarely_differ(sd_seed: float) -> None:
    """Over tasks alone, seeds that differ are taken for experiments that differ."""
    rng, found = np.random.default_rng(2), []
    for _ in range(200):
        task = 2 * rng.normal(size=TASKS)
        effects = -4 + task + sd_seed * rng.normal(size=(2, 3, 1))
        ours, theirs = (rng.random((2, 3, TASKS)) < 1 / (1 + np.exp(-effects))).astype(float)
        low, high = difference_interval(ours, theirs)
        p = difference_p_value(ours, theirs)
        flips = sign_flip_p_value(ours.mean(0) - theirs.mean(0))
        found.append((low <= 0 <= high, p < 0.05, flips < 0.05))
    covered, significant, over_tasks = np.mean(found, axis=0)
    assert covered >= 0.93
    assert significant <= 0.06
    if sd_seed:
        assert over_tasks > 0.2
