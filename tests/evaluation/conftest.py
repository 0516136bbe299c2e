"""Two trained runs that the tests of the evaluation share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import TrackingConfig
from etrm.training.run import RunPaths, train_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunPaths]:
    """A transductive run with embeddings, and a strict one with an encoder."""
    folder = tmp_path_factory.mktemp("study")
    paths = write_study(folder, make_tasks(3), make_tasks(3, seed=9, prefix="held_out"))
    found = {}
    for name, source, split in (
        ("trm", "embedding", "transductive"),
        ("etrm", "standard", "strict"),
    ):
        found[name] = replace(paths, out=folder / name)
        run = make_run(source, split=split, experiment=name, train={"steps": 3})
        train_run(run, found[name], TrackingConfig(wandb="disabled"), device="cpu")
    return found
