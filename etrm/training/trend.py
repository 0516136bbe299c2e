"""A sequential test of trend: whether a share that is measured again and again rises enough.

The null hypothesis is "it gains at least `gain` a step". It is rejected, one-sided, by the slope of
a weighted least-squares line, at a few looks that share one error rate (alpha spending, Lan and
DeMets, 1983). A trend that holds still for a while and then goes on is judged by its mean slope
from the first step to the look.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOOKS = 4  # at each quarter of the steps in which the test may reject
SPENDING = 10  # power of the share of steps: early looks, of little information, cost little
LEAST_ROWS = 10  # below that, a noise estimated from residuals says too little
BLOCK = 10  # rows whose noise may be correlated as a whole


def errors(total: float) -> list[float]:
    """Return the share of the error rate `total` that each look may spend."""
    spent = [total * (look / LOOKS) ** SPENDING for look in range(LOOKS + 1)]
    return [after - before for before, after in pairwise(spent)]


def falls_short(
    steps: Floats, shares: Floats, counts: Floats, gain: float, error: float
) -> NDArray[np.bool_]:
    """Return whether the slope is below `gain` a step, with a chance of at most `error` if not.

    `steps` [n] and `shares` [..., n], each the mean of `counts` [..., n] samples. Two models of the
    noise must both say so: samples drawn independently (binomial), and whatever scatter the rows
    have around their line, autocorrelation included.
    """
    total = counts.sum(axis=-1)
    x = steps - ((counts * steps).sum(axis=-1) / total)[..., None]
    spread = (counts * x * x).sum(axis=-1)
    mean = (counts * shares).sum(axis=-1) / total
    slope = (counts * x * shares).sum(axis=-1) / spread
    rest = np.sqrt(counts) * (shares - mean[..., None] - slope[..., None] * x)
    # A share that gains so much cannot have had a smaller mean: rare successes hide their noise.
    least = gain * (steps[-1] - steps[0]) / 2
    p = np.clip(mean, least, 1 - least)
    z = NormalDist().inv_cdf(1 - error)
    noise = np.maximum(z * np.sqrt(p * (1 - p)), _scatter(rest, error))
    return np.asarray(gain - slope > noise / np.sqrt(spread))


def _scatter(rest: Floats, error: float) -> Floats:
    """Return the bound of the noise of rows [..., n], from residuals of equal variance.

    Neighbours that are correlated beyond chance make it larger: rows by their first
    autocorrelation, and blocks of rows where these scatter more than independent rows would.
    """
    rows = rest.shape[-1]
    square = (rest * rest).sum(axis=-1)
    rho = (rest[..., 1:] * rest[..., :-1]).sum(axis=-1) / np.maximum(square, 1e-30)
    rho = np.where(rho > NormalDist().inv_cdf(0.95) / math.sqrt(rows), np.minimum(rho, 0.95), 0.0)
    bound = t_quantile(1 - error, rows - 2) * np.sqrt(square / (rows - 2) * (1 + rho) / (1 - rho))
    blocks = rows // BLOCK
    if blocks < LEAST_ROWS:
        return np.asarray(bound)
    parts = rest[..., rows % BLOCK :].reshape(*rest.shape[:-1], blocks, BLOCK).sum(axis=-1)
    variance = (parts * parts).sum(axis=-1) / BLOCK / (blocks - 2)
    unlikely = 2 / (9 * (blocks - 2))  # chi-square's quantile of 0.99, by Wilson and Hilferty
    most = (1 - unlikely + NormalDist().inv_cdf(0.99) * math.sqrt(unlikely)) ** 3
    of_blocks = t_quantile(1 - error, blocks - 2) * np.sqrt(variance)
    correlated = variance > most * square / (rows - 2)
    return np.where(correlated, np.maximum(bound, of_blocks), bound)


def t_quantile(p: float, df: int) -> float:
    """Return the quantile of Student's t by its expansion in 1/df (Abramowitz and Stegun 26.7.5).

    For 8 degrees of freedom and p = 0.999 it is 0.4 % too small.
    """
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3
