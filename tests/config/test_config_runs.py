"""`run_config`: what one run depends on, and nothing else; and the way back from JSON."""

from __future__ import annotations

import json

import pytest
from documents import document, study

from etrm.config.load import load_study, plain, run_config
from etrm.config.schema import parse
from etrm.config.study import RunConfig, StudyConfig


def run(config: StudyConfig, stage: str = "overfit") -> RunConfig:
    return run_config(config, "etrm", stage, seed=0)


UNRELATED = [
    {"experiments__other__halting": {"max_steps": 9}},
    {"experiments__new": {"seeds": [4]}},
    {"experiments__trm__train": {"lr": 1.0}},
    {"experiments__etrm__seeds": [0, 1, 2]},
    {"experiments__etrm__description": "said otherwise"},
    {"defaults__gate__exact_accuracy": 0.1},
    {"defaults__evaluation__variants": 3},
    {"defaults__stages__full": {"steps": 7}},
    {"data__variants": 3},
    {"figures__dpi": 300},
    {"tracking__wandb": "offline"},
    {"threads": 4},
    {"results": "elsewhere"},
    {"study": "renamed"},
]
RELATED = [
    {"experiments__etrm__split": "transductive"},
    {"experiments__etrm__halting": {"max_steps": 3}},
    {"defaults__halting__loss_weight": 1.0},
    {"defaults__episodes__translate": False},
    {"defaults__model__L_cycles": 1},
    {"defaults__context__pooling": "mean"},
    {"defaults__decoder__frozen_steps": 5},
    {"defaults__train__lr": 1.0},
    {"defaults__stages__overfit__steps": 7},
    {"defaults__health__stuck__within": 51},
]


@pytest.mark.parametrize("changes", UNRELATED, ids=str)
def test_a_run_does_not_depend_on(changes: dict[str, object]) -> None:
    assert study(**changes) != study()
    assert run(study(**changes)) == run(study())


@pytest.mark.parametrize("changes", RELATED, ids=str)
def test_a_run_depends_on(changes: dict[str, object]) -> None:
    assert run(study(**changes)) != run(study())


def test_stages_are_differences_to_train() -> None:
    config = study(defaults__stages__full={"steps": 7})
    overfit, full = run(config), run(config, "full")
    assert (overfit.train.tasks, overfit.train.eval_every) == (4, 10)
    assert (full.train.tasks, full.train.steps) == (None, 7)
    assert overfit.train.lr == full.train.lr == 1.0e-3


@pytest.mark.parametrize("experiment", ["trm", "etrm"])
def test_a_run_survives_json_and_back(experiment: str) -> None:
    before = run_config(study(), experiment, "overfit", seed=1)
    after = parse(RunConfig, json.loads(json.dumps(plain(before))))
    assert after == before
    assert type(after.context) is type(before.context)


def test_loading_does_not_change_the_document() -> None:
    content = document()
    load_study(content)
    assert content == document()
