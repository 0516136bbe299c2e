"""The table `selection`: experiments by their exact match on validation tasks, the best first.

Finalists, which are evaluated on held-out tasks, are chosen by it: it has no score on those tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.report.formats import Table
from etrm.report.run_view import RunView, distinct

EXACT = "validation.exact_accuracy"
COLUMNS = (
    *("experiment", "seeds", "validation_exact", "validation_exact_sd", "numerators"),
    *("questions", "train_exact", "gap", "finalist"),
)
WORDS = ("Experiment", "Seeds", "Validation exact match", "Right answers", "Train exact match")


def selection(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of selection; no experiment is compared with the `baseline`."""
    numbers = selection_table(views)
    return Table(numbers, rendered(numbers))


def selection_table(views: Sequence[RunView]) -> pd.DataFrame:
    """Return one row per experiment that was validated, from the last evaluation of each run.

    `validation_exact`, `train_exact` and `gap` are means over seeds, `validation_exact_sd` the
    sample standard deviation (from two seeds); `numerators`: right answers of each seed, of as many
    `questions` (a test input of a validation task in a variant).
    """
    validated = [view for view in views if view.last(EXACT) is not None]
    rows = []
    for name in distinct(view.experiment for view in validated):
        mine = [view for view in validated if view.experiment == name]
        exact, questions, train = (
            pd.Series([view.last(metric) for view in mine], dtype=float)
            for metric in (EXACT, "validation.count", "all.exact_accuracy")
        )
        right = (exact * questions).round().astype(int)
        row = (name, len(mine), exact.mean(), exact.std(), " ".join(map(str, right)))
        gap = train.mean() - exact.mean()
        rows.append((*row, int(questions.min()), train.mean(), gap, mine[0].finalist))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values("validation_exact", ascending=False, kind="stable", ignore_index=True)


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, with column names for people."""
    rows = [_cells(row) for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=[*WORDS, "Gap", "Finalist"])


def _cells(row: pd.Series) -> tuple[Any, ...]:
    exact, train, gap = (100 * row[key] for key in ("validation_exact", "train_exact", "gap"))
    spread = f" ± {100 * row['validation_exact_sd']:.1f}" if row["seeds"] > 1 else ""
    right = f"{', '.join(row['numerators'].split())} of {row['questions']:,}"
    shown = (f"{exact:.1f} %{spread}", right, f"{train:.1f} %", f"{gap:.1f} points")
    return row["experiment"], str(row["seeds"]), *shown, "yes" if row["finalist"] else "no"
