"""W&B gets the score of a run under the guide's names, and its answers, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import make_tasks

from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.evaluation import mirror
from etrm.evaluation.run import evaluate_run
from etrm.evaluation.voting import voting_rows
from etrm.tracking.sync import PANELS
from etrm.training.run import RunPaths

OFFLINE = TrackingConfig(wandb="offline")


class Sent:
    """A tracker that keeps what it is given."""

    made: list[Sent]

    def __init__(self, tracking: Any, run: Any, key: str, folder: Path) -> None:
        self.run, self.key = run, key
        self.rows: list[dict[str, Any]] = []
        self.tables: list[tuple[Any, ...]] = []
        Sent.made.append(self)

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def table(self, *content: Any) -> None:
        self.tables.append(content)

    def finish(self, summary: dict[str, Any]) -> None:
        self.summary = summary


def test_a_score_is_sent_to_the_run_that_was_trained(
    runs: dict[str, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "Tracker", Sent)
    Sent.made = []
    paths, out, folder = runs["etrm"], tmp_path / "evaluation", tmp_path / "wandb"
    config = EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=5)
    score = evaluate_run(paths.out, paths.tasks, paths.augmentations, config, out, device="cpu")
    where = folder, paths.out, out, paths.tasks
    mirror.mirror_score(TrackingConfig(wandb="disabled"), *where)
    assert Sent.made == []
    for _ in range(2):  # a score that is restored is not sent again
        mirror.mirror_score(OFFLINE, *where)
    [sent] = Sent.made
    record = json.loads((paths.out / "run.json").read_text())
    assert sent.key == record["key"]
    assert set(sent.summary) == {"ARC/pass@1", "ARC/pass@2"}
    for k in (1, 2):
        assert sent.summary[f"ARC/pass@{k}"] == score["pass"][str(k)]["task_fraction"]["value"]
    [row] = sent.rows
    assert row == {"step": record["steps_done"] + 1, **sent.summary}
    [(step, name, columns, rows)] = sent.tables
    assert (step, name) == (row["step"], "eval_predictions")
    held_out = make_tasks(3, seed=9, prefix="held_out")
    assert [(r[0], r[1]) for r in rows] == [
        (t.id, q) for t in held_out for q in range(len(t.queries))
    ]
    answers = voting_rows(pq.read_table(out / "predictions.parquet"))
    right = dict(zip(columns, rows[0], strict=True))
    assert right["input"] == held_out[0].queries[0].input.tolist()
    assert right["answers"] == len(answers) // len(rows)
    assert right["right"] is (right["output"] in (right["attempt 1"], right["attempt 2"]))


def test_training_logs_what_the_dashboard_shows(runs: dict[str, RunPaths]) -> None:
    logged = set(pq.read_schema(runs["etrm"].out / "metrics.parquet").names)
    asked = {metric for panel in PANELS.values() for metric in panel}
    assert asked - logged == {"ARC/pass@1"}, "of the evaluation"
