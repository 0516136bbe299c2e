"""The test of trend, by simulation at the logging of the paper study.

A row of 10 steps of batch 256 has at least 160 halted samples, with at most 16 ACT steps each.
"""

from __future__ import annotations

import numpy as np
import pytest

from etrm.config.health import HealthConfig
from etrm.training.health import check_stuck
from etrm.training.trend import LEAST_ROWS, LOOKS, errors, falls_short, t_quantile

RULE = HealthConfig().stuck
RUNS, HALTED = 3000, 16  # halted samples a step


def simulate(
    start: float, gain: float, every: int, runs: int = RUNS, noise: float = 0.0, rho: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and exact match [runs, n] from `start` on, gaining `gain` in 100 steps.

    `noise`: variance of the true exact match over the binomial one of 10 steps, with
    autocorrelation `rho` from 10 steps to the next.
    """
    rng, tens = np.random.default_rng(every), np.arange(5, RULE.within, 10)
    shift = np.zeros((runs, len(tens)))
    if noise:
        draws = rng.standard_normal(shift.shape)
        shift[:, 0] = draws[:, 0]
        for i in range(1, len(tens)):
            shift[:, i] = rho * shift[:, i - 1] + (1 - rho**2) ** 0.5 * draws[:, i]
    level = start + gain * tens / 100 + shift * (noise * start * (1 - start) / (10 * HALTED)) ** 0.5
    exact = rng.binomial(10 * HALTED, level.clip(0, 1)) / (10 * HALTED)
    grouped = exact.reshape(runs, -1, every // 10).mean(axis=-1)
    return tens.reshape(-1, every // 10).mean(axis=-1), grouped


def stopped(steps: np.ndarray, exact: np.ndarray, every: int) -> np.ndarray:
    """Runs that a look of the whole time ends, bool [runs]."""
    counts, ended = np.full(exact.shape, float(HALTED * every)), np.zeros(len(exact), bool)
    for look, error in enumerate(errors(RULE.error), 1):
        n = len(steps) * look // LOOKS
        if n >= LEAST_ROWS:
            parts = steps[:n], exact[:, :n], counts[:, :n]
            ended |= falls_short(*parts, RULE.min_gain / 100, error)
    return ended


# At 100 steps a row there are 20 rows: their scatter is known less well, which costs power.
@pytest.mark.parametrize(("every", "least"), [(10, 0.95), (100, 0.90)])
@pytest.mark.parametrize("start", [0.0, 0.05, 0.5, 0.8])
def test_one_in_a_hundred_that_gains_is_stopped_and_nearly_all_flat_ones(
    start: float, every: int, least: float
) -> None:
    gains = stopped(*simulate(start, RULE.min_gain, every), every).mean()
    flat = stopped(*simulate(start, 0.0, every), every).mean()
    chance = [2 * (p * (1 - p) / RUNS) ** 0.5 for p in (RULE.error, least)]  # of the simulation
    assert gains <= RULE.error + chance[0]
    assert flat >= least - chance[1]
    more = simulate(start, 2.5 * RULE.min_gain, every, runs=1000)
    assert stopped(*more, every).sum() == 0


@pytest.mark.parametrize("every", [10, 100])
@pytest.mark.parametrize(("rho", "most"), [(0.0, 0.015), (0.5, 0.03), (0.8, 0.06)])
def test_noise_beyond_the_binomial_costs_power_more_than_error(
    every: int, rho: float, most: float
) -> None:
    """Of twice the variance. What stays correlated for hundreds of steps is a trend to any test."""
    runs = 2000
    rows = simulate(0.5, RULE.min_gain, every, runs, noise=1.0, rho=rho)
    assert stopped(*rows, every).mean() <= most


def test_the_rule_is_the_simulated_test() -> None:
    steps, exact = simulate(0.5, 0.0, 10, runs=20)
    expected = stopped(steps, exact, 10)
    assert expected.sum() > 0
    for shares, ends in zip(exact, expected, strict=True):
        rows = [
            {"step": t + 5, "train/lm_loss": 1.0, "train/exact_accuracy": v, "train/halted": HALTED}
            for t, v in zip(steps, shares, strict=True)
        ]
        found = [check_stuck(rows[:end], HealthConfig()) for end in (50, 100, 150, 200)]
        assert any(found) == ends


def test_looks_share_the_error_rate() -> None:
    assert sum(errors(0.01)) == pytest.approx(0.01)
    assert errors(0.01) == sorted(errors(0.01))


def test_quantiles_of_t_are_those_of_tables() -> None:
    table = {(0.99, 8): 2.896, (0.99, 18): 2.552, (0.999, 18): 3.610, (0.99, 198): 2.345}
    assert [t_quantile(*at) for at in table] == pytest.approx(list(table.values()), rel=5e-3)
