"""`etrm compare A B`: two runs or experiments beside each other, A the one compared with."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from etrm.config.compare import changes, in_words
from etrm.config.text import first_few
from etrm.report.comparisons import METHODS, RULE, paired, render_p
from etrm.report.estimates import over_seeds
from etrm.report.formats import NONE, Columns, Table, percent, points, to_terminal
from etrm.report.run_view import RunView, credits_of, distinct
from etrm.report.tables import ATTEMPTS, outcome

# The curves that are shown, of those that either has.
METRICS = (
    *("train/lm_loss", "train/accuracy", "train/exact_accuracy", "train/steps"),
    *("train/q_halt_accuracy", "all.exact_accuracy", "validation.exact_accuracy"),
    *("grad/encoder_norm", "train/encoder_cross_sample_var", "encoder/context_swap_drop"),
    "perf/examples_per_second",
)
POINTS = (0.25, 0.5, 1.0)  # of the steps that both have
# What a result is made with, beside its configuration.
MADE_WITH = (
    *("steps_done", "stopped_early", "num_params", "puzzles", "recipes_digest", "data", "init"),
    *("parents", "code_digest", "commit", "device", "ranks", "seconds", "versions"),
)
SHOWN = 6  # names of tasks


@dataclass(frozen=True)
class Side:
    """One of the two: a name, and its runs, seeds of one experiment and stage."""

    name: str
    views: Sequence[RunView]

    def settings(self) -> dict[str, Any]:
        """Return the configuration of its first run, and that of its evaluation."""
        first = self.views[0]
        config = dict(first.run.get("config", {}))
        if len(self.views) > 1:
            config.pop("seed", None)
        return config | ({"evaluation": first.score["evaluation"]} if first.score else {})

    def made_with(self) -> dict[str, Any]:
        """Return what its first run was made with."""
        run = self.views[0].run
        found = {key: run[key] for key in MADE_WITH if key in run}
        found["parents"] = [parent["key"][:16] for parent in run.get("parents", ())]
        found["init"] = (run.get("init") or {}).get("sha256")
        return found

    def last_step(self) -> int:
        """Return the last step that all its runs have logged; 0 where one has none."""
        steps = (view.metrics["step"] for view in self.views)
        return int(min(each.max() if len(each) else 0 for each in steps))

    def value(self, name: str, step: int) -> float | None:
        """Return a metric at a step, the mean over runs.

        Of training the mean over the last tenth until then, of an evaluation the last until then.
        """
        until = (replace(v, metrics=v.metrics[v.metrics["step"] <= step]) for v in self.views)
        return over_seeds(view.end(name) for view in until)["value"]


def side_by_side(a: Side, b: Side) -> dict[str, Any]:
    """Return all that differs between two sides, as JSON values; differences are B − A."""
    theirs, ours = list(a.views), list(b.views)
    rows = {f"pass@{k}": paired(ours, theirs, k) for k in ATTEMPTS}
    return {
        **{key: _described(side) for key, side in (("a", a), ("b", b))},
        "configuration": changes(b.settings(), a.settings()),
        "made_with": changes(b.made_with(), a.made_with()),
        "curves": _curves(a, b),
        "scores": {name: {k: v for k, v in row.items() if v == v} for name, row in rows.items()},
        "tasks": _tasks(a, b),
    }


def _described(side: Side) -> dict[str, Any]:
    first = side.views[0]
    return {
        "name": side.name,
        **{key: getattr(first, key) for key in ("experiment", "stage")},
        "seeds": [view.seed for view in side.views],
        "steps": side.last_step(),
        "scores": sum(view.score is not None for view in side.views),
        "status": distinct(outcome(view) for view in side.views),
    }


def _curves(a: Side, b: Side) -> list[dict[str, Any]]:
    """Return metrics at equal steps, and at the end of each side, as [A, B]."""
    ends = a.last_step(), b.last_step()
    steps = sorted({round(share * min(ends)) for share in POINTS} - {0})
    rows = []
    for name in METRICS:
        at = {str(step): [a.value(name, step), b.value(name, step)] for step in steps}
        end = [side.value(name, step) for side, step in zip((a, b), ends, strict=True)]
        if any(value is not None for value in end):
            rows.append({"metric": name, "steps": at, "end": end})
    return rows


def _tasks(a: Side, b: Side) -> dict[str, list[str]] | None:
    """Return the tasks solved at two attempts by both or by one alone, in any seed."""
    solved, asked = [], []
    for side in (a, b):
        credit = credits_of([v for v in side.views if v.score], ATTEMPTS[-1], RULE)
        if credit is None:
            return None
        asked.append(set(credit.columns))
        solved.append({str(task) for task in credit if (credit[task] == 1).any()})
    if asked[0] != asked[1]:
        return None
    first, second = solved
    parts = {"both": first & second, "only_a": first - second, "only_b": second - first}
    return {name: sorted(tasks) for name, tasks in parts.items()}


def to_text(found: dict[str, Any], width: int) -> str:
    """Return the comparison for a terminal of this width."""
    lines = [_head(letter, found[letter.lower()]) for letter in "AB"]
    for title, key in (("Configuration, A → B", "configuration"), ("Made with", "made_with")):
        lines += ["", title, *(f"  {in_words(change)}" for change in found[key])]
        lines += [] if found[key] else ["  the same"]
    lines += ["", "Training, A | B", *_curves_text(found["curves"], width)]
    lines += ["", "Scores on test tasks", *_scores_text(found, width)]
    if tasks := found["tasks"]:
        lines += [f"  Solved in {ATTEMPTS[-1]} attempts: {len(tasks['both'])} tasks by both"]
        for key, words in (("only_a", "A"), ("only_b", "B")):
            named = f" ({', '.join(first_few(tasks[key], SHOWN))})" if tasks[key] else ""
            lines[-1] += f"; {len(tasks[key])} by {words} alone{named}"
    return "\n".join(part for line in lines for part in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    indent = "    " if line.startswith(" ") else ""
    return textwrap.wrap(line, width, subsequent_indent=indent) if len(line) > width else [line]


def _head(letter: str, side: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, side["seeds"]))
    named = f"{side['experiment']} {side['stage']}, seed{'s' * (len(side['seeds']) > 1)} {seeds}"
    status = "; ".join(side["status"])
    return f"{letter}  {named}: {side['steps']:,} steps, {status}; {side['name']}"


def _curves_text(curves: Sequence[dict[str, Any]], width: int) -> list[str]:
    if not curves:
        return ["  no metrics"]
    rows = []
    for curve in curves:
        at = {f"step {step}": _pair(pair) for step, pair in curve["steps"].items()}
        rows.append({"metric": curve["metric"], **at, "end": _pair(curve["end"])})
    table = pd.DataFrame(rows)
    if len(table.columns) > 2 and (table["end"] == table.iloc[:, -2]).all():
        table = table.drop(columns="end")  # both end at the same step
    lines = _indented(Table(table, table), width)
    if max(map(len, lines)) > width and len(table.columns) > 2:
        less = [{**c, "steps": dict(list(c["steps"].items())[1:])} for c in curves]
        return _curves_text(less, width)
    return lines


def _scores_text(found: dict[str, Any], width: int) -> list[str]:
    scores = found["scores"]
    first = scores[f"pass@{ATTEMPTS[0]}"]
    if without := [letter for letter in "AB" if not found[letter.lower()]["scores"]]:
        return [f"  not compared: no evaluation of {' and of '.join(without)}"]
    if "difference" not in first:
        return ["  not compared: not of the same tasks"]
    columns: Columns = {
        "": "name",
        "A": lambda row: percent(row["baseline_pass"]),
        "B": lambda row: percent(row["pass"]),
        "B − A, points": points("difference"),
        "p": lambda row: render_p(row["p"]),
        "tasks": "tasks",
    }
    table = pd.DataFrame([{"name": name, **row} for name, row in scores.items()])
    return _indented(Table.of(table, columns, (METHODS[first["method"]],)), width)


def _indented(table: Table, width: int) -> list[str]:
    return [f"  {line}".rstrip() for line in to_terminal(table, width - 2).splitlines()]


def _pair(values: Sequence[float | None]) -> str:
    return " | ".join(NONE if value is None else f"{value:.3g}" for value in values)


def to_json(found: dict[str, Any]) -> str:
    """Return the comparison as JSON text."""
    return json.dumps(found, indent=2, ensure_ascii=False, default=float)
