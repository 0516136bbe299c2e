"""Estimates that tables, figures and claims share: means over seeds, scores, and differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etrm.config.compare import flat
from etrm.evaluation.pass_at_k import INTERVAL
from etrm.evaluation.statistics import (
    difference_interval,
    mean_interval,
    share_interval,
    t_quantile,
)
from etrm.report.formats import NONE, in_points
from etrm.report.run_view import STAGES, RunView, asked, by_name, credits_of

RULE = "task_fraction"  # of credit, that of the published scores
VALIDATION = "validation.exact_accuracy"
STUDENT = "Student's t over seeds"
OVER_TASKS = (
    f"{INTERVAL} over tasks, of several seeds at the effective number of tasks (Korn-Graubard)"
)
PAIRED = (
    "Newcombe's method 10, paired over tasks, of several seeds the wider of it and Student's t over"
    " seeds and tasks"
)
UNPAIRED = "Newcombe's method 10, not paired, since validation tasks are not logged one by one"
# Of a configuration: what names a run, and what changes none of its numbers.
LEFT_OUT = ("experiment", "stage", "seed", "sources", "health.", "train.log_every", "train.save_")


@dataclass(frozen=True)
class Estimate:
    """A share of tasks, or a difference of two, with its 95 % interval."""

    what: str  # `pass@1`, or `VALIDATION`
    value: float
    low: float
    high: float
    tasks: int
    seeds: int

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.value:.1f} % [{low:.1f}, {high:.1f}] of {self.tasks} tasks"

    def row(self, name: str, tasks: str = "tasks") -> dict[str, float]:
        """Return it as `name`, `name_low`, `name_high` and the number of `tasks` of a row."""
        interval = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {**interval, tasks: self.tasks}

    def points(self) -> str:
        """Render it as a difference in percentage points."""
        return f"{in_points(self.value, self.low, self.high)} points over {self.tasks} tasks"


def by_experiment(views: Iterable[RunView], stage: str | None = None) -> dict[str, list[RunView]]:
    """Return the runs of each experiment in a stage, by default the last stage that it has."""
    found = {}
    for name, mine in by_name(views).items():
        last = stage or max((view.stage for view in mine), key=STAGES.index)
        if runs := [view for view in mine if view.stage == last]:
            found[name] = runs
    return found


def over_seeds(
    values: Iterable[float | None], name: str = "value", share: bool = False
) -> dict[str, float | None]:
    """Return the mean of the values that are there, with `_low` and `_high` from two on.

    The interval is of the mean, by Student's t; that of a `share` is cut to [0, 1].
    """
    known = np.array([value for value in values if value is not None], dtype=float)
    row: dict[str, float | None] = {f"{name}{part}": None for part in ("", "_low", "_high")}
    if len(known):
        row[name] = mean = float(known.mean())
    if len(known) > 1:
        half = t_quantile(len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))
        low, high = mean - half, mean + half
        row |= {f"{name}_low": max(0.0, low) if share else low}
        row |= {f"{name}_high": min(1.0, high) if share else high}
    return row


def score_of(views: Sequence[RunView], k: int = 1, rule: str = RULE) -> Estimate | None:
    """Return pass@k of the runs that have a score; None where none has, or of different tasks."""
    credit = credits_of([view for view in views if view.score is not None], k, rule)
    if credit is None:
        return None
    values = credit.to_numpy()
    return Estimate(f"pass@{k}", float(values.mean()), *mean_interval(values), *values.T.shape)


def validation_of(views: Sequence[RunView]) -> Estimate | None:
    """Return the exact match on validation tasks at the end of the runs that were validated."""
    found = [(view.last(VALIDATION), view.last("validation.tasks")) for view in views]
    known = [(share, int(tasks)) for share, tasks in found if share is not None and tasks]
    if not known:
        return None
    shares, tasks = np.array([share for share, _ in known]), min(n for _, n in known)
    low, high = share_interval(shares, tasks)
    return Estimate(VALIDATION, float(shares.mean()), low, high, tasks, len(shares))


def paired_credits(
    ours: Sequence[RunView], theirs: Sequence[RunView], k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return credits [seed, task] of the scored runs of both; None unless of the same tasks."""
    scored = [[v for v in views if v.score is not None] for views in (ours, theirs)]
    mine, base = (credits_of(views, k, RULE) for views in scored)
    if mine is None or base is None or set(mine) != set(base):
        return None
    return mine.to_numpy(), base[mine.columns].to_numpy()


def paired_difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Return the mean credit of `a` minus that of `b`, both [seed, task], paired over tasks."""
    middle, interval = float(a.mean() - b.mean()), difference_interval(a, b)
    return Estimate("pass@1", middle, *interval, a.shape[1], min(len(a), len(b)))


def score_difference(ours: Sequence[RunView], theirs: Sequence[RunView]) -> Estimate | None:
    """Return pass@1 of `ours` minus that of `theirs`, paired; None unless of the same tasks."""
    credits = paired_credits(ours, theirs, 1)
    return None if credits is None else paired_difference(*credits)


def validation_difference(ours: Sequence[RunView], theirs: Sequence[RunView]) -> Estimate | None:
    """Return the difference of exact match on validation tasks; None unless of the same sources.

    It is not paired, since validation tasks are not logged one by one: the intervals of both are
    squared and added (Newcombe, 1998, method 10 without correlation), which is wider.
    """
    a, b = validation_of(ours), validation_of(theirs)
    if a is None or b is None or asked(ours[0]) != asked(theirs[0]):
        return None
    middle = a.value - b.value
    low = middle - math.hypot(a.value - a.low, b.high - b.value)
    high = middle + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(a.what, middle, low, high, min(a.tasks, b.tasks), min(a.seeds, b.seeds))


def difference(ours: Sequence[RunView], theirs: Sequence[RunView]) -> Estimate | None:
    """Return how much better `ours` are: in pass@1 where both have a score, else in validation."""
    return score_difference(ours, theirs) or validation_difference(ours, theirs)


def settings(view: RunView) -> dict[str, Any]:
    """Return dotted key → value of a run's configuration that may change its numbers."""
    config = view.run.get("config", {})
    return {key: value for key, value in flat(config) if not key.startswith(LEFT_OUT)}


def changed_keys(ours: RunView, theirs: RunView) -> list[str]:
    """Return the keys in which two runs differ; of another context source, `context.source`."""
    mine, base = settings(ours), settings(theirs)
    keys = [k for k in {**base, **mine} if mine.get(k, NONE) != base.get(k, NONE)]
    if "context.source" in keys:  # the others' options come with it
        keys = [k for k in keys if not k.startswith("context.") or k == "context.source"]
    return keys


def twins(views: Sequence[RunView], keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of ETRM experiments that differ in one of `keys`, and in nothing else."""
    runs, wanted = by_experiment(view for view in views if not view.is_trm), set(keys)
    pairs = ((a, b) for a in runs for b in runs if a < b)
    found = ((a, b, set(changed_keys(runs[a][0], runs[b][0]))) for a, b in pairs)
    return [(a, b) for a, b, changed in found if changed and changed <= wanted]
