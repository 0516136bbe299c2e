"""Ranks that are killed or asked to stop: the job ends, nothing is left, and it can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import (
    SEARCHED,
    Server,
    Stall,
    Study,
    assert_same_run,
    make_study,
    metrics,
    wait_for,
)
from safetensors.torch import load_file

ENVIRONMENT = {**os.environ, "PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def start(study: Study, *launcher: str, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *launcher, "etrm", *study.command("etrm", *more)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(job: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = job.communicate(timeout=60)
    return job.returncode, output


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    """The processes that a job has started, in their order."""
    threads = Path(f"/proc/{job.pid}/task").glob("*/children")
    return sorted(int(pid) for thread in threads for pid in thread.read_text().split())


def gone(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            == "Z"
        )
    except OSError:
        return True


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
def undisturbed_ranks(begun: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two ranks have done the rest, started by torchrun itself."""
    study = begun.copy(tmp_path_factory.mktemp("torchrun") / "study")
    code, output = end(start(study, *TORCHRUN))
    assert code == 0, output
    assert "resuming from step 12 " in output
    assert output.count("step 50: exact match") == 1, "one rank speaks"
    return study


@pytest.fixture(scope="module")
def killed(begun: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two ranks were doing the rest, when the second of them was killed."""
    study = begun.copy(tmp_path_factory.mktemp("killed") / "study")
    job = start(study, more=("--gpus", "2"))
    wait_for(lambda: study.newest() >= 24, "a state")
    ranks = ranks_of(job)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    code, output = end(job)
    assert code == 1, output
    assert "rank 1 of 2 was killed by SIGKILL" in output
    assert "Run the same command again" in output
    assert all(map(gone, ranks))
    assert not study.out().exists()
    return study


def test_a_run_with_a_killed_rank_goes_on_on_as_many(
    killed: Study, undisturbed_ranks: Study, tmp_path: Path
) -> None:
    study = killed.copy(tmp_path / "study")
    newest = study.newest()
    code, output = end(start(study, more=("--gpus", "2")))
    assert code == 0, output
    assert f"resuming from step {newest} " in output
    assert_same_run(study.out(), undisturbed_ranks.out())


def test_a_run_with_a_killed_rank_goes_on_alone(
    killed: Study, begun: Study, server: Server, tmp_path: Path
) -> None:
    """What one rank, two, and one again have made is what one makes, but for rounding."""
    study, alone = killed.copy(tmp_path / "study"), begun.copy(tmp_path / "alone")
    newest = study.newest()
    for each, step in ((study, newest), (alone, 12)):
        code, log = server.run(each.command())
        assert code == 0, log
        assert f"resuming from step {step} " in log
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
