"""The table `predictors`: which measure of an encoder predicts its exact match on unseen tasks.

The guide judges encoders by their cross-sample variance. For every measure that was logged, the
table says how well the order of runs by it agrees with their order by the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from etrm.report.correlation import RankCorrelation, rank_correlation
from etrm.report.estimates import VALIDATION
from etrm.report.formats import NONE, Columns, Table
from etrm.report.run_view import RunView, asked, distinct

LEAST = 5  # runs; the order of fewer says nothing
SCORE = "pass@1"
PREFIXES = ("encoder/", "train/encoder_")
OTHERS = ("grad/encoder_norm", "grad/encoder_share")
# Accuracies, and their gains over untrained weights: random features tell many rules apart.
READOUTS = ("readout/rule", "readout/rule_gain", "readout/parameters", "readout/parameters_gain")
YARDSTICKS = ("all.exact_accuracy", VALIDATION)  # no measures of encoders, to compare these with
LEFT_OUT = ("train/encoder_frozen",)  # says what was trained
COLUMNS = "split sources outcome measure runs experiments effective correlation low high status"
METHOD = (
    "Spearman's rank correlation of a measure at the end of full runs with their outcome, over runs"
    " of the same split and sources. Brackets are 95 % intervals (Bonett-Wright), in which seeds of"
    " an experiment count as fewer runs, the more they are alike."
)


@dataclass(frozen=True)
class Stratum:
    """Full runs whose outcomes can be compared: those of the same tasks."""

    split: str
    sources: tuple[str, ...] | None
    outcome: str  # `SCORE` or `VALIDATION`
    runs: list[tuple[RunView, float]]  # with their outcomes


@dataclass(frozen=True)
class Point:
    """One run: a measure of its encoder, and its outcome."""

    view: RunView
    measure: float
    outcome: float


TEXT: Columns = {
    "Measure": "measure",
    "Outcome": "outcome",
    "Rank correlation": lambda row: words(row["correlation"], row["low"], row["high"]),
    "Runs": lambda row: f"{row['runs']} of {row['experiments']} experiments",
    "Split and sources": lambda row: f"{row['split']}, {row['sources']}",
    "Status": "status",
}


def predictors(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of predictors; no run is compared with the `baseline`.

    A row for each stratum and measure, the strongest correlation of a stratum first.
    `effective`: the number of independent runs that say as much as the `runs` of `experiments`. A
    row without a correlation or an interval says why in its status.
    """
    rows = []
    for stratum in strata(views):
        found = [_row(stratum, measure) for measure in measures(stratum)]
        table = pd.DataFrame(found, columns=COLUMNS.split())
        order = (-table["correlation"].astype(float).abs()).argsort(kind="stable")
        rows.append(table.iloc[order])
    empty = pd.DataFrame(columns=COLUMNS.split())
    numbers = pd.concat(rows, ignore_index=True) if rows else empty
    return Table.of(numbers, TEXT, _notes(views, numbers))


def words(value: float | None, low: float | None, high: float | None) -> str:
    """Render `+0.83 [+0.41, +0.96]`, or what there is of it."""
    if value is None or np.isnan(value):
        return NONE
    text = f"{value:+.2f}"
    if low is not None and high is not None and not np.isnan(low):
        text += f" [{low:+.2f}, {high:+.2f}]"
    return text.replace("-", "−")


def strata(views: Sequence[RunView]) -> list[Stratum]:
    """Return the full runs of encoders that have an outcome, by split and sources.

    The outcome is pass@1 on held-out tasks, or exact match on validation tasks where fewer than
    `LEAST` runs have a score and more are validated.
    """
    full = [view for view in views if view.stage == "full" and not view.is_trm]
    found = []
    for key in dict.fromkeys(asked(view) for view in full):
        mine = [view for view in full if asked(view) == key]
        scored, validated = (
            [(view, x) for view in mine if (x := measure_of(view, outcome)) is not None]
            for outcome in (SCORE, VALIDATION)
        )
        by_score = len(scored) >= min(LEAST, len(validated))
        outcome, runs = (SCORE, scored) if by_score else (VALIDATION, validated)
        if runs:
            found.append(Stratum(*key, outcome, runs))
    return found


def measures(stratum: Stratum) -> list[str]:
    """Return the names of the measures that runs of a stratum have."""
    columns = distinct(str(c) for view, _ in stratum.runs for c in view.metrics)
    logged = [c for c in columns if c.startswith(PREFIXES) and c not in LEFT_OUT]
    named = (*logged, *OTHERS, *READOUTS, *(y for y in YARDSTICKS if y != stratum.outcome))
    return [name for name in named if points(stratum, name)]


def points(stratum: Stratum, measure: Callable[[RunView], float | None] | str) -> list[Point]:
    """Return the runs that have the measure, one of `measure_of` by its name."""
    of = partial(measure_of, name=measure) if isinstance(measure, str) else measure
    found = ((view, of(view), outcome) for view, outcome in stratum.runs)
    return [Point(view, value, outcome) for view, value, outcome in found if value is not None]


def measure_of(view: RunView, name: str) -> float | None:
    """Return a measure at the end of a run: the mean over the last tenth of its logged values."""
    score = view.score or {}
    if name == SCORE:
        return score.get("pass", {}).get("1", {}).get("task_fraction", {}).get("value")
    if name in READOUTS:
        kind, _, gain = name.removeprefix("readout/").partition("_")
        read = (score.get("readout") or {}).get(kind)
        return None if read is None else read["accuracy"] - (read["untrained"] if gain else 0.0)
    return view.last(name) if name == VALIDATION else view.final(name)


def correlation_of(runs: Sequence[Point]) -> RankCorrelation | None:
    """Return the rank correlation of measure and outcome; None if undefined, or of few runs."""
    if len(runs) < LEAST:
        return None
    values = ([p.measure for p in runs], [p.outcome for p in runs])
    return rank_correlation(*values, [p.view.experiment for p in runs])


def _row(stratum: Stratum, measure: str) -> dict[str, Any]:
    runs = points(stratum, measure)
    row: dict[str, Any] = {
        **{"split": stratum.split, "outcome": stratum.outcome, "measure": measure},
        "sources": "all sources" if stratum.sources is None else " ".join(stratum.sources),
        **{"runs": len(runs), "experiments": len({p.view.experiment for p in runs})},
    }
    if (found := correlation_of(runs)) is None:
        what = "measure" if len({p.measure for p in runs}) == 1 else "outcome"
        alike, few = f"the {what} is the same for all runs", f"fewer than {LEAST} runs"
        return row | {"status": few if len(runs) < LEAST else alike}
    row |= {"effective": found.effective, "correlation": found.value}
    row |= {"low": found.low, "high": found.high}
    return row | {"status": "the seeds are too alike for an interval" if found.low is None else ""}


def _notes(views: Sequence[RunView], table: pd.DataFrame) -> tuple[str, ...]:
    if table.empty:
        return ("No full run with an encoder has a score or a validation.",)
    notes = [METHOD]
    if (compared := int(table["correlation"].notna().sum())) > 1:
        notes.append(
            f"The largest of {compared} correlations is too large by chance alone: confirm it with"
            " other runs."
        )
    finished = {(view.experiment, view.seed) for view in views if view.stage == "full"}
    overfit = {(v.experiment, v.seed) for v in views if v.stage == "overfit" and not v.is_trm}
    if stopped := len(overfit - finished):
        notes.append(
            f"{stopped} overfit runs have no full run: what they would show is not in any number."
        )
    return tuple(notes)
