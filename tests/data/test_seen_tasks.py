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
from etrm.data.seen_tasks import find_touched, seen_tasks
from etrm.evaluation.run import evaluate_run, held_out_claim
from etrm.storage.records import DamagedFileError
from etrm.training.build import hide_answers
from etrm.training.run import train_run


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
    renamed = Task(task.id, other.demos, other.queries)
    assert seen_tasks([renamed, other], [])["ids"] == seen["ids"]
    assert seen_tasks([renamed, other], [])["digest"] != seen["digest"]
    # A parent saw the demos of `task`, its child another task of that id: both contents count.
    demos = seen_tasks([hide_answers(task)], [])
    both = seen_tasks([renamed], [{"seen_tasks": demos}])
    assert both["count"] == 1
    assert set(both["content"][0]) == {*demos["content"][0], *keys[1]}


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
    assert status(hide_answers(task)) == expected
    for seen in ((hide_answers(task), hidden), (task,), (hidden,)):
        assert status(*seen) == expected | {"answers": 1}
    assert status(other) == expected | {"status": "proven", "seen": 0}
    assert find_touched(seen_tasks([hidden, other], []), [task])[task.id].answers == ("hidden",)


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
