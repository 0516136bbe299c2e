"""The table `collapse`: cross-sample variance beside train accuracy, and what is free of scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.report import published
from etrm.report.estimates import OVER_TASKS, STUDENT, by_experiment, over_seeds, score_of
from etrm.report.formats import NONE, Columns, Table, interval
from etrm.report.run_view import RunView

GUIDE = ((0.1, "collapsed"), (0.3, "limited"))  # variances below these; above: diverse
BETWEEN, RANK, SWAP = (
    f"encoder/{name}" for name in ("between_task_ratio", "effective_rank", "context_swap_drop")
)
MEASURES = {
    "variance": published.VARIANCE,
    "between_task": BETWEEN,
    "rank": RANK,
    "swap_drop": SWAP,
}
NOTES = (
    f"Brackets are 95 % intervals: of measures and of train exact match by {STUDENT} (none of a"
    f" single seed), of pass@1 by {OVER_TASKS}.",
    "By the guide: cross-sample variance below 0.1 collapsed, to 0.3 limited, above diverse. It has"
    " a scale; the between-task ratio and the swap drop have none. Untrained: the ratio before the"
    " first step, its floor. Swap drop: token accuracy lost with the contexts of other tasks.",
    "Rows that are marked as published are the original ETRM's, of one run each.",
)


TEXT: Columns = {
    "Model": "experiment",
    "Stage": "stage",
    "Seeds": "seeds",
    "Cross-sample variance": interval("variance", ".3f", ""),
    "By the guide": lambda row: NONE if pd.isna(row["variance"]) else zone(row["variance"]),
    "Train exact match": interval("train_exact"),
    "pass@1": interval("pass@1", of="tasks"),
    "Between-task ratio": interval("between_task", ".2f", ""),
    "Untrained": interval("between_task_untrained", ".2f", ""),
    "Effective rank": interval("rank", ".1f", ""),
    "Swap drop": interval("swap_drop", ".2f", ""),
}


def collapse(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of collapse; no experiment is compared with the `baseline`.

    A row for each experiment with an encoder, of its last stage, then published ones.
    """
    rows = [_row(name, mine) for name, mine in by_experiment(views).items() if not mine[0].is_trm]
    for model in (published.DETERMINISTIC, published.VARIATIONAL, published.RECURRENT):
        row: dict[str, Any] = {"experiment": model, "stage": "published", "seeds": 1}
        for name, metric, benchmark in (
            ("variance", published.VARIANCE, published.TRAINING),
            ("train_exact", published.EXACT, published.TRAINING),
            ("pass@1", "pass@1", published.SUBSET),
        ):
            (number,) = (p for p in published.find(metric, benchmark) if p.name == model)
            row[name] = number.value
            if number.interval:
                row |= {f"{name}_low": number.interval[0], f"{name}_high": number.interval[1]}
                row["tasks"] = number.tasks
        rows.append(row)
    names = (*MEASURES, "between_task_untrained", "train_exact", "pass@1")
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    numbers = pd.DataFrame(rows, columns=["experiment", "stage", "seeds", *columns, "tasks"])
    return Table.of(numbers, TEXT, NOTES)


def _row(name: str, views: Sequence[RunView]) -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": name, "stage": views[0].stage, "seeds": len(views)}
    for key, metric in MEASURES.items():
        row |= over_seeds((view.final(metric) for view in views), key)
    row |= over_seeds((view.series(BETWEEN).get(0) for view in views), "between_task_untrained")
    row |= over_seeds((view.train_exact for view in views), "train_exact", share=True)
    if (score := score_of(views)) is not None:
        row |= score.row("pass@1")
    return row


def zone(variance: float) -> str:
    """Return the guide's word for a cross-sample variance."""
    return next((word for bound, word in GUIDE if variance < bound), "diverse")
