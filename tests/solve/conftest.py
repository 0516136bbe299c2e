"""Trained runs to ask: two ETRMs, one of exact tasks, and a TRM with a mean embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Task
from etrm.config.execution import TrackingConfig
from etrm.training.run import RunPaths, train_run


@pytest.fixture(scope="session")
def held_out() -> list[Task]:
    """Tasks that no run has seen, some with two test inputs."""
    return make_tasks(3, seed=9, prefix="held_out")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, held_out: list[Task]) -> dict[str, RunPaths]:
    """Runs of three steps by name, and the tables that they were trained on."""
    found = {}
    for name, source, context in (
        ("etrm", "standard", {}),
        ("exact", "standard", {}),
        ("in_context", "in_context", {}),
        ("trm_mean", "embedding", {"unseen": "mean"}),
    ):
        folder = tmp_path_factory.mktemp(name)
        exact = name == "exact"
        training, evaluation = (
            [replace(task, exact=exact) for task in tasks] for tasks in (make_tasks(3), held_out)
        )
        paths = write_study(folder, training, evaluation)
        run = make_run(source, experiment=name, train={"steps": 3}, context=context)
        found[name] = replace(paths, out=folder / "runs" / name / "full/seed0")
        train_run(run, found[name], TrackingConfig(wandb="disabled"), device="cpu")
    return found


@pytest.fixture(scope="session")
def folders(runs: dict[str, RunPaths]) -> dict[str, Path]:
    """The run folders by name."""
    return {name: paths.out for name, paths in runs.items()}
