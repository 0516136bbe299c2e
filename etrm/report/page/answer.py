"""The answer of a study in sentences: scores of its encoders on held-out tasks, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from etrm.report.comparisons import RULE, comparisons_table, render_p
from etrm.report.experiment_record import PASSING_TEST
from etrm.report.formats import number_of, percent, points
from etrm.report.run_view import RunView, asked, gate_counts
from etrm.report.tables import ATTEMPTS, results_table

_IN_WORDS = {1: "one attempt", 2: "two attempts"}


def answer(views: Sequence[RunView], baseline: str | None = None) -> list[str]:
    """Return the answer as Markdown, one sentence or two a line, the answer itself first.

    It is about one encoder that has seen no held-out task: the best on validation tasks, for the
    best of many on test is too good. Only where they were not validated is it the best on test.
    Runs on other sources of tasks than the baseline's answer another question: they come last.
    """
    groups: dict[tuple[str, ...] | None, list[RunView]] = {}
    for view in sorted(views, key=lambda view: view.experiment != baseline):
        groups.setdefault(asked(view)[1], []).append(view)
    scored = [(sources, of) for sources, of in groups.items() if any(v.score for v in of)]
    (_, first), *others = scored or [(None, list(views))]
    lines = _of_tasks(first, views, baseline)
    for sources, of in others:
        named = ", ".join(f"`{name}`" for name in sources or ())
        lines.append(f"With tasks of {named}: {' '.join(_of_tasks(of, views, baseline))}")
    return lines


def _of_tasks(
    views: Sequence[RunView], every: Sequence[RunView], baseline: str | None
) -> list[str]:
    """Return the answer of runs on the same sources; p-values are corrected over `every` run."""
    table = results_table(views)
    k = max((k for k in ATTEMPTS if table[_score(k)].notna().any()), default=ATTEMPTS[-1])
    scored = table[table[_score(k)].notna()]
    encoders = scored[(scored["kind"] == "etrm") & (scored["held_out"] != "seen")]
    if encoders.empty:
        lines = [f"No encoder has a score on held-out tasks yet. {_gates(views)}"]
    else:
        row, chosen = _lead(encoders, k)
        lines = [_sentence(row, k), _bar(row) + chosen]
        lines += _compared(every, str(row["experiment"]), baseline, k)
    return [*lines, *(_yardstick(row, k) for _, row in scored[scored["kind"] == "trm"].iterrows())]


def _score(k: int) -> str:
    return f"pass@{k}_{RULE}"


def _lead(encoders: pd.DataFrame, k: int) -> tuple[pd.Series, str]:
    """Return the row that the answer is about, and a sentence that says how it was chosen."""
    if len(encoders) == 1:
        return encoders.iloc[0], ""
    validated = encoders[encoders["validation_exact"].notna()]
    if len(validated):
        among, by, on = validated, "validation_exact", "validation tasks"
    else:
        among, by, on = encoders, _score(k), "these very tasks: the best of many is too good"
    best = among.iloc[int(among[by].astype(float).argmax())]
    return best, f" It is the best of {number_of(len(among), 'encoder')} on {on}."


def _share(row: pd.Series, k: int) -> str:
    """Return `5.0 % of 20 held-out tasks in two attempts`."""
    tasks = f"{row[f'{_score(k)}_denominator']:.0f} held-out tasks"
    return f"{percent(row[_score(k)])} of {tasks} in {_IN_WORDS[k]}"


def _interval(row: pd.Series, k: int) -> str:
    """Return the interval and the seeds, in brackets; of partial scores and subsets that too."""
    parts = [number_of(int(row["seeds"]), "seed")]
    if pd.notna(row[f"{_score(k)}_low"]):
        low, high = (percent(row[f"{_score(k)}_{end}"]) for end in ("low", "high"))
        parts.insert(0, f"95 % interval {low} to {high}")
    if row["status"] != "evaluated":
        parts.append(str(row["status"]))
    return f"({'; '.join(parts)})"


def _sentence(row: pd.Series, k: int) -> str:
    no = "No held-out task is answered: " if not row[_score(k)] else ""
    text = f"{no}`{row['experiment']}` answers **{_share(row, k)}** {_interval(row, k)}."
    if row["held_out"] == "not proven":
        text += " That these tasks were unseen is not proven."
    return text


def _bar(row: pd.Series) -> str:
    """Judge the exact match of single answers by the experiment guide's criterion 2."""
    if pd.isna(row["test_exact"]):
        return "Its exact match of single answers is unknown."
    side = "reaches" if row["test_exact"] >= PASSING_TEST else "is below"
    return (
        f"Its exact match of single answers, {percent(row['test_exact'])}, {side} the experiment"
        f" guide's bar for generalisation, {percent(PASSING_TEST)}."
    )


def _compared(views: Sequence[RunView], experiment: str, baseline: str | None, k: int) -> list[str]:
    """Say how it differs from the baseline, paired over tasks."""
    if experiment == baseline:
        return [f"`{baseline}` is the baseline of this study's comparisons."]
    table = comparisons_table(views, baseline)
    for _, row in table[(table["experiment"] == experiment) & (table["attempts"] == k)].iterrows():
        against = f"Against the baseline `{baseline}`"
        if pd.isna(row["difference"]):
            return [f"{against}: no comparison ({row['status']})."]
        numbers = f"{points('difference')(row)} points, corrected p {render_p(row['p_holm'])}"
        return [f"{against} ({percent(row['baseline_pass'])}): {numbers}: {row['status']}."]
    return []


def _yardstick(row: pd.Series, k: int) -> str:
    text = f"TRM, `{row['experiment']}`, answers {_share(row, k)} {_interval(row, k)}"
    if row["held_out"] == "seen":
        return f"{text}: a yardstick, for its embeddings were trained on the demos of these tasks."
    return f"{text}."


def _gates(views: Sequence[RunView]) -> str:
    passed, judged = gate_counts(views)
    return f"{passed} of {number_of(judged, 'overfit run')} passed the gate." if judged else ""


def facts(views: Sequence[RunView]) -> list[tuple[str, Any]]:
    """Return numbers that say how large the study is, with their labels."""
    passed, judged = gate_counts(views)
    scores = [view.score for view in views if view.score is not None]
    found: list[tuple[str, Any]] = [
        ("experiments", len({view.experiment for view in views})),
        ("finished runs", len(views)),
    ]
    if judged:
        found.append(("passed the gate", f"{passed} of {judged}"))
    if scores:
        found.append(("held-out tasks", max(score["tasks_asked"] for score in scores)))
    return found
