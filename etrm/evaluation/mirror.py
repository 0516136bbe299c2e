"""The score of a run, and its answers as pictures, in the W&B run that its training has begun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from etrm.arc.task import Task
from etrm.config.execution import TrackingConfig
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.tables import read_tasks
from etrm.evaluation.pass_at_k import ATTEMPTS
from etrm.evaluation.voting import to_array, vote, voting_rows
from etrm.storage.files import file_digest
from etrm.storage.records import read_run, read_score
from etrm.tracking.tracker import Tracker

log = logging.getLogger(__name__)

TABLE = "eval_predictions"  # the guide's name
ROWS = 64  # test inputs in the table, the first of the held-out tasks
_ATTEMPTS = [f"attempt {rank}" for rank in range(1, ATTEMPTS + 1)]
COLUMNS = ("task", "query", "input", "output", *_ATTEMPTS, "votes", "answers", "right")


def mirror_score(
    tracking: TrackingConfig, folder: Path, run_folder: Path, out: Path, tasks_path: Path
) -> None:
    """Send the score in `out` and its answers to W&B, once; `folder` is W&B's own.

    To the run's own W&B run, one step after its last: `ARC/pass@K`, and a table of predictions.
    Nothing is read from W&B, and no failure of it is one of the evaluation.
    """
    if tracking.wandb == "disabled":
        return
    record, score = read_run(run_folder), read_score(out / "score.json")
    sent = folder / "scores" / f"{record['key'][:16]}-{file_digest(out / 'score.json')[:16]}"
    if sent.exists():  # a score that was restored
        return
    passes = {k: v for k, v in score["metrics"].items() if k.startswith("ARC/") and v is not None}
    step = record["steps_done"] + 1  # W&B takes none twice
    tracker = Tracker(tracking, parse(RunConfig, record["config"]), record["key"], folder)
    tracker.log({"step": step, **passes})
    answers = voting_rows(pq.read_table(out / "predictions.parquet"))
    tasks = [each.task for each in read_tasks(tasks_path) if each.split == "evaluation"]
    tracker.table(step, TABLE, COLUMNS, prediction_rows(answers, tasks))
    tracker.finish(passes)
    try:
        sent.parent.mkdir(parents=True, exist_ok=True)
        sent.touch()
    except OSError as error:  # then it is sent once more
        log.warning("W&B: %s could not be written (%s)", sent, error)


def prediction_rows(answers: pd.DataFrame, tasks: Sequence[Task]) -> list[list[Any]]:
    """Return a row of `COLUMNS` for each test input that has answers; grids are lists of lists.

    `answers` is a predictions table as `etrm.evaluation.voting` takes it. `votes` are those of the
    first attempt, of so many `answers`; `right` is whether an attempt is the output, None where
    the output is not known.
    """
    ranked = vote(answers)
    found = {key: rows for key, rows in ranked.groupby(["task", "query"], sort=False)}
    rows: list[list[Any]] = []
    for task in tasks:
        for query, pair in enumerate(task.queries):
            mine = found.get((task.id, query))
            if mine is None:
                continue
            grids = mine[["height", "width", "grid"]].head(ATTEMPTS).itertuples(index=False)
            attempts = [to_array(*grid).tolist() for grid in grids]
            truth = None if pair.output is None else pair.output.tolist()
            shown = [grid if grid and grid[0] else None for grid in attempts]
            shown += [None] * (ATTEMPTS - len(shown))
            right = None if truth is None else truth in attempts
            counts = int(mine["count"].iloc[0]), int(mine["count"].sum())
            rows.append([task.id, query, pair.input.tolist(), truth, *shown, *counts, right])
    return rows[:ROWS]
