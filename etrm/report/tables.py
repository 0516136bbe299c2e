"""The results table: one row per experiment and stage, numbers first, their rendering apart.

`results_table` gives numbers (fractions from 0 to 1, counts), for the CSV; `rendered` gives them as
text, which Markdown, LaTeX, HTML and the terminal show as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from etrm.evaluation.pass_at_k import CREDIT_RULES, INTERVAL
from etrm.evaluation.statistics import share_interval
from etrm.report.estimates import score_of
from etrm.report.formats import (
    LAST_COLUMN,
    MARK,
    NONE,
    SURVIVORS,
    TERMINAL_WIDTH,
    Columns,
    Table,
    interval,
    number,
    percent,
    to_terminal,
)
from etrm.report.run_view import STAGES, RunView, by_name, distinct, gate_counts
from etrm.runtime.terminal import cut

ATTEMPTS = (1, 2)
OVER_SEEDS = f"{INTERVAL} at the effective number of tasks (Korn-Graubard)"
# Means over seeds that are shown with the lowest and the highest seed.
SPREADS = ("overfit_exact", "train_exact", "test_exact", "test_token_accuracy", "shuffled_pass@1")
SHUFFLED = "pass@1, demos of other tasks"
# Words for a split and the held-out claim of the score; without a score, the split stands alone.
_SPLITS = {
    ("strict", "proven"): "strict: held out",
    ("strict", "not proven"): "strict, held-out: not proven",
    ("strict", "seen"): "strict, {seen:.0f} of {of:.0f} held-out tasks seen",
    ("transductive", "proven"): "transductive: no held-out task seen",
    ("transductive", "not proven"): "transductive, held-out: not proven",
    ("transductive", "seen"): "transductive: evaluation demos seen",
}


def results(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the results table; the row of the `baseline` says that it is."""
    numbers = results_table(views)
    if baseline is not None:
        numbers.loc[numbers["experiment"] == baseline, "status"] += "; baseline"
    return Table(numbers, rendered(numbers), _notes(numbers))


def results_table(views: Sequence[RunView]) -> pd.DataFrame:
    """Return one row per experiment and stage, in the order of `views`, over its seeds.

    A row holds the seeds that got so far: `pretrain` and `full` those whose run is there, `overfit`
    those without a full run, because they were stopped or because it has not finished. Each m of
    `SPREADS` is a mean over seeds, with `m_min` and `m_max` from two seeds on. pass@k, by both
    credit rules, and `validation_exact` have `_low`, `_high` (95 % interval) and `_method`; pass@k
    also the `_numerators` of all seeds, in their order, and the `_denominator`. `gate_passed` of
    `gate_seeds` are of the whole experiment; a row of `full` is a mean over those that passed.
    Absent numbers are missing.
    """
    rows = []
    for mine in by_name(views).values():
        of = {stage: [view for view in mine if view.stage == stage] for stage in STAGES}
        finished = {view.seed for view in of["full"]}  # seeds
        waiting = [view for view in of["overfit"] if view.seed not in finished]
        passed = [view for view in of["overfit"] if view.seed in finished]
        for group, overfit in ((of["pretrain"], []), (of["full"], passed), (waiting, waiting)):
            if group:
                rows.append(_row(group, overfit, gate_counts(mine)))
    table = pd.DataFrame(rows, columns=_columns())
    # A number that was looked at often is no longer one of unseen tasks.
    table["scored_on_test"] = len(distinct(v.experiment for v in views if v.score is not None))
    return table


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results table as text, with column names for people."""
    text = Table.of(table, TEXT).text
    return text if table["shuffled_pass@1"].notna().any() else text.drop(columns=SHUFFLED)


def to_text(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """Return the results for a terminal.

    Where they do not fit the `width`, those beside pass@1 are words in the last column.
    """
    text = brief(table)
    if _least_width(text) > width:
        text = _narrow(text)
        names = text["Experiment"]
        room = max(map(len, names), default=0) - max(0, _least_width(text) - width)
        text["Experiment"] = [cut(name, max(room, len("Experiment"))) for name in names]
    exact = "Overfit, train, valid.: exact match."
    return to_terminal(Table(table.numbers, text, (exact, *table.notes)), width)


def _least_width(text: pd.DataFrame) -> int:
    """Return the columns of a terminal that a table needs, whose last column is wrapped."""
    return sum(max(map(len, (name, *text[name]))) + 2 for name in text.columns[:-1]) + LAST_COLUMN


def _narrow(text: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a terminal with all but pass@1 in the last one, in words."""
    names = ("pass@2 %", "Valid. %", "Train %", "Overfit %", "Seeds")
    beside = [name for name in names if name in text]
    words = [
        ", ".join(
            [row["Split"], row["Status"]]
            + [f"{n.rstrip(' %').lower()} {row[n]}" for n in beside if row[n] not in (NONE, "1")]
        )
        for _, row in text.iterrows()
    ]
    left = [name for name in ("Experiment", "Stage", "pass@1 %") if name in text]
    return text[left].assign(**{"Beside it": words})


