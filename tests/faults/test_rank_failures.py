"""Ranks that are killed or asked to stop: the job ends, nothing is left, and it can go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from jobs import (
    Job,
    Server,
    Stall,
    Study,
    assert_same_run,
    gone,
    make_study,
    metrics,
    wait_for,
)
from safetensors.torch import load_file

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def two_ranks(server: Server, study: Study) -> Job:
    return server.start(study.command("etrm", "--gpus", "2"))


@pytest.fixture(scope="module")
def begun(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One rank has done the first steps."""
    folder = tmp_path_factory.mktemp("begun")
    study = make_study(folder / "study", 60)
    stall = Stall("etrm.training.trainer:Trainer.step", 14, folder / "stalled")
    job = server.start(study.command(), stall)
    wait_for(stall.marker.exists, "step 14")
    job.kill()
    job.wait()
    assert study.newest() == 12
    return study


@pytest.fixture(scope="module")
def undisturbed_ranks(
    server: Server, begun: Study, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Two ranks have done the rest, started by torchrun itself."""
    study = begun.copy(tmp_path_factory.mktemp("torchrun") / "study")
    output = server.run([*TORCHRUN, *study.command()])
    assert "resuming from step 12 " in output
    assert output.count("step 50: exact match") == 1, "one rank speaks"
    return study


@pytest.fixture(scope="module")
def killed(server: Server, begun: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two ranks were doing the rest, when the second of them was killed."""
    study = begun.copy(tmp_path_factory.mktemp("killed") / "study")
    job = two_ranks(server, study)
    wait_for(lambda: study.newest() >= 24, "a state")
    ranks = job.children()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output = job.ended(1)
    assert "rank 1 of 2 was killed by SIGKILL" in output
    assert "Run the same command again" in output
    assert all(map(gone, ranks))
    assert not study.out().exists()
    return study


def test_a_run_with_a_killed_rank_goes_on_on_as_many(
    server: Server, killed: Study, undisturbed_ranks: Study, tmp_path: Path
) -> None:
    study = killed.copy(tmp_path / "study")
    newest = study.newest()
    assert f"resuming from step {newest} " in two_ranks(server, study).ended(0)
    assert_same_run(study.out(), undisturbed_ranks.out())


def test_a_run_with_a_killed_rank_goes_on_alone(
    killed: Study, begun: Study, server: Server, tmp_path: Path
) -> None:
    """What one rank, two, and one again have made is what one makes, but for rounding."""
    study, alone = killed.copy(tmp_path / "study"), begun.copy(tmp_path / "alone")
    newest = study.newest()
    for each, step in ((study, newest), (alone, 12)):
        assert f"resuming from step {step} " in server.run(each.command())
    assert_close(study.out(), alone.out())


def assert_close(found: Path, expected: Path) -> None:
    """Equal but for the order of floating-point sums, whose effect grows from step to step.

    How fast depends on the processor: losses are compared closely over the steps that two ranks
    have made and the first ones after, weights by the size of all that differs.
    """
    rows = [[(r["step"], r["train/lm_loss"] or 0.0) for r in metrics(f)] for f in (found, expected)]
    first = [[row for row in each if row[0] <= 40] for each in rows]
    np.testing.assert_allclose(*first, rtol=1e-3)
    np.testing.assert_allclose(*rows, rtol=1e-2)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).norm() <= 0.05 * tensor.norm(), name
