"""The votes of several evaluations together are those of all their predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake
import pandas as pd
import pytest

from etrm.arc.task import Task
from etrm.cli import main
from etrm.errors import UserError
from etrm.evaluation.accumulate import accumulate
from etrm.evaluation.pass_at_k import score, submission

KS = (1, 2, 5)
IDENTITY = {"stage": "full", "seed": 0, "run_key": "k", "device": "cpu", "evaluation": {}}


def unlabelled(task: Task, query: int) -> Task:
    """The task, with one of its test outputs unknown."""
    pairs = list(task.queries)
    pairs[query] = type(pairs[query])(pairs[query].input, None)
    return Task(task.id, task.demos, tuple(pairs))


def write(folder: Path, tasks: list[Task], predictions: pd.DataFrame) -> Path:
    """The folder of an evaluation with these predictions."""
    folder.mkdir()
    found = score(predictions, tasks, ks=KS, variants=8)
    claim = {"held_out": {"status": "proven"}, "experiment": folder.name}
    record = {**IDENTITY, **claim, **found}
    predictions.to_parquet(folder / "predictions.parquet")
    (folder / "score.json").write_text(json.dumps(record), encoding="utf-8")
    answers = json.dumps(submission(predictions, tasks))
    (folder / "submission.json").write_text(answers, encoding="utf-8")
    return folder


@pytest.fixture
def tasks() -> list[Task]:
    """Two tests each; of one task one output is unknown, of another both."""
    first, second, *rest = fake.tasks(8, tests=2)
    return [unlabelled(first, 0), unlabelled(unlabelled(second, 0), 1), *rest]


def predictions(tasks: list[Task], seed: int, **more: Any) -> pd.DataFrame:
    return fake.predictions(tasks, seed=seed, right=0.3, **more)


def test_all_votes_together_are_scored_as_one_evaluation(tasks: list[Task], tmp_path: Path) -> None:
    tables = [
        predictions(tasks, 1),
        predictions(tasks, 2, variants=3),
        predictions(tasks[:-1], 3),  # nothing of the last task
    ]
    folders = [write(tmp_path / f"e{i}", tasks, table) for i, table in enumerate(tables)]
    found, answers = accumulate(folders)
    for i, table in enumerate(tables):
        table["variant"] += 100 * i
    together = pd.concat(tables, ignore_index=True)
    expected = score(together, tasks, ks=KS, variants=8)
    assert found["pass"] == expected["pass"]
    assert {k: sorted(v, key=str) for k, v in found["ranks"].items()} == {
        k: sorted(v, key=str) for k, v in expected["ranks"].items()
    }
    assert answers == submission(together, tasks)
    assert found["predictions"] == len(together)
    alone, _ = accumulate(folders[:1])
    assert alone["pass"] == json.loads((folders[0] / "score.json").read_text())["pass"]
    assert alone["pass"] != found["pass"]


def test_outputs_that_nobody_predicted_stay_in_the_denominator(
    tasks: list[Task], tmp_path: Path
) -> None:
    folders = [write(tmp_path / f"e{i}", tasks, predictions(tasks[:3], i)) for i in range(2)]
    number = accumulate(folders)[0]["pass"]["1"]["all_tests"]
    assert number["denominator"] == 7


def test_evaluations_of_other_tasks_are_refused(tasks: list[Task], tmp_path: Path) -> None:
    first = write(tmp_path / "first", tasks, predictions(tasks, 1))
    fewer = write(tmp_path / "fewer", tasks[:-1], predictions(tasks[:-1], 1))
    with pytest.raises(UserError, match="found 7 tasks, expected the 8"):
        accumulate([first, fewer])
    with pytest.raises(UserError, match="twice"):
        accumulate([first, tmp_path / "." / "first"])


def test_the_command_writes_the_submission(
    tasks: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(write(tmp_path / f"e{i}", tasks, predictions(tasks, i))) for i in range(2)]
    out = tmp_path / "all.json"
    assert main(["vote", *folders, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["experiment"] for one in printed["evaluations"]] == ["e0", "e1"]
    assert json.loads(out.read_text(encoding="utf-8")).keys() == {task.id for task in tasks}
    assert main(["vote", *folders]) == 0
    text = capsys.readouterr().out
    assert f"{100 * printed['pass']['1']['all_tests']['value']:.1f} %" in text
    assert "e1 full, seed 0 alone" in text
