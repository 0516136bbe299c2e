"""`etrm vote`: the votes of several evaluations of the same tasks, accumulated.

Official TRM's evaluator accumulates the votes of one run's checkpoints as it trains; here they are
of finished runs: seeds of an experiment, or experiments. Each prediction is one vote, so that an
evaluation of twice the variants has twice the weight.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from etrm.errors import UserError
from etrm.evaluation.pass_at_k import Grid, candidate_ranks, pass_rates, top_attempts
from etrm.evaluation.submissions import pass_table
from etrm.evaluation.voting import vote
from etrm.storage.files import write_json_atomic
from etrm.storage.records import read_predictions, read_record, read_score

COLUMNS = ["task", "query", "height", "width", "grid", "q_halt", "correct"]


def run(given: Namespace) -> None:
    """Print the score of all votes, and write the submission where it was asked for."""
    result, answers = accumulate([Path(folder) for folder in given.evaluations])
    if given.out is not None:
        write_json_atomic(Path(given.out), answers)
    print(json.dumps(result, indent=2) if given.json else to_text(result))


def accumulate(folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return pass@k of all votes together, and the submission that they give.

    The denominators are the tasks that every evaluation was asked for. `pass` and `ranks` are as in
    `score.json`; `evaluations` lists those that have voted, with their own pass@k. Raises
    `UserError` for evaluations of other tasks, and where one is given twice.
    """
    scores = [read_score(folder / "score.json") for folder in folders]
    asked = [_asked(folder, score) for folder, score in zip(folders, scores, strict=True)]
    for folder, tasks in zip(folders, asked, strict=True):
        if tasks != asked[0]:
            raise UserError(
                f"{folder}: found {len(tasks)} tasks, expected the {len(asked[0])} of {folders[0]},"
                " each with as many test inputs and known outputs: votes are of the same questions"
            )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("found the same evaluation twice, expected each once: its votes would be")
    tables = [read_predictions(folder / "predictions.parquet") for folder in folders]
    rows = pd.concat([table.select(COLUMNS).to_pandas() for table in tables], ignore_index=True)
    ranked = vote(rows)
    known = {name: outputs for name, (_, outputs) in asked[0].items()}
    ranks, _ = candidate_ranks(ranked, _truths(rows, known))
    counts = {name: tests for name, (tests, _) in asked[0].items()}
    result = {
        "pass": pass_rates(ranks, [int(k) for k in scores[0]["pass"]]),
        "tasks_asked": len(counts),
        "predictions": len(rows),
        "evaluations": [
            {key: score[key] for key in ("experiment", "stage", "seed", "run_key", "held_out")}
            | {"predictions": score["predictions"], "pass": score["pass"]}
            for score in scores
        ],
        "ranks": ranks,
    }
    return result, top_attempts(ranked, counts)


def _asked(folder: Path, score: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the number of test inputs, and of known outputs, of each task that was asked for."""
    answers = read_record(folder / "submission.json", {}, "the submission of an evaluation")
    return {name: (len(of), len(score["ranks"].get(name, ()))) for name, of in answers.items()}


def _truths(rows: pd.DataFrame, known: dict[str, int]) -> dict[tuple[str, int], Grid | None]:
    """Return the known test outputs by (task, query); None where no prediction is right.

    `known`: the number of them of each task. Those without any prediction have made-up queries.
    """
    judged = rows[rows["correct"].notna()]
    right = judged[judged["correct"].astype(bool)].drop_duplicates(["task", "query"])
    pairs = judged[["task", "query"]].drop_duplicates()
    named = pairs.itertuples(index=False, name=None)
    truths: dict[tuple[str, int], Grid | None] = dict.fromkeys(named)
    for task, query, *grid in right[COLUMNS[:5]].itertuples(index=False, name=None):
        truths[task, query] = tuple(grid)
    found = pairs["task"].value_counts()
    for task, n in known.items():
        truths |= dict.fromkeys((task, -1 - i) for i in range(n - found.get(task, 0)))
    return truths


def to_text(result: dict[str, Any]) -> str:
    """Return the score of all votes, and below it that of each evaluation alone."""
    every = result["evaluations"]
    head = f"{len(every)} evaluations of {result['tasks_asked']} tasks"
    lines = [f"{head}, {result['predictions']:,} votes", "", *pass_table(result["pass"]), ""]
    for one in every:
        alone = [
            f"pass@{k} {100 * rules['task_fraction']['value']:.1f} %"
            for k, rules in one["pass"].items()
            if rules["task_fraction"]["value"] is not None
        ]
        named = f"{one['experiment']} {one['stage']}, seed {one['seed']}"
        lines.append(
            f"{named} alone: {', '.join(alone[:2])}; held out: {one['held_out']['status']}"
        )
    return "\n".join(lines)
