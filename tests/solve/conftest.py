"""Runs of three steps to ask: two ETRMs, one of exact tasks, and a TRM with a mean embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Task
from etrm.config.execution import TrackingConfig
from etrm.training.run import RunPaths, train_run

SOURCES: dict[str, dict[str, Any]] = {
    "etrm": {"source": "standard"},
    "exact": {"source": "standard"},
    "in_context": {"source": "in_context", "episodes": {"canvas": [3, 4, 6]}},
    "trm_mean": {"source": "embedding", "context": {"unseen": "mean"}},
}


@pytest.fixture(scope="session")
def held_out() -> list[Task]:
    """Tasks that no run has seen, some with two test inputs."""
    return make_tasks(3, seed=9, prefix="held_out")


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, held_out: list[Task]
) -> Callable[[str], RunPaths]:
    """The run of a name and the tables that it was trained on; trained when it is first asked."""

    @cache
    def train(name: str) -> RunPaths:
        folder = tmp_path_factory.mktemp(name)
        training, evaluation = (
            [replace(task, exact=name == "exact") for task in tasks]
            for tasks in (make_tasks(3), held_out)
        )
        run = make_run(**SOURCES[name], experiment=name, train={"steps": 3})
        paths = replace(
            write_study(folder, training, evaluation), out=folder / "runs" / name / "full/seed0"
        )
        train_run(run, paths, TrackingConfig(wandb="disabled"), device="cpu")
        return paths

    return train


@pytest.fixture(scope="session")
def run_folder(trained: Callable[[str], RunPaths]) -> Callable[[str], Path]:
    """The run folder of a name."""
    return lambda name: trained(name).out