def brief(table: Table) -> pd.DataFrame:
    """Return of the results the columns that decide, as text, without seeds one by one."""
    columns: Columns = {
        **{"Experiment": "experiment", "Stage": "stage", "Seeds": _seeds, "Status": "status"},
        "Split": lambda row: _split(row, brief=True),
        "Overfit %": lambda row: _percent(row, "overfit_exact"),
        "Train %": lambda row: _percent(row, "train_exact"),
        "Valid. %": lambda row: _percent(row, "validation_exact"),
        "pass@1 %": interval("pass@1_task_fraction", mark=_mark),
        "pass@2 %": interval("pass@2_task_fraction", mark=_mark),
    }
    text = Table.of(table.numbers, columns).text
    shares = [title for title in columns if title.endswith(" %")]
    text[shares] = text[shares].map(lambda cell: cell.replace(" %", ""))
    shown = [title for title in shares if text.empty or set(text[title]) != {NONE}]
    return text[["Experiment", "Stage", "Split", "Seeds", *shown, "Status"]]


def outcome(view: RunView) -> str:
    """Return how far the run got, in words; of a stopped one, its findings and numbers."""
    verdict, score = view.verdict, view.score
    if score is not None:
        if view.run.get("stopped_early") == "divergence":
            return "stopped: divergence"
        asked, every = score["tasks_asked"], score.get("tasks_of_split", score["tasks_asked"])
        words = [f"partial: {score['tasks_evaluated']} of {asked} tasks"] * score["partial"]
        words += [f"subset: {asked} of {every} tasks"] * (asked < every)
        return ", ".join(words) or "evaluated"
    if verdict is not None and not verdict["passed"]:
        failed = [f["finding"] for f in verdict["diagnosis"] if f["severity"] == "fail"]
        exact, threshold = verdict["exact_accuracy"], verdict["threshold"]
        sign = "<" if exact < threshold else "≥"  # at or above it, a finding alone has stopped it
        compared = f"exact match {100 * exact:.1f} % {sign} {100 * threshold:g} %"
        return "stopped: " + ", ".join([*distinct(failed), compared])
    if view.stopped:
        return f"stopped: {view.run['stopped_early']}"
    if view.stage == "overfit":
        return "not judged" if verdict is None else "passed"
    if view.only_initialises:
        return "initialises decoders"
    return "not evaluated" if view.finalist else "not a finalist: not evaluated on test"


def _columns() -> list[str]:
    fixed = (
        "experiment stage kind context split held_out held_out_seen held_out_answers held_out_of"
        " seeds params status gate_passed gate_seeds gate_threshold"
    )
    spreads = [f"{name}{part}" for name in SPREADS for part in ("", "_min", "_max")]
    limits = ("_low", "_high", "_method")
    validation = [f"validation_exact{part}" for part in ("", *limits)]
    parts = ("", "_numerators", "_denominator", *limits)
    passes = [f"pass@{k}_{rule}{part}" for k in ATTEMPTS for rule in CREDIT_RULES for part in parts]
    counts = "tasks tasks_of_split tasks_evaluated partial subset variants scored_on_test"
    return [*fixed.split(), *spreads, *validation, *passes, *counts.split()]


