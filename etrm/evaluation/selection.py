"""The rule of a selection: the best by validation, and those that cannot be told from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from etrm.config.selection import SelectionConfig

# Shares of each task of a candidate's seeds, in the order of the tasks: [S, T].
Shares = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """The place of one candidate in a selection."""

    experiment: str
    rank: int  # from 1; equal ones in the order of the study
    exact: float  # mean over seeds and tasks
    behind: float  # the last of the best, mean over tasks; negative for better ones
    error: float  # standard error of that, over tasks
    chosen: bool
    why: str  # `best`, `tie`, `near tie`, `behind`, or `over at_most`


def choose(shares: Shares, rule: SelectionConfig) -> list[Choice]:
    """Return the candidates in the order of their rank.

    The difference of each to the last of the best is taken task by task, over the same tasks: its
    standard error is that of the mean of these differences. Shares of several seeds are averaged.
    """
    means = {name: each.mean(0) for name, each in shares.items()}  # [T]
    ranked = sorted(means, key=lambda name: -float(means[name].mean()))  # stable
    if not ranked:
        return []
    bar = means[ranked[min(rule.best, len(ranked)) - 1]]
    most = len(ranked) if rule.at_most is None else rule.at_most
    found, taken = [], 0
    for rank, name in enumerate(ranked, 1):
        difference = bar - means[name]
        behind = float(difference.mean())
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(bar) > 1 else 0.0
        why = "best" if rank <= rule.best else "tie" if behind <= 0 else "near tie"
        if rank > rule.best and behind > rule.near * error:
            why = "behind"
        elif taken >= most:
            why = "over at_most"
        chosen = why in ("best", "tie", "near tie")
        taken += chosen
        exact = float(means[name].mean())
        found.append(Choice(name, rank, exact, behind, error, chosen, why))
    return found
