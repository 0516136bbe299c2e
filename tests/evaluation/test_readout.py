"""The linear read-out: labels of rules, accuracies that are known by construction, the score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation_run import evaluate
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Rule, Task
from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.evaluation import readout
from etrm.evaluation.contexts import encode_tasks
from etrm.evaluation.readout import FOLDS, labels_of, properties, read_out, right_answers
from etrm.evaluation.run import identify_evaluation
from etrm.models.build import build_model
from etrm.training.run import RunPaths, train_run

NAMES = ("fill", "keep", "shift")


def rule(name: str, **parameters: Any) -> Rule:
    return Rule(name, json.dumps(parameters, sort_keys=True))


def with_rules(count: int, seed: int = 9, prefix: str = "held_out") -> list[Task]:
    """Tasks of a rule name and a colour each; their grids have nothing to do with them."""
    rules = [rule(NAMES[i % 3], color=1 + i % 2) for i in range(count)]
    tasks = make_tasks(count, seed=seed, prefix=prefix)
    return [replace(task, rule=rule) for task, rule in zip(tasks, rules, strict=True)]


def test_a_rule_has_a_name_and_the_parameters_of_its_primitives() -> None:
    assert properties(rule("mirror")) == {"rule": "mirror"}
    both = Rule("ray+fill", json.dumps([{"side": "left"}, {"color": 3}]))
    assert properties(both) == {"rule": "ray+fill", "ray.side": '"left"', "fill.color": "3"}
    map_of_colours = rule("recolour", used=[0, 4], becomes=[4, 7])
    assert properties(map_of_colours) == {
        **{"rule": "recolour", "recolour.0": "4", "recolour.4": "7"}
    }


def test_labels_have_enough_tasks_of_a_class_in_every_fold() -> None:
    rules = [rule("fill", color=1 + i % 2) for i in range(10)] + [rule("mirror")] * 10
    rules += [rule("shift", by=i) for i in range(10)]  # a task for each of ten classes
    labels = labels_of(rules)
    assert set(labels) == {"rule", "fill.color"}
    assert labels["fill.color"].rows.tolist() == list(range(10))
    for label in labels.values():
        for one in set(label.classes):
            folds = np.bincount(label.fold[label.classes == one], minlength=FOLDS)
            assert folds.max() - folds.min() <= 1
    assert not labels_of([rule("fill", color=1)] * 50)  # nothing to tell apart


def test_a_linear_property_is_read_and_another_one_is_not() -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(200, 2))
    x = rng.normal(size=(200, 30))
    x[:, 5], x[:, 20] = 3 * signs[:, 0] + 7, 0.1 * signs[:, 1]
    for values, low, high in (
        (signs[:, 0], 200, 200),
        (signs[:, 1], 200, 200),
        (signs.prod(axis=1), 70, 130),  # exclusive or: chance is 100
    ):
        (label,) = labels_of([rule("a", b=value) for value in values]).values()
        right, shuffled = right_answers(x, label)
        assert low <= right <= high
        assert 60 <= shuffled <= 140


def test_more_features_than_tasks_and_features_of_rounding_alone() -> None:
    """The penalty is chosen among the tasks of the fit; a constant feature says nothing."""
    rng = np.random.default_rng(1)
    classes = np.arange(60) % 3
    x = rng.normal(size=(60, 200))
    x[:, :20] += 2 * rng.normal(size=(3, 20))[classes]
    (label,) = labels_of([rule("a", b=int(c)) for c in classes]).values()
    assert right_answers(x, label)[0] >= 57
    hidden = 1.0 + 1e-9 * classes[:, None] * np.ones((1, 4))
    assert right_answers(hidden, label)[0] <= 20


def test_read_out_of_contexts_that_name_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    run, tasks = make_run(), with_rules(60)
    model = build_model(run, 1)

    def known(which: Any, _: Any, tasks: list[Task]) -> np.ndarray:
        names = [NAMES.index(task.rule.name) for task in tasks if task.rule]
        x = np.eye(3)[names]
        return x if which is model else np.zeros_like(x)

    monkeypatch.setattr(readout, "encode_tasks", known)
    found = read_out(model, run, tasks)
    assert found is not None
    assert found["tasks"] == 60
    assert found["rule"]["accuracy"] == 1.0
    assert found["rule"]["chance"] == pytest.approx(1 / 3)
    assert found["rule"]["untrained"] <= 1 / 3
    assert found["rule"]["of"] == 60
    parameters = found["parameters"]  # of three rules with two colours each, which are not told
    assert parameters["of"] == 60
    assert parameters["chance"] == 0.5
    assert parameters["accuracy"] <= 0.7
    assert set(found["labels"]) == {"rule", "fill.color", "keep.color", "shift.color"}
    assert read_out(model, run, make_tasks(60)) is None


@pytest.mark.parametrize("source", ["standard", "in_context", "recurrent"])
def test_contexts_are_those_of_the_tasks_in_their_order(source: str) -> None:
    """Each by its own demos, at the last ACT step; the order and number of tasks do not matter."""
    run, tasks = make_run(source), make_tasks(7)
    model = build_model(run, 1)
    x = encode_tasks(model, run, tasks)
    assert len(x) == 7
    again = encode_tasks(model, run, [tasks[i] for i in (5, 0, 3)])
    np.testing.assert_allclose(again, x[[5, 0, 3]], atol=1e-3)
    apart = np.linalg.norm(x[:, None] - x, axis=-1) + np.eye(7)
    assert apart.min() > 1e-3
    once = encode_tasks(model, make_run(source, halting={"max_steps": 1}), tasks)
    assert np.allclose(once, x) == (source != "recurrent")


def test_a_score_has_a_read_out_where_rules_are_known(
    runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    for name in ("etrm", "trm"):
        assert "readout" not in evaluate(runs[name], tmp_path / name)
    paths = write_study(tmp_path, make_tasks(3), with_rules(24))
    off = TrackingConfig(wandb="disabled")
    train_run(make_run(train={"steps": 3}), paths, off, device="cpu")
    score = evaluate(paths, tmp_path / "score", tasks=2)
    assert score["readout"]["tasks"] == 24  # also those that the score does not count
    assert score["readout"]["rule"]["of"] == 24
    assert evaluate(paths, tmp_path / "again", tasks=2)["readout"] == score["readout"]


def test_the_key_of_an_evaluation_knows_the_rules_and_that_of_a_run_does_not(
    tmp_path: Path,
) -> None:
    off, keys, evaluations = TrackingConfig(wandb="disabled"), [], []
    for name in ("fill", "keep"):
        held_out = [replace(task, rule=rule(name)) for task in make_tasks(3, seed=9, prefix="x")]
        (tmp_path / name).mkdir()
        paths = write_study(tmp_path / name, make_tasks(3), held_out)
        train_run(make_run(train={"steps": 1}), paths, off, device="cpu")
        tables = paths.tasks, paths.augmentations
        found = identify_evaluation(paths.out, tables, EvaluationConfig())
        keys.append(found.record["key"])
        evaluations.append(found.key)
    assert keys[0] == keys[1]
    assert evaluations[0] != evaluations[1]
