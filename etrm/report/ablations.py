"""The table `ablations`: what each experiment changes of the baseline, and what that does.

Experiments that are no finalists have no score on held-out tasks: theirs is the difference in exact
match on validation tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.config.compare import ORDER, changes, summary
from etrm.report.estimates import (
    PAIRED,
    STUDENT,
    UNPAIRED,
    by_experiment,
    changed_keys,
    over_seeds,
    score_difference,
    settings,
    validation_difference,
)
from etrm.report.formats import Columns, Table, interval, points
from etrm.report.run_view import RunView, asked, distinct, gate_counts
from etrm.report.tables import outcome

COLUMNS = (
    "experiment changed change seeds gate_passed gate_seeds overfit_exact overfit_exact_low"
    " overfit_exact_high train_exact train_exact_low train_exact_high validation_tasks validation"
    " validation_low validation_high tasks pass@1 pass@1_low pass@1_high status"
)
TEXT: Columns = {
    "Change of the baseline": "change",
    "Experiment": "experiment",
    "Seeds": "seeds",
    "Gate": lambda row: f"{row['gate_passed']} of {row['gate_seeds']} passed",
    "Overfit exact match": interval("overfit_exact"),
    "Train exact match": interval("train_exact"),
    "Validation, points": points("validation", "validation_tasks"),
    "pass@1, points": points("pass@1", "tasks"),
    "Status": "status",
}


def ablations(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return what the experiments with an encoder change of the `baseline`, fewest keys first.

    A row for each other experiment of the same split and sources.
    """
    runs = {name: mine for name, mine in by_experiment(views).items() if not mine[0].is_trm}
    theirs = runs.pop(baseline or "", [])
    rows = []
    for mine in runs.values():
        if theirs and asked(mine[0]) == asked(theirs[0]):
            same = by_experiment(views, mine[0].stage).get(baseline or "", theirs)[
                0
            ]  # of its stage
            rows.append(_row(views, mine, theirs, same))
    rows.sort(key=lambda row: (row["changed"].count(" "), _rank(row["changed"])))
    numbers = pd.DataFrame(rows, columns=COLUMNS.split())
    return Table.of(numbers, TEXT, _notes(numbers, baseline))


def _row(
    views: Sequence[RunView], mine: Sequence[RunView], theirs: Sequence[RunView], same: RunView
) -> dict[str, Any]:
    name, keys = mine[0].experiment, changed_keys(mine[0], same)
    ours = [view for view in views if view.experiment == name]
    passed, judged = gate_counts(ours)
    pairs = [each for each in changes(settings(mine[0]), settings(same)) if each[0] in keys]
    verdicts = [view.verdict["exact_accuracy"] for view in ours if view.verdict is not None]
    row: dict[str, Any] = {
        **{"experiment": name, "changed": " ".join(keys), "seeds": len(mine)},
        "change": "; ".join(summary(pairs)) or "nothing",
        **{"gate_passed": passed, "gate_seeds": judged},
        **over_seeds(verdicts, "overfit_exact", share=True),
        **over_seeds((view.train_exact for view in mine), "train_exact", share=True),
        "status": "; ".join(distinct(outcome(view) for view in mine)),
    }
    if (scored := score_difference(mine, theirs)) is not None:
        row |= scored.row("pass@1")
    if (validated := validation_difference(mine, theirs)) is not None:
        row |= validated.row("validation", "validation_tasks")
    return row


def _rank(changed: str) -> int:
    block = changed.partition(".")[0]
    return ORDER.index(block) if block in ORDER else len(ORDER)


def _notes(table: pd.DataFrame, baseline: str | None) -> tuple[str, ...]:
    if table.empty:
        named = f"no run of {baseline} and of another experiment has finished"
        return (f"No ablations: {named if baseline else 'the study names no baseline'}.",)
    return (
        f"Of {baseline}'s split and sources alone. Points: differences from it, of so many tasks."
        f" Brackets are 95 % intervals: of exact match by {STUDENT} (none of a single seed); of the"
        " difference in validation by"
        f" {UNPAIRED}; of that in pass@1 by {PAIRED}.",
        "Where a gate has stopped seeds, train exact match and differences are of the others alone."
        " No difference is corrected for the number of experiments; the comparisons are.",
    )
