"""The table `ablations`: what each experiment changes of the baseline, and what that does.

Experiments that are no finalists have no score on held-out tasks: theirs is the difference in exact
match on validation tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.config.compare import ORDER, changes, summary
from etrm.report.collapse import train_exact
from etrm.report.estimates import (
    PAIRED,
    STUDENT,
    UNPAIRED,
    bracketed,
    by_experiment,
    changed_keys,
    in_points,
    over_seeds,
    score_difference,
    settings,
    validation_difference,
)
from etrm.report.formats import NONE, Table
from etrm.report.run_view import RunView, asked, gate_counts
from etrm.report.tables import outcome

COLUMNS = (
    "experiment changed change seeds gate_passed gate_seeds overfit_exact overfit_exact_low"
    " overfit_exact_high train_exact train_exact_low train_exact_high validation_tasks validation"
    " validation_low validation_high tasks pass@1 pass@1_low pass@1_high status"
)
DIFFERENCES = {"pass@1": "tasks", "validation": "validation_tasks"}  # and their denominators


def ablations(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return what the experiments with an encoder change of the `baseline`, fewest keys first."""
    numbers = ablations_table(views, baseline)
    return Table(numbers, rendered(numbers), _notes(numbers, baseline))


def ablations_table(views: Sequence[RunView], baseline: str | None) -> pd.DataFrame:
    """Return a row for each other experiment with an encoder, of the same split and sources."""
    runs = {name: mine for name, mine in by_experiment(views).items() if not mine[0].is_trm}
    theirs = runs.pop(baseline or "", [])
    rows = []
    alike = {
        name: mine for name, mine in runs.items() if theirs and asked(mine[0]) == asked(theirs[0])
    }
    for name, mine in alike.items():
        same = by_experiment(views, mine[0].stage).get(baseline or "", theirs)[0]  # of its stage
        rows.append(_row(name, views, mine, theirs, same))
    rows.sort(key=lambda row: (row["changed"].count(" "), _rank(row["changed"])))
    return pd.DataFrame(rows, columns=COLUMNS.split())


def _row(
    name: str,
    views: Sequence[RunView],
    mine: Sequence[RunView],
    theirs: Sequence[RunView],
    same: RunView,
) -> dict[str, Any]:
    ours = [view for view in views if view.experiment == name]
    passed, judged = gate_counts(ours)
    keys = changed_keys(mine[0], same)
    pairs = [each for each in changes(settings(mine[0]), settings(same)) if each[0] in keys]
    verdicts = [view.verdict["exact_accuracy"] for view in ours if view.verdict is not None]
    row: dict[str, Any] = {
        **{"experiment": name, "changed": " ".join(keys), "seeds": len(mine)},
        "change": "; ".join(summary(pairs)) or "nothing",
        **{"gate_passed": passed, "gate_seeds": judged},
        **over_seeds(verdicts, "overfit_exact", share=True),
        **over_seeds((train_exact(view) for view in mine), "train_exact", share=True),
        "status": "; ".join(dict.fromkeys(outcome(view) for view in mine)),
    }
    found = (score_difference(mine, theirs), validation_difference(mine, theirs))
    for name, tasks, each in zip(DIFFERENCES, DIFFERENCES.values(), found, strict=True):
        if each is not None:
            row |= {tasks: each.tasks, name: each.value}
            row |= {f"{name}_low": each.low, f"{name}_high": each.high}
    return row


def _rank(changed: str) -> int:
    block = changed.partition(".")[0]
    return ORDER.index(block) if block in ORDER else len(ORDER)


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, with column names for people."""
    rows = [row for _, row in table.iterrows()]
    return pd.DataFrame(
        {
            "Change of the baseline": [str(row["change"]) for row in rows],
            "Experiment": [str(row["experiment"]) for row in rows],
            "Seeds": [str(row["seeds"]) for row in rows],
            "Gate": [f"{row['gate_passed']} of {row['gate_seeds']} passed" for row in rows],
            "Overfit exact match": [bracketed(row, "overfit_exact") for row in rows],
            "Train exact match": [bracketed(row, "train_exact") for row in rows],
            "Validation, points": [_points(row, "validation") for row in rows],
            "pass@1, points": [_points(row, "pass@1") for row in rows],
            "Status": [str(row["status"]) for row in rows],
        }
    )


def _points(row: pd.Series, name: str) -> str:
    """Render `+2.3 [−0.1, +4.8] (of 400)`."""
    shown = in_points(row[name], row[f"{name}_low"], row[f"{name}_high"])
    return shown if shown == NONE else f"{shown} (of {row[DIFFERENCES[name]]:.0f})"


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
