"""`etrm score`: a submission in Kaggle's form against tasks, whoever made it.

The tasks alone are the questions: an answer that is missing is wrong, one to another question
counts nowhere, and both are reported.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etrm.arc import parse
from etrm.arc.parse import Problems
from etrm.arc.places import load_places
from etrm.arc.task import Task
from etrm.config.lanes import MAX_SIDE
from etrm.config.text import first_few, printable
from etrm.errors import UserError
from etrm.evaluation.pass_at_k import ATTEMPTS, CREDIT_RULES, RULES_IN_WORDS, pass_rates

FORM = '{task id: [{"attempt_1": grid, "attempt_2": grid} for each test input]}'
NAMES = tuple(f"attempt_{i}" for i in range(1, ATTEMPTS + 1))
# All that is reported, by its key in the result, in the words of the terminal.
REPORTED = {
    "missing_tasks": "tasks without an answer",
    "extra_tasks": "tasks that were not asked for",
    "repeated_tasks": "tasks given more than once, the last counts",
    "malformed_entries": "entries that are no list of attempts",
    "too_few_outputs": "tasks with too few outputs",
    "too_many_outputs": "tasks with too many outputs, the first count",
    "no_attempt": "outputs without an attempt",
    "one_attempt": "outputs with one attempt only",
    "malformed_grids": "attempts that are no grid",
    "unlabelled_tasks": "tasks without known outputs, not scored",
    "unlabelled_outputs": "unknown outputs of other tasks, not scored",
}
SHOWN = 3  # names of each on a terminal


def run(given: Namespace) -> None:
    """Print the score that the options of `etrm score` ask for."""
    tasks = load_places(given.tasks)
    result = score_submission(read_submission(Path(given.submission)), tasks)
    print(json.dumps(result, indent=2) if given.json else to_text(given.submission, result))


def read_submission(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise `UserError` where there is none."""
    problems = Problems()
    content = parse.read_object(path, f"expected a submission, {FORM}", problems)
    if content is None:
        raise UserError(str(problems[0]))
    return content


def score_submission(submission: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return pass@1 (of first attempts) and pass@2 by both credit rules, and all that is amiss.

    `pass` and `ranks` are as in `score.json`, where a rank is the number of the first right
    attempt. `reported` has the names behind each of `REPORTED`. Tasks without a known output leave
    the denominator; no fault of the submission does.
    """
    known = {task.id for task in tasks}
    reported: dict[str, list[str]] = {kind: [] for kind in REPORTED}
    reported["extra_tasks"] += [name for name in submission if name not in known]
    reported["repeated_tasks"] += getattr(submission, "duplicates", ())
    ranks: dict[str, list[int | None]] = {}
    for task in tasks:
        outputs = _outputs(submission, task, reported)
        of_task = []
        for i, query in enumerate(task.queries):
            attempts = _attempts(f"{task.id} test {i}", outputs[i : i + 1], reported)
            if query.output is not None:
                right = (n for n, grid in attempts.items() if np.array_equal(grid, query.output))
                of_task.append(min(right, default=None))
        if of_task:
            ranks[task.id] = of_task
        unknown = [f"{task.id} test {i}" for i, q in enumerate(task.queries) if q.output is None]
        reported["unlabelled_outputs"] += unknown if of_task else []
        reported["unlabelled_tasks"] += [] if of_task else [task.id]
    return {
        "pass": pass_rates(ranks, range(1, ATTEMPTS + 1)),
        "tasks_asked": len(tasks),
        "tasks_answered": len(known & submission.keys()),
        "test_outputs": sum(len(task.queries) for task in tasks),
        "reported": reported,
        "ranks": ranks,
    }


def _outputs(
    submission: Mapping[str, Any], task: Task, reported: dict[str, list[str]]
) -> list[Any]:
    """Return the entry of a task as a list; an empty one where it is none."""
    if task.id not in submission:
        reported["missing_tasks"].append(task.id)
        return []
    entry, expected = submission[task.id], len(task.queries)
    if not isinstance(entry, list):
        reported["malformed_entries"].append(f"{task.id} ({parse.describe(entry)})")
        return []
    if len(entry) != expected:
        kind = "too_few_outputs" if len(entry) < expected else "too_many_outputs"
        reported[kind].append(f"{task.id} ({len(entry)} of {expected})")
    return entry


def _attempts(
    where: str, output: Sequence[Any], reported: dict[str, list[str]]
) -> dict[int, np.ndarray]:
    """Return the grids attempted for a test by their number, from 1; none for no `output`."""
    if not output:
        return {}  # reported as a missing task or as too few outputs
    if not isinstance(output[0], dict):
        reported["malformed_entries"].append(f"{where} ({parse.describe(output[0])})")
        return {}
    given = {n: output[0].get(name) for n, name in enumerate(NAMES, 1)}
    given = {n: grid for n, grid in given.items() if grid is not None}
    if len(given) < ATTEMPTS:
        reported["one_attempt" if given else "no_attempt"].append(where)
    grids = {}
    for n, cells in given.items():
        problems = Problems()
        grid = parse.read_grid(f"{where} {NAMES[n - 1]}", cells, problems)
        if grid is not None and max(grid.shape) > MAX_SIDE:
            found = "{} rows of {} cells".format(*grid.shape)
            grid = problems.add(f"{where} {NAMES[n - 1]}", found, parse.GRID)
        if grid is None:
            reported["malformed_grids"].append(f"{problems[0].where} ({problems[0].found})")
        else:
            grids[n] = grid
    return grids


def to_text(name: str, result: Mapping[str, Any]) -> str:
    """Return the score as a small table, and below it whatever is reported."""
    answered, asked = result["tasks_answered"], result["tasks_asked"]
    outputs = result["test_outputs"]
    lines = [f"{name}: {answered} of {asked} tasks answered, with {outputs} test outputs", ""]
    lines += pass_table(result["pass"])
    found = {kind: names for kind, names in result["reported"].items() if names}
    width = max((len(REPORTED[kind]) for kind in found), default=0)
    lines += [""] * bool(found)
    for kind, names in found.items():
        shown = printable(", ".join(first_few(names, SHOWN)))
        lines.append(f"{len(names):5d}  {REPORTED[kind]:{width}}  {shown}")
    return "\n".join(lines)


def pass_table(passes: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of pass@k by both credit rules."""
    rows = [["", *RULES_IN_WORDS]]
    for k, rules in passes.items():
        rows.append([f"pass@{k}", *(_number(rules[rule]) for rule in CREDIT_RULES)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _number(one: Mapping[str, Any]) -> str:
    """Render `2.3 % [1.0, 3.8] (9 of 400)`."""
    if one["value"] is None:
        return "no known outputs"
    low, high = (100 * bound for bound in one["ci95"])
    counted = f"({one['numerator']:.4g} of {one['denominator']})"
    return f"{100 * one['value']:.1f} % [{low:.1f}, {high:.1f}] {counted}"