def _row(
    views: Sequence[RunView], overfit: Sequence[RunView], gate: tuple[int, int]
) -> dict[str, Any]:
    first = views[0]
    verdicts = [view.verdict for view in overfit if view.verdict is not None]
    scores = [view.score for view in views if view.score is not None]
    held_out = [score["held_out"] for score in scores]
    claims = {one["status"] for one in held_out}
    claims |= {"not proven" for view in views if view.run["unproven"]}
    shown = distinct(outcome(view) for view in views)
    row: dict[str, Any] = {
        "experiment": first.experiment,
        "stage": first.stage,
        "kind": first.run["kind"],
        "context": first.source,
        "split": first.run["split"],
        # The weakest claim of any seed, and the most that any of them has seen.
        "held_out": next((c for c in ("seen", "not proven", "proven") if c in claims), None),
        **{f"held_out_{key}": _extreme(max, held_out, key) for key in ("seen", "answers", "of")},
        "seeds": len(views),
        "params": first.run.get("num_params"),
        # An overfit run that passed has a row only while its full run is missing.
        "status": "; ".join(
            "passed, full run not finished" if words == "passed" else words for words in shown
        ),
        "gate_threshold": verdicts[0]["threshold"] if verdicts else None,
        **_spread("overfit_exact", [verdict["exact_accuracy"] for verdict in verdicts]),
        **_spread("train_exact", [view.train_exact for view in views]),
        **_spread("test_exact", [view.test_metric("all.exact_accuracy") for view in views]),
        **_spread("test_token_accuracy", [view.test_metric("all.accuracy") for view in views]),
        **_spread("shuffled_pass@1", [_shuffled(view) for view in views]),
        **_validation(views),
        **{key: _extreme(min, scores, key) for key in ("tasks_evaluated", "variants")},
        "tasks": _extreme(min, scores, "tasks_asked"),
        "tasks_of_split": _extreme(max, scores, "tasks_of_split"),
        "partial": any(score["partial"] for score in scores) if scores else None,
    }
    if scores:
        row["subset"] = row["tasks"] < row["tasks_of_split"]
    if verdicts:
        row["gate_passed"], row["gate_seeds"] = gate
    for k in ATTEMPTS:
        for rule in CREDIT_RULES:
            row |= _pass_numbers(views, k, rule)
    return row


def _extreme(pick: Callable[..., Any], records: Sequence[dict[str, Any]], key: str) -> Any:
    return pick((record.get(key, 0) for record in records), default=None)


def _shuffled(view: RunView) -> float | None:
    """Return pass@1 with the demos of other tasks, where it was asked for."""
    passes = ((view.score or {}).get("shuffled") or {}).get("pass", {}).get("1")
    return None if passes is None else passes["task_fraction"]["value"]


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    several = len(known) > 1
    return {
        name: float(np.mean(known)) if known else None,
        f"{name}_min": min(known) if several else None,
        f"{name}_max": max(known) if several else None,
    }


def _validation(views: Sequence[RunView]) -> dict[str, Any]:
    """Return the exact match on validation tasks, with its interval where tasks are counted.

    Variants of a task are answered alike, so that the number of tasks counts, not of answers.
    """
    name = "validation_exact"
    found = [view.last("validation.exact_accuracy") for view in views]
    shares = np.array([share for share in found if share is not None])
    if not len(shares):
        return {name: None}
    counts = [view.last("validation.tasks") for view in views]
    tasks = min((int(count) for count in counts if count), default=0)
    limits = share_interval(shares, tasks) if tasks else None
    return {name: float(shares.mean()), **_limits(name, limits, len(shares))}


def _pass_numbers(views: Sequence[RunView], k: int, rule: str) -> dict[str, Any]:
    scores = [v.score["pass"] for v in views if v.score is not None and str(k) in v.score["pass"]]
    found = [score[str(k)][rule] for score in scores]
    if not found:
        return {}
    name, values = f"pass@{k}_{rule}", [one["value"] for one in found if one["value"] is not None]
    credit = score_of(views, k, rule)
    limits = None if credit is None else (credit.low, credit.high)
    return {
        name: float(np.mean(values)) if values else None,
        f"{name}_numerators": ", ".join(f"{one['numerator']:.4g}" for one in found),
        f"{name}_denominator": min(one["denominator"] for one in found),  # the weakest
        **_limits(name, limits, len(found)),
    }


def _limits(name: str, limits: tuple[float, float] | None, seeds: int) -> dict[str, Any]:
    if limits is None:
        return {}
    method = INTERVAL if seeds == 1 else OVER_SEEDS
    return {f"{name}_low": limits[0], f"{name}_high": limits[1], f"{name}_method": method}


