"""The table `mechanisms`: how an answer is refined, what guides it, and what that brings.

The discussion holds that refinement needs a signal: labels, as for TRM's embeddings, or demos, as
in LPN's search. So the signal is a column, and unguided refinement stands beside the guided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from etrm.report import estimates
from etrm.report.formats import NONE, Columns, Table, interval, number, points
from etrm.report.refinement import METHODS, refinement_table
from etrm.report.run_view import RunView

LABELS, DEMOS, UNGUIDED = "labels, in training", "demos, when asked", "none"
GUIDED_BY = {"search": DEMOS, "fine_tuning": DEMOS, "random": UNGUIDED, "act_steps": UNGUIDED}
COLUMNS = (
    "mechanism guided_by experiment steps seeds tasks pass@1 pass@1_low pass@1_high gain gain_low"
    " gain_high gain_over gflop"
)
NOTES = (
    f"Brackets are 95 % intervals: of pass@1 by {estimates.OVER_TASKS}; of the gain by"
    f" {estimates.PAIRED}.",
    "Gain: of a recurrent encoder over the study's baseline, of the others over the same runs"
    " without a step. Steps: the most that were taken.",
)


TEXT: Columns = {
    "Mechanism": "mechanism",
    "Guided by": "guided_by",
    "Experiment": "experiment",
    "Steps": number("steps", ".0f"),
    "Seeds": "seeds",
    "pass@1": interval("pass@1", of="tasks"),
    "Gain, points": points("gain"),
    "Gain over": lambda row: NONE if pd.isna(row["gain"]) else str(row["gain_over"]),
    "GFLOP": number("gflop", ".3g"),
}


def mechanisms(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the mechanisms of refinement, a row for each and each experiment that has a score.

    Recurrent encoders are compared with the `baseline`.
    """
    rows = [*_of_models(views, baseline), *_of_methods(views)]
    return Table.of(pd.DataFrame(rows, columns=COLUMNS.split()), TEXT, NOTES)


def is_recurrent(view: RunView) -> bool:
    """Return whether the encoder refines a state of its own over ACT steps."""
    return view.source.startswith("recurrent")


def _of_models(views: Sequence[RunView], baseline: str | None) -> Iterator[dict[str, Any]]:
    runs = estimates.by_experiment(views)
    refined = {view.experiment for view in views if view.refinement is not None}
    shown = refined | ({baseline} if baseline in runs else set(runs))
    for name, mine in runs.items():
        if (score := estimates.score_of(mine)) is None:
            continue
        gain: estimates.Estimate | None = None
        if mine[0].is_trm:
            words, signal = "learned embedding (TRM)", LABELS
        elif is_recurrent(mine[0]):
            words, signal = "recurrent encoder", UNGUIDED
            gain = estimates.score_difference(mine, runs[baseline]) if baseline in runs else None
        elif name in shown:
            words, signal = "one pass of the encoder", UNGUIDED
        else:
            continue
        row: dict[str, Any] = {"mechanism": words, "guided_by": signal, "experiment": name}
        row |= {"seeds": score.seeds, **score.row("pass@1")}
        if gain is not None:
            row |= {**gain.row("gain"), "tasks": score.tasks, "gain_over": baseline}
        yield row


def _of_methods(views: Sequence[RunView]) -> Iterator[dict[str, Any]]:
    table = refinement_table(views)
    for (name, method), own in table.groupby(["experiment", "method"], sort=False):
        last = own.sort_values("steps").iloc[-1].to_dict()
        if last["steps"]:
            row = {key: last[key] for key in COLUMNS.split() if key in last}
            named = {"mechanism": METHODS[str(method)], "guided_by": GUIDED_BY[str(method)]}
            yield row | named | {"experiment": name, "gain_over": f"{name}, no step"}
