"""The table of comparisons: every experiment against the study's baseline, paired over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from etrm.evaluation.statistics import difference_p_value, holm
from etrm.report.estimates import RULE, paired_credits, paired_difference
from etrm.report.formats import MARK, NONE, SURVIVORS, Columns, Table, number, percent, points
from etrm.report.run_view import RunView, asked, by_name, distinct, gate_counts
from etrm.report.tables import ATTEMPTS, outcome

SIGNIFICANT = 0.05  # of the corrected p-value
OVER_TASKS = "Newcombe's method 10, exact sign-flip test (McNemar's)"
OVER_SEEDS = f"{OVER_TASKS}, Student's t"
METHODS = {
    OVER_TASKS: f"One seed of either: {OVER_TASKS} over tasks; about these runs, not about others.",
    OVER_SEEDS: f"Several seeds of both: {OVER_TASKS} over tasks, Student's t over seeds and tasks;"
    " the wider interval and the larger p count.",
}
COLUMNS = (
    "experiment baseline attempts rule seeds baseline_seeds gate_passed gate_seeds tasks"
    " pass baseline_pass difference difference_low difference_high p p_holm family method status"
)


def _of_survivors(row: pd.Series) -> bool:
    return bool(row["seeds"] and row["gate_passed"] < row["gate_seeds"])


def _mark(row: pd.Series) -> str:
    return MARK if pd.notna(row["pass"]) and _of_survivors(row) else ""


def _seeds(row: pd.Series) -> str:
    ours = f"{row['seeds']} of {row['gate_seeds']}" if _of_survivors(row) else str(row["seeds"])
    return f"{ours} against {row['baseline_seeds']}"


def render_p(value: float | None) -> str:
    """Render a p-value to three digits."""
    if value is None or np.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


TEXT: Columns = {
    "Experiment": "experiment",
    "Attempts": lambda row: f"pass@{row['attempts']}",
    "Seeds": _seeds,
    "Tasks": number("tasks", ".0f"),
    "Score": lambda row: percent(row["pass"]) + _mark(row),
    "Baseline": lambda row: percent(row["baseline_pass"]),
    "Difference, points": points("difference"),
    "p": lambda row: render_p(row["p"]),
    "p, corrected": lambda row: render_p(row["p_holm"]),
    "Status": "status",
}


def comparisons(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the difference of each experiment's pass@k from that of the `baseline`.

    One row for each experiment of the baseline's split and each of `ATTEMPTS`. The p-values of all
    experiments at one k are a family (Holm). A row without a difference says why in its status.
    """
    numbers = comparisons_table(views, baseline)
    return Table.of(numbers, TEXT, _notes(views, baseline, numbers))


def comparisons_table(views: Sequence[RunView], baseline: str | None) -> pd.DataFrame:
    """Return the comparisons as numbers: fractions from 0 to 1, differences from -1 to 1."""
    runs = by_name(views)
    runs = {n: runs[n] for n in by_name(view for view in views if not view.only_initialises)}
    theirs = runs.pop(baseline or "", [])
    rows = []
    for k in ATTEMPTS:
        family = []
        for mine in runs.values():
            if theirs and asked(mine[0]) == asked(theirs[0]):
                family.append(paired(mine, theirs, k))
        tested = [row for row in family if row["p"] is not None]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            side = "better" if row["difference"] > 0 else "worse"
            words = "no difference shown" if p >= SIGNIFICANT else f"{side} than the baseline"
            row |= {"p_holm": p, "family": len(tested), "status": words + row["status"]}
        rows += family
    return pd.DataFrame(rows, columns=COLUMNS.split())


def paired(mine: Sequence[RunView], theirs: Sequence[RunView], k: int) -> dict[str, Any]:
    """Return the difference of pass@k of two sets of runs, over the same tasks.

    Without a difference where one has no score or other tasks; `status` then says why.
    """
    scored = [[v for v in views if v.score is not None] for views in (mine, theirs)]
    passed, judged = gate_counts(mine)
    row: dict[str, Any] = {
        **{"experiment": mine[0].experiment, "baseline": theirs[0].experiment},
        **{"attempts": k, "rule": RULE, "p": None},
        **{"seeds": len(scored[0]), "baseline_seeds": len(scored[1])},
        **{"gate_passed": passed, "gate_seeds": judged},
    }
    if not all(scored):
        of, whose = (mine, "") if scored[1] else (theirs, "the baseline is ")
        return row | {"status": whose + "; ".join(distinct(outcome(v) for v in of))}
    if (credits := paired_credits(mine, theirs, k)) is None:
        return row | {"status": "not the same tasks as the baseline's"}
    a, b = credits
    found = paired_difference(a, b)
    partial = any(v.score and v.score["partial"] for v in (*scored[0], *scored[1]))
    return row | {
        **{"tasks": found.tasks, "pass": float(a.mean()), "baseline_pass": float(b.mean())},
        **found.row("difference"),
        **{"p": difference_p_value(a, b), "status": "; partial" * partial},
        "method": OVER_TASKS if found.seeds == 1 else OVER_SEEDS,
    }


def _notes(views: Sequence[RunView], baseline: str | None, table: pd.DataFrame) -> tuple[str, ...]:
    if baseline is None:
        return ("No comparisons: the study names no baseline.",)
    of_baseline = {asked(v) for v in views if v.experiment == baseline}
    others = distinct(v.experiment for v in views if asked(v) not in of_baseline)
    if not of_baseline:
        return (f"No comparisons: no run of the baseline {baseline} has finished.",)
    notes = [f"Against {baseline}, paired over tasks; brackets are 95 % intervals."]
    notes += [words for method, words in METHODS.items() if method in set(table["method"])]
    if table["family"].notna().any():
        size = int(table["family"].max())
        notes.append(f"p corrected by Holm's method over the {size} experiments of each pass@k.")
    if others:
        notes.append(
            f"Left out, since they have another split or other sources: {', '.join(others)}."
        )
    if any(_of_survivors(row) for _, row in table.iterrows()):
        notes.append(SURVIVORS)
    return tuple(notes)
