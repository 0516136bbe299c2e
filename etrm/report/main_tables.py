"""The tables `trm` and `etrm`: the baseline with its ladder, and the encoders, as a paper has them.

Both are rows of the table `results`, with the columns that a paper shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.config.compare import changes, summary
from etrm.report.comparisons import METHODS, paired, render_p
from etrm.report.estimates import by_experiment, changed_keys, settings
from etrm.report.formats import NONE, Table, number, points
from etrm.report.published import ARC1, find
from etrm.report.published import value_text as published_text
from etrm.report.run_view import RunView, asked
from etrm.report.tables import SHUFFLED, TEXT, results

ETRM_COLUMNS = (
    *("Experiment", "Context", "Seeds", "Parameters", "Train exact match"),
    *("Validation exact match", "pass@1", "pass@2", SHUFFLED, "Status"),
)
TRM_COLUMNS = (
    *("Experiment", "Split", "Seeds", "Parameters", "Train exact match"),
    *("pass@1", "pass@2"),
)
CHANGE, GAIN = "Change", "Difference in pass@1, points"


def etrm(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the results of the experiments with an encoder; the `baseline` is marked."""
    table = results([view for view in views if not view.is_trm], baseline)
    shown = [name for name in ETRM_COLUMNS if name in table.text]
    return Table(table.numbers, table.text[shown], table.notes)


def trm(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the results of TRM, what each rung changes and what that does, and published scores.

    A rung is compared with the TRM experiment above it, of the same split and sources, that differs
    from it in the fewest keys, the nearest of these.
    """
    table = results([view for view in views if view.is_trm], baseline)
    rungs = pd.DataFrame(_rungs(views), columns=RUNG_COLUMNS)
    numbers = table.numbers.merge(rungs, on="experiment", how="left")
    columns = {name: TEXT[name] for name in TRM_COLUMNS}
    columns |= {CHANGE: number("change", "s"), GAIN: points("difference")}
    text = Table.of(numbers, {**columns, "p": lambda row: render_p(row["p"])}).text
    known = set(rungs["method"].dropna())
    notes = [words for method, words in METHODS.items() if method in known]
    if notes:
        notes.insert(0, "Change and difference: from the experiment that the change names.")
    text = pd.concat([text, _published(list(text.columns))], ignore_index=True)
    notes.append("Rows that are marked as published are no runs of this study.")
    return Table(numbers, text, (*table.notes, *notes))


RUNG_COLUMNS = (
    "experiment",
    *("compared_with", "change", "difference", "difference_low", "difference_high", "p", "method"),
)


def _rungs(views: Sequence[RunView]) -> list[dict[str, Any]]:
    runs = {name: mine for name, mine in by_experiment(views).items() if mine[0].is_trm}
    rows: list[dict[str, Any]] = []
    before: list[str] = []
    for name, mine in runs.items():
        if mine[0].only_initialises:
            continue
        if above := [name for name in before if asked(runs[name][0]) == asked(mine[0])]:
            # Of the same number of keys, the last: a ladder goes on from the rung before.
            near = min(reversed(above), key=lambda n: len(changed_keys(mine[0], runs[n][0])))
            found = summary(changes(settings(mine[0]), settings(runs[near][0])))
            row = {"experiment": name, "compared_with": near}
            rows.append(row | {"change": f"from {near}: " + "; ".join(found or ["nothing"])})
            pair = paired(mine, runs[near], 1)
            rows[-1] |= {key: pair.get(key) for key in RUNG_COLUMNS[3:]}
        before.append(name)
    return rows


def _published(columns: list[str]) -> pd.DataFrame:
    rows = []
    for each in [p for k in (1, 2) for p in find(f"pass@{k}", ARC1, "transductive")]:
        row = dict.fromkeys(columns, NONE) | {each.metric: published_text(each)}
        name = f"{each.name} (published, {each.source})"
        rows.append(row | {"Experiment": name, "Split": "transductive: evaluation demos seen"})
    return pd.DataFrame(rows, columns=columns)