def _notes(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the sentences below the table: methods, marks, and who has looked at test."""
    notes = []
    methods = {m for name in table if str(name).endswith("_method") for m in table[name].dropna()}
    if methods:
        words = f"Brackets are 95 % intervals: {INTERVAL}, over tasks"
        words += f"; of several seeds {OVER_SEEDS}, over seeds and tasks" * (OVER_SEEDS in methods)
        notes.append(
            f"{words}. Parentheses are the range of the seeds, or their numerators and denominator."
        )
    if any(_of_survivors(row) for _, row in table.iterrows()):
        notes.append(SURVIVORS)
    if len(table):
        scored, every = int(table["scored_on_test"].iloc[0]), table["experiment"].nunique()
        notes.append(
            f"Looked at test: {scored} of {every} experiments have a score on the test tasks."
            " The best of many on test is too good: select by validation."
        )
    return tuple(notes)


def _of_survivors(row: pd.Series) -> bool:
    """Return whether the row is of the seeds that passed the gate, where others did not."""
    return bool(row["stage"] == "full" and row["gate_passed"] < row["gate_seeds"])


def _split(row: pd.Series, brief: bool = False) -> str:
    """Return the split with the held-out claim of the score; `brief` leaves out the usual."""
    counts = {"seen": row["held_out_seen"], "of": row["held_out_of"]}
    words = _SPLITS.get((row["split"], row["held_out"]), str(row["split"])).format(**counts)
    if brief and row["held_out"] != "not proven":
        words = words.split(":")[0]
    if pd.notna(row["held_out_answers"]) and row["held_out_answers"] > 0:
        words += f", test outputs of {row['held_out_answers']:.0f} seen"
    return words


def _seeds(row: pd.Series) -> str:
    """Render `3`, or `2 of 3` where the gate has stopped a seed."""
    return f"{row['seeds']} of {row['gate_seeds']:.0f}" if _of_survivors(row) else str(row["seeds"])


def _gate(row: pd.Series) -> str:
    if pd.isna(row["gate_seeds"]):
        return NONE
    if row["gate_seeds"] == 1:
        return "passed" if row["gate_passed"] else "stopped"
    return f"{row['gate_passed']:.0f} of {row['gate_seeds']:.0f} seeds passed"


def _tasks(row: pd.Series) -> str:
    """Render `400`, `subset: 32 of 400`, or `partial: 30 of 400`."""
    if pd.isna(row["tasks"]):
        return NONE
    words = []
    if row["partial"]:
        words.append(f"partial: {row['tasks_evaluated']:,.0f} of {row['tasks']:,.0f}")
    if row["subset"]:
        words.append(f"subset: {row['tasks']:,.0f} of {row['tasks_of_split']:,.0f}")
    return ", ".join(words) or f"{row['tasks']:,.0f}"


def _percent(row: pd.Series, name: str) -> str:
    """Render `2.3 %`, marked where it is a mean over survivors."""
    return NONE if pd.isna(row[name]) else percent(row[name]) + _mark(row)


def _mark(row: pd.Series) -> str:
    return MARK if _of_survivors(row) else ""


def _mean(row: pd.Series, name: str) -> str:
    """Render `96.0 %`, or with several seeds `96.0 % (95.0–97.0)`."""
    text = _percent(row, name)
    if pd.notna(row[f"{name}_min"]):
        text += f" ({100 * row[f'{name}_min']:.1f}–{100 * row[f'{name}_max']:.1f})"
    return text


def _pass(row: pd.Series, name: str) -> str:
    """Render `2.3 % [1.0, 4.2] (9 of 400)`, with several seeds `(9, 8, 10 of 400)`."""
    text, numerators = interval(name, mark=_mark)(row), row[f"{name}_numerators"]
    if pd.isna(numerators):
        return text
    # A CSV of single seeds has numbers.
    shown = numerators if isinstance(numerators, str) else f"{numerators:.4g}"
    partial = ", partial" if row["partial"] else ""
    return f"{text} ({shown} of {row[f'{name}_denominator']:.0f}{partial})"


TEXT: Columns = {
    "Experiment": "experiment",
    "Stage": "stage",
    "Context": "context",
    "Split": _split,
    "Seeds": _seeds,
    "Parameters": number("params", ",.0f"),
    "Overfit exact match": lambda row: _mean(row, "overfit_exact"),
    "Gate": _gate,
    "Train exact match": lambda row: _mean(row, "train_exact"),
    "Validation exact match": interval("validation_exact", mark=_mark),
    "pass@1": lambda row: _pass(row, "pass@1_task_fraction"),
    "pass@2": lambda row: _pass(row, "pass@2_task_fraction"),
    SHUFFLED: lambda row: _mean(row, "shuffled_pass@1"),
    "pass@2, all tests": lambda row: _pass(row, "pass@2_all_tests"),
    "Test exact match": lambda row: _mean(row, "test_exact"),
    "Test token accuracy": lambda row: _mean(row, "test_token_accuracy"),
    "Tasks": _tasks,
    "Variants": number("variants", ",.0f"),
    "Status": "status",
}
