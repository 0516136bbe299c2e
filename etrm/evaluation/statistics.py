"""Intervals and tests for credits of tasks, without SciPy: an evaluation runs on bare nodes.

Credits are in [0, 1], float64 [S, T]: seeds × tasks, the same tasks for every seed. Both are
samples, of the seeds that could have been trained and of the tasks that could have been asked.

- One seed: Clopper and Pearson (1934), exact for credits 0 and 1. Fractions of a task count as they
  are: its beta quantiles are defined for any real count, and credits in between vary less than 0
  and 1 of the same mean (Hoeffding, 1963).
- Several seeds: the same at the *effective* number of tasks (Korn and Graubard, 1998), at most T.
  So an interval never vanishes, and is never narrower than that of one seed with the mean count.
- Difference of two experiments, paired over tasks: their intervals squared and added (Newcombe,
  1998, method 10), and the exact sign-flip test, which is McNemar's for one seed. Several seeds of
  both have Student's t as well, with the variances of seeds: the wider interval, the larger p-value
  count. Over tasks alone, experiments that differ by their seeds only would differ significantly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

LEVEL = 0.95  # of every interval
_ROUNDS = 60  # of bisection: more than a float64 in [0, 1] has digits
_GRID = 10_000  # largest denominator of a credit: of its tests times its seeds


def clopper_pearson(count: float, n: float) -> tuple[float, float]:
    """Return the interval of a proportion `count` / `n`; both may be fractional, n > 0."""
    tail = (1 - LEVEL) / 2
    low = beta_quantile(tail, count, n - count + 1) if count > 0 else 0.0
    high = beta_quantile(1 - tail, count + 1, n - count) if count < n else 1.0
    return low, high


def mean_interval(credits: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of `credits` [S, T] over seeds and tasks; T > 0."""
    over_tasks = _variance_of_mean(credits.mean(0))[0]
    return _over_seeds_too(credits.mean(1), credits.shape[1], over_tasks)


def share_interval(shares: np.ndarray, n: int) -> tuple[float, float]:
    """Return the interval of the mean of `shares` [S], each of n questions that have no credits."""
    mean = float(shares.mean())
    return _over_seeds_too(shares, n, mean * (1 - mean) / n)


def _over_seeds_too(of_seed: np.ndarray, n: int, over_tasks: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval of the mean over seeds at an effective number of tasks.

    The number at which one seed would be as uncertain, at most n. The variances over tasks and over
    seeds are added, which counts what is particular to a task in a seed twice: on the safe side, as
    the bootstrap of both does (Owen, 2007). Korn and Graubard's factor accounts for variances that
    are themselves estimated.
    """
    mean, effective = float(of_seed.mean()), float(n)
    variances = [(over_tasks, n - 1), _variance_of_mean(of_seed)]
    total = sum(variance for variance, _ in variances)
    if len(of_seed) > 1 and n > 1 and total > 0:
        wider = t_quantile(n - 1) / t_quantile(_degrees(variances))
        effective = min(effective, mean * (1 - mean) / total * wider**2)
    return clopper_pearson(mean * effective, effective)


def difference_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the interval of mean(ours) − mean(theirs), each [S, T] on the same T tasks.

    With one seed of either it is about these runs; with several of both, about the experiments.
    """
    n, a, b = ours.shape[1], float(ours.mean()), float(theirs.mean())
    (a_low, a_high), (b_low, b_high) = clopper_pearson(a * n, n), clopper_pearson(b * n, n)
    spread = math.sqrt(a * (1 - a) * b * (1 - b))
    together = float(np.mean(ours.mean(0) * theirs.mean(0))) - a * b  # covariance over tasks
    r = min(1.0, max(-1.0, together / spread)) if spread else 0.0
    low, high = (
        math.sqrt(max(0.0, one**2 + other**2 - 2 * r * one * other))
        for one, other in ((a - a_low, b_high - b), (a_high - a, b - b_low))
    )
    error, freedom = _error_over_seeds(ours, theirs)
    wide = t_quantile(freedom) * error if error else 0.0
    return max(-1.0, a - b - max(low, wide)), min(1.0, a - b + max(high, wide))


def difference_p_value(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p-value of mean(ours) = mean(theirs), as `difference_interval`."""
    exact = sign_flip_p_value(ours.mean(0) - theirs.mean(0))
    error, freedom = _error_over_seeds(ours, theirs)
    if not error:
        return exact
    return max(exact, t_p_value(float(ours.mean() - theirs.mean()) / error, freedom))


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Return the exact p-value of a mean of zero, by all 2^m signs of the m differences ≠ 0.

    Under the null a task's difference is as likely of either sign. For differences -1, 0 and 1 it
    is McNemar's exact test.
    """
    parts = [Fraction(float(d)).limit_denominator(_GRID) for d in differences if d]
    scale = math.lcm(*(part.denominator for part in parts))
    units = [abs(int(part * scale)) for part in parts]  # in whole steps of 1 / scale
    observed = abs(sum(int(part * scale) for part in parts))
    middle = sum(units)
    ways = np.zeros(2 * middle + 1)  # probability of each sum, from -middle to middle
    ways[middle] = 1.0
    for unit in units:  # no sum leaves the table, so that `roll` only shifts
        ways = (np.roll(ways, unit) + np.roll(ways, -unit)) / 2
    sums = np.abs(np.arange(-middle, middle + 1))
    return min(1.0, float(ways[sums >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _variance_of_mean(values: np.ndarray) -> tuple[float, int]:
    freedom = len(values) - 1
    return float(values.var(ddof=1)) / len(values) if freedom else 0.0, freedom


def _error_over_seeds(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the standard error of the difference over seeds and tasks, and degrees of freedom.

    0 where either has one seed: the difference of seeds is then not known.
    """
    if min(len(ours), len(theirs)) == 1:
        return 0.0, 0.0
    paired = ours.mean(0) - theirs.mean(0)  # [T]
    variances = [_variance_of_mean(x) for x in (paired, ours.mean(1), theirs.mean(1))]
    total = sum(variance for variance, _ in variances)
    return math.sqrt(total), _degrees(variances) if total else 0.0


def _degrees(variances: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of variances (Satterthwaite, 1946)."""
    total = sum(variance for variance, _ in variances)
    return total**2 / sum(variance**2 / freedom for variance, freedom in variances if variance > 0)


def t_p_value(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t."""
    return beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(freedom: float) -> float:
    """Return the two-sided quantile of Student's t at `LEVEL`."""
    x = beta_quantile(1 - LEVEL, freedom / 2, 0.5)  # = freedom / (freedom + t²)
    return math.sqrt(freedom * (1 - x) / x)


@lru_cache(maxsize=65536)
def beta_quantile(p: float, a: float, b: float) -> float:
    """Return x with P(Beta(a, b) ≤ x) = p, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < p else (low, middle)
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return P(Beta(a, b) ≤ x), the regularised incomplete beta function.

    By its continued fraction (Abramowitz and Stegun 26.5.8), in the half where it converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """Return 1 + d₁/(1 + d₂/(1 + …)), by Lentz's method."""
    tiny = 1e-300  # in place of a zero
    f, c, d = 1.0, 1.0, 0.0
    for i in range(1, 10_000):
        m = i // 2
        if i % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + step * d or tiny)
        c = 1.0 + step / c or tiny
        f *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return f
