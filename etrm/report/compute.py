"""The table `compute`: what the runs of a study have cost, from their own records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.report.estimates import STUDENT, over_seeds
from etrm.report.formats import NONE, Columns, Table, interval, number
from etrm.report.run_view import STAGES, RunView, by_name, distinct

COLUMNS = (
    "experiment stage seeds params steps batch devices ranks hours hours_low"
    " hours_high rate rate_low rate_high memory_gib device_hours evaluation_hours gflop_of_answer"
)
NOTES = (
    f"Means over seeds; brackets are 95 % intervals by {STUDENT} (none of a single seed). Hours are"
    " of one run, over all processes that had a part in it; device hours are those of all seeds, on"
    " every rank.",
    "GFLOP: of an answer with the most steps of latent search, the decoder's; counted from sizes.",
)


TEXT: Columns = {
    "Experiment": "experiment",
    "Stage": "stage",
    "Seeds": "seeds",
    "Parameters": number("params", ",.0f"),
    "Steps": number("steps", ",.0f"),
    "Batch": number("batch", ".0f"),
    "Device": lambda row: f"{row['ranks']} × " * (row["ranks"] > 1) + str(row["devices"]),
    "Hours": interval("hours", ".3g", ""),
    "Examples a second": interval("rate", ",.0f", ""),
    "Peak memory, GiB": number("memory_gib", ".1f"),
    "Device hours": number("device_hours", ".3g"),
    "Evaluation, hours": number("evaluation_hours", ".3g"),
    "GFLOP": number("gflop_of_answer", ".3g"),
}


def compute(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the cost of each experiment and stage; nothing is compared with the `baseline`."""
    groups = ([v for v in of if v.stage == s] for of in by_name(views).values() for s in STAGES)
    numbers = pd.DataFrame([_row(mine) for mine in groups if mine], columns=COLUMNS.split())
    return Table.of(numbers, TEXT, (*NOTES, *_total(numbers)))


def _row(views: Sequence[RunView]) -> dict[str, Any]:
    runs = [view.run for view in views]
    seconds = [run.get("seconds") for run in runs]
    hours = [None if each is None else each / 3600 for each in seconds]
    ranks = [int(run.get("ranks", 1)) for run in runs]
    scores = [view.score["seconds"] for view in views if view.score and view.score.get("seconds")]
    memory = [run["peak_memory_bytes"] for run in runs if run.get("peak_memory_bytes")]
    return {
        **{"experiment": views[0].experiment, "stage": views[0].stage, "seeds": len(views)},
        "params": runs[0].get("num_params"),
        "steps": over_seeds(run.get("steps_done") for run in runs)["value"],
        "batch": views[0].setting("train.batch_size"),
        "devices": "; ".join(distinct(str(run.get("device", NONE)) for run in runs)),
        "ranks": max(ranks),
        **over_seeds(hours, "hours"),
        **over_seeds((view.final("perf/examples_per_second") for view in views), "rate"),
        "memory_gib": max(memory) / 2**30 if memory else None,
        "device_hours": sum(h * n for h, n in zip(hours, ranks, strict=True) if h is not None),
        "evaluation_hours": sum(scores) / 3600 if scores else None,
        "gflop_of_answer": _searched(views),
    }


def _searched(views: Sequence[RunView]) -> float | None:
    """Return the GFLOP of an answer with the most steps of latent search."""
    found = [(v.refinement or {}).get("methods", {}).get("search", {}) for v in views]
    last = [by_steps[max(by_steps, key=int)] for by_steps in found if by_steps]
    answers = sum(one["answers"] for one in last)
    return sum(one["gflop"] for one in last) / answers if answers else None


def _total(table: pd.DataFrame) -> tuple[str, ...]:
    if table.empty:
        return ()
    runs, hours = int(table["seeds"].sum()), float(table["device_hours"].sum())
    evaluations = float(table["evaluation_hours"].fillna(0).sum())
    return (
        f"In all {runs} runs: {hours:.3g} device hours, {evaluations:.3g} hours of evaluation.",
    )
