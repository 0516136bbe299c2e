"""The table `mechanisms`: how an answer is refined, what guides it, and what that brings.

The discussion holds that refinement needs a signal: labels, as for TRM's embeddings, or demos, as
in LPN's search. So the signal is a column, and unguided refinement stands beside the guided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from etrm.report.estimates import (
    OVER_TASKS,
    PAIRED,
    Estimate,
    bracketed,
    by_experiment,
    in_points,
    score_difference,
    score_of,
)
from etrm.report.formats import NONE, Table
from etrm.report.refinement import METHODS, refinement_table
from etrm.report.run_view import RunView

LABELS, DEMOS, UNGUIDED = "labels, in training", "demos, when asked", "none"
GUIDED_BY = {"search": DEMOS, "fine_tuning": DEMOS, "random": UNGUIDED, "act_steps": UNGUIDED}
COLUMNS = (
    "mechanism guided_by experiment steps seeds tasks pass@1 pass@1_low pass@1_high gain gain_low"
    " gain_high gain_over gflop"
)
NOTES = (
    f"Brackets are 95 % intervals: of pass@1 by {OVER_TASKS}; of the gain by {PAIRED}.",
    "Gain: of a recurrent encoder over the study's baseline, of the others over the same runs"
    " without a step. Steps: the most that were taken.",
)


def mechanisms(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the mechanisms of refinement; recurrent encoders are compared with the `baseline`."""
    numbers = mechanisms_table(views, baseline)
    return Table(numbers, rendered(numbers), NOTES)


def mechanisms_table(views: Sequence[RunView], baseline: str | None = None) -> pd.DataFrame:
    """Return a row for each mechanism and experiment that has a score."""
    rows = [*_of_models(views, baseline), *_of_methods(views)]
    return pd.DataFrame(rows, columns=COLUMNS.split())


def is_recurrent(view: RunView) -> bool:
    """Return whether the encoder refines a state of its own over ACT steps."""
    return source_of(view).startswith("recurrent")


def source_of(view: RunView) -> str:
    """Return the name of the context source."""
    return str(view.run.get("config", {}).get("context", {}).get("source", NONE))


def _of_models(views: Sequence[RunView], baseline: str | None) -> Iterator[dict[str, Any]]:
    runs = by_experiment(views)
    refined = {view.experiment for view in views if view.refinement is not None}
    shown = refined | ({baseline} if baseline in runs else set(runs))
    for name, mine in runs.items():
        if (score := score_of(mine)) is None:
            continue
        gain: Estimate | None = None
        if mine[0].is_trm:
            words, signal = "learned embedding (TRM)", LABELS
        elif is_recurrent(mine[0]):
            words, signal = "recurrent encoder", UNGUIDED
            gain = score_difference(mine, runs[baseline]) if baseline in runs else None
        elif name in shown:
            words, signal = "one pass of the encoder", UNGUIDED
        else:
            continue
        row: dict[str, Any] = {"mechanism": words, "guided_by": signal, "experiment": name}
        row |= {"seeds": score.seeds, "tasks": score.tasks, "pass@1": score.value}
        row |= {"pass@1_low": score.low, "pass@1_high": score.high}
        if gain is not None:
            row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
            row["gain_over"] = baseline
        yield row


def _of_methods(views: Sequence[RunView]) -> Iterator[dict[str, Any]]:
    table = refinement_table(views)
    for (name, method), own in table.groupby(["experiment", "method"], sort=False):
        last = own.sort_values("steps").iloc[-1].to_dict()
        if last["steps"]:
            row = {key: last[key] for key in COLUMNS.split() if key in last}
            named = {"mechanism": METHODS[str(method)], "guided_by": GUIDED_BY[str(method)]}
            yield row | named | {"experiment": name, "gain_over": f"{name}, no step"}


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, with column names for people."""
    rows = [row for _, row in table.iterrows()]
    return pd.DataFrame(
        {
            "Mechanism": [str(row["mechanism"]) for row in rows],
            "Guided by": [str(row["guided_by"]) for row in rows],
            "Experiment": [str(row["experiment"]) for row in rows],
            "Steps": [NONE if pd.isna(row["steps"]) else f"{row['steps']:.0f}" for row in rows],
            "Seeds": [str(row["seeds"]) for row in rows],
            "pass@1": [f"{bracketed(row, 'pass@1')} (of {row['tasks']})" for row in rows],
            "Gain, points": [
                in_points(row["gain"], row["gain_low"], row["gain_high"]) for row in rows
            ],
            "Gain over": [NONE if pd.isna(row["gain"]) else str(row["gain_over"]) for row in rows],
            "GFLOP": [NONE if pd.isna(row["gflop"]) else f"{row['gflop']:.3g}" for row in rows],
        }
    )
