"""Spearman's rank correlation over runs, with an interval; runs of an experiment are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

NORMAL = 1.959964  # two-sided quantile at 95 %


@dataclass(frozen=True)
class RankCorrelation:
    """A correlation, and its 95 % interval where there are runs enough."""

    value: float
    low: float | None
    high: float | None
    effective: float  # number of independent runs that say as much


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[str]
) -> RankCorrelation | None:
    """Return Spearman's correlation of `x` and `y`; None where either is the same for all runs.

    The interval is Bonett and Wright's (2000), with the standard error √((1 + r²/2) / (n - 3)) of
    Fisher's z. As n it has the *effective* number of runs: the seeds of an experiment, a group, are
    no independent runs as far as both `x` and `y` are alike in them (Moulton, 1990). A correlation
    of ±1 counts as half a step of ranks less, so that its interval does not vanish.
    """
    a, b = (pd.Series(list(each)).rank().to_numpy() for each in (x, y))  # the mean of equal ones
    if len(a) < 2 or not (a.std() and b.std()):
        return None
    value = float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
    n, sizes = len(a), np.unique(list(groups), return_counts=True)[1]
    alike = _within(a, groups) * _within(b, groups)
    effective = n / (1 + ((sizes**2).sum() / n - 1) * alike)
    if effective <= 3:
        return RankCorrelation(value, None, None, effective)
    most = 1 - 6 / (n * (n * n - 1))
    z = math.atanh(min(most, max(-most, value)))
    error = NORMAL * math.sqrt((1 + value**2 / 2) / (effective - 3))
    low, high = min(value, math.tanh(z - error)), max(value, math.tanh(z + error))
    return RankCorrelation(value, low, high, effective)


def _within(values: np.ndarray, groups: Sequence[str]) -> float:
    """Return the correlation of two values of a group: intraclass, of one-way ANOVA, at least 0.

    0 where no group has two values, or all are of one.
    """
    _, number, sizes = np.unique(list(groups), return_inverse=True, return_counts=True)
    n, k = len(values), len(sizes)
    if k in (1, n):
        return 0.0
    means = np.bincount(number, weights=values) / sizes
    between = (sizes * (means - values.mean()) ** 2).sum() / (k - 1)
    inside = ((values - means[number]) ** 2).sum() / (n - k)
    size = (n - (sizes**2).sum() / n) / (k - 1)  # of a group, on average
    return max(0.0, float((between - inside) / (between + (size - 1) * inside)))
