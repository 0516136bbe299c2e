"""The tasks behind the weights of a run, as its `run.json` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_run, make_tasks, write_study

from etrm.arc.augment import Augmentation
from etrm.arc.task import Pair, Task
from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.data.leaks import seen_tasks, touching
from etrm.evaluation.run import evaluate_run, held_out_claim
from etrm.storage.records import DamagedFileError
from etrm.training.run import train_run, without_answers


def test_seen_tasks_include_those_of_parents() -> None:
    a, b, c, d = make_tasks(4)
    grandparent = {"experiment": "g", "seen_tasks": seen_tasks([d, a], [])}
    middle = {"experiment": "m", "seen_tasks": seen_tasks([b, a], [grandparent])}
    found = seen_tasks([c], [middle])
    assert found["ids"] == [task.id for task in (a, b, c, d)]
    assert found["count"] == 4
    assert seen_tasks([d, c, b, a], []) == found
    fewer = seen_tasks([c, b, a], [])
    assert fewer["digest"] != found["digest"]
    assert fewer["ids"] == found["ids"][:3]


def test_content_is_kept_for_each_task_and_is_in_the_digest() -> None:
    task, other = make_tasks(2, side=4)
    seen = seen_tasks([task, other], [])
    keys = [seen_tasks([each], [])["content"][0] for each in (task, other)]
    assert seen["content"] == keys
    assert all(own == sorted(own) and own for own in keys)
    renamed = seen_tasks([Task(task.id, other.demos, other.queries), other], [])
    assert renamed["ids"] == seen["ids"]
    assert renamed["digest"] != seen["digest"]


def test_what_a_parent_saw_of_a_task_and_what_its_child_did_come_together() -> None:
    """The parent saw its demos, the child another task of that id."""
    task, other = make_tasks(2, side=4)
    parent = {"seen_tasks": seen_tasks([without_answers(task)], [])}
    found = seen_tasks([Task(task.id, other.demos, other.queries)], [parent])
    assert found["count"] == 1
    whole = {*parent["seen_tasks"]["content"][0], *seen_tasks([other], [])["content"][0]}
    assert set(found["content"][0]) == whole


def test_answers_are_counted_where_a_test_pair_was_seen() -> None:
    """The demos of a held-out task are no answer, its test pair under another id is."""
    rng = np.random.default_rng(0)
    pairs = [Pair(*rng.integers(0, 10, (2, 4, 4), dtype=np.uint8)) for _ in range(6)]
    task = Task("a", (pairs[0], pairs[1]), (pairs[2],))
    other = Task("b", (pairs[3], pairs[4]), (pairs[5],))
    turned = Augmentation(3, (0, 2, 3, 4, 5, 6, 7, 8, 9, 1)).apply_to_task(task)
    hidden = Task("hidden", turned.queries, other.queries)

    def status(*seen: Task) -> dict[str, Any]:
        return held_out_claim({"seen_tasks": seen_tasks(seen, []), "unproven": []}, [task])

    expected = {"status": "seen", "seen": 1, "answers": 0, "of": 1, "unproven": []}
    assert status(without_answers(task)) == expected
    assert status(without_answers(task), hidden)["answers"] == 1
    assert status(task)["answers"] == 1
    assert (status(hidden)["status"], status(hidden)["answers"]) == ("seen", 1)
    assert (status(other)["status"], status(other)["answers"]) == ("proven", 0)
    assert touching(seen_tasks([hidden, other], []), [task])[task.id].answers == ("hidden",)


def test_an_evaluation_refuses_a_record_with_tasks_struck_out(tmp_path: Path) -> None:
    """As a child of the run does: its status would be `proven`."""
    held_out = make_tasks(2, 7, 3, "held")
    paths = write_study(tmp_path / "s", make_tasks(4), held_out)
    run = make_run("embedding", split="transductive", train={"steps": 1})
    record = train_run(run, paths, TrackingConfig(wandb="disabled"), device="cpu")
    record["seen_tasks"] |= {"ids": [], "content": []}
    assert held_out_claim(record, held_out)["status"] == "proven"
    (paths.out / "run.json").write_text(json.dumps(record))
    tables = (paths.tasks, paths.augmentations)
    with pytest.raises(DamagedFileError, match=r"run\.json: found 0 seen_tasks.ids, expected 6"):
        evaluate_run(paths.out, *tables, EvaluationConfig(), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
