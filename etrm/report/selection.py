"""The table `selection`: experiments by their exact match on validation tasks, the best first.

Finalists, which are evaluated on held-out tasks, are chosen by it: it has no score on those tasks.
Where the study has `selections`, it says what these have chosen and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from etrm.report.formats import Columns, Table, percent
from etrm.report.run_view import RunView, by_name

EXACT = "validation.exact_accuracy"
COLUMNS = (
    *("experiment", "seeds", "validation_exact", "validation_exact_sd", "numerators"),
    *("questions", "train_exact", "gap", "finalist", "choices"),
)
TEXT: Columns = {
    "Experiment": "experiment",
    "Seeds": "seeds",
    "Validation exact match": lambda row: percent(row["validation_exact"]) + _spread(row),
    "Right answers": lambda row: f"{', '.join(row['numerators'].split())} of {row['questions']:,}",
    "Train exact match": lambda row: percent(row["train_exact"]),
    "Gap": lambda row: percent(row["gap"]).replace("%", "points"),
    "Finalist": lambda row: "yes" if row["finalist"] else "no",
    "Selections": "choices",
}


def selection(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of selection; no experiment is compared with the `baseline`.

    One row per experiment that was validated, from the last evaluation of each run:
    `validation_exact`, `train_exact` and `gap` are means over seeds, `validation_exact_sd` the
    sample standard deviation (from two seeds); `numerators`: right answers of each seed, of as many
    `questions` (a test input of a validation task in a variant); `choices`: its place in each
    selection, in words: points are of exact match, means over validation tasks, ± a standard error.
    """
    rows = []
    for name, mine in by_name(v for v in views if v.last(EXACT) is not None).items():
        exact, questions, train = (
            pd.Series(values, dtype=float)
            for values in zip(
                *((v.last(EXACT), v.last("validation.count"), v.train_exact) for v in mine),
                strict=True,
            )
        )
        right = (exact * questions).round().astype(int)
        row = (name, len(mine), exact.mean(), exact.std(), " ".join(map(str, right)))
        gap = train.mean() - exact.mean()
        choices = "; ".join(map(_place, mine[0].choices))
        rows.append((*row, int(questions.min()), train.mean(), gap, mine[0].finalist, choices))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order: Any = {"ascending": False, "kind": "stable", "ignore_index": True}
    return Table.of(table.sort_values("validation_exact", **order), TEXT)


def _spread(row: pd.Series) -> str:
    return f" ± {100 * row['validation_exact_sd']:.1f}" if row["seeds"] > 1 else ""


def _place(choice: Mapping[str, Any]) -> str:
    """Return `half: best (2 of 8)`, or `half: behind by 3.1 ± 1.2 points (5 of 8)`."""
    place = f"{choice['rank']} of {choice['of']}"
    if choice["why"] not in ("near tie", "behind", "over at_most"):
        return f"{choice['selection']}: {choice['why']} ({place})"
    behind = f"by {100 * choice['behind']:.1f} ± {100 * choice['error']:.1f} points"
    word = choice["why"] if choice["why"] == "behind" else f"{choice['why']}, behind"
    return f"{choice['selection']}: {word} {behind} ({place})"
