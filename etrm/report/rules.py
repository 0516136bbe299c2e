"""The table `rules`: pass@1 on generated tasks, rule by rule: what an encoder learned to read."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from etrm.evaluation.statistics import clopper_pearson
from etrm.report.formats import NONE, Table
from etrm.report.run_view import RunView, distinct

MOST = 12  # columns of text; compositions of ten rules are ninety
COLUMNS = ["experiment", "stage", "seed", "rule", "tasks", "right", "pass_at_1", "low", "high"]


def rules(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of rules; no experiment is compared with the `baseline`.

    A row of numbers for each evaluated run and rule: its held-out tasks, and those right at once.
    `right` is a sum over tasks of the share of their test outputs, `low` and `high` a 95 % interval
    (Clopper-Pearson).
    """
    rows = []
    for view in views:
        for rule, found in ((view.score or {}).get("rules") or {}).items():
            if (right := found["right"].get("1")) is None:  # of a study that asks for no pass@1
                continue
            tasks = found["tasks"]
            row = (view.experiment, view.stage, view.seed, rule, tasks, right, right / tasks)
            rows.append((*row, *clopper_pearson(right, tasks)))
    numbers = pd.DataFrame(rows, columns=COLUMNS)
    return Table(numbers, rendered(numbers), _notes(numbers))


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run and a column for each rule, the most frequent `MOST` of them."""
    shown = _shown(table)
    rows = []
    for (name, seed), own in table.groupby(["experiment", "seed"], sort=False):
        share = {r: f"{100 * p:.0f}" for r, p in zip(own["rule"], own["pass_at_1"], strict=True)}
        mean = 100 * own["right"].sum() / own["tasks"].sum()
        values = (share.get(rule, NONE) for rule in shown)
        rows.append((name, str(seed), f"{mean:.1f} %", *values))
    return pd.DataFrame(rows, columns=["Experiment", "Seed", "All rules", *shown])


def _shown(table: pd.DataFrame) -> list[str]:
    counts = table.groupby("rule")["tasks"].max()
    most = set(counts.sort_values(ascending=False, kind="stable").index[:MOST])
    return distinct(rule for rule in sorted(table["rule"]) if rule in most)


def _notes(table: pd.DataFrame) -> tuple[str, ...]:
    if table.empty:
        return ("No task that was evaluated has a known rule.",)
    notes = [
        "pass@1 in %, of held-out tasks whose rule is known; the CSV has counts and intervals."
    ]
    if (count := table["rule"].nunique()) > MOST:
        notes.append(f"The {MOST} most frequent of {count} rules; the CSV has all.")
    return tuple(notes)
