"""Two nodes, which here are two processes on loopback: they train one run, and end together.

They are started as `srun` starts them on a cluster: by a stand-in, by its variables alone, or with
torchrun instead.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import srun
import torch
from jobs import (
    EXIT_INTERRUPTED,
    STEP,
    Job,
    Place,
    Server,
    Stall,
    Study,
    children_of,
    gone,
    make_study,
    metrics,
    start,
    wait_for,
)
from safetensors.torch import load_file

from etrm.launch.torchrun import FIRST_PORT, PORTS

LONG, SHORT = 150, 20
SRUN = f"#!{sys.executable}\n{Path(srun.__file__).read_text(encoding='utf-8')}"
SCONTROL = f"#!/bin/sh\necho {' '.join(srun.HOSTS)}\n"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])


def slurm_job() -> str:
    """The number of a job whose port is free."""
    return str((free_port() - FIRST_PORT) % PORTS)


def assert_close(found: Path, expected: Path) -> None:
    """Equal but for the order of floating-point sums."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
    for first, second in zip(metrics(found), metrics(expected), strict=True):
        numbers = {name: value for name, value in first.items() if value is not None}
        assert {k: second[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def alone(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The run of one process."""
    study = make_study(tmp_path_factory.mktemp("alone") / "study", SHORT)
    server.run(study.command())
    return study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One that takes longer than a test needs to disturb it."""
    return make_study(tmp_path / "study", LONG)


class Cluster:
    """Runs `etrm` within a job of two nodes."""

    def __init__(self, server: Server, folder: Path) -> None:
        programs = folder / "bin"
        programs.mkdir()
        for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
            (programs / name).write_text(program)
            (programs / name).chmod(0o755)
        self._server, self._marker = server, folder / "stalled"
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = {"PATH": path, "SLURM_JOB_ID": slurm_job()}

    def stalled(
        self, study: Study, at: Place, *more: str, ranks: int = 1
    ) -> tuple[Job, list[int], list[int]]:
        """A job whose ranks stand still, with the processes of its nodes and of their ranks."""
        command = study.command("etrm", "--nodes", "2", *more)
        job = self._server.start(command, Stall(*at, self._marker), **self.environment)
        wait_for(lambda: len(self._stopped()) == 2 * ranks, f"{at}, {job.log}")
        [of_srun] = job.children()
        nodes = children_of(of_srun)
        started = [rank for node in nodes for rank in children_of(node)]
        assert sorted(started) == self._stopped()
        return job, nodes, started

    def _stopped(self) -> list[int]:
        text = self._marker.read_text() if self._marker.exists() else ""
        return sorted(map(int, text.split()))

    def training(
        self, study: Study, *more: str, ranks: int = 1
    ) -> tuple[Job, list[int], list[int]]:
        """The same in a step, after the first state."""
        found = self.stalled(study, (STEP[0], 8), *more, ranks=ranks)
        assert study.newest() == 6
        return found

    def go_on(self) -> None:
        """Let the ranks go on."""
        self._marker.unlink()


@pytest.fixture
def cluster(server: Server, tmp_path: Path) -> Cluster:
    return Cluster(server, tmp_path)


def assert_two_ranks_trained(study: Study, alone: Study) -> None:
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2
    assert_close(study.out(), alone.out())


def test_two_nodes_train_what_one_process_trains(
    alone: Study, cluster: Cluster, tmp_path: Path
) -> None:
    """Every process is a Python of its own, as on a cluster."""
    study = make_study(tmp_path / "study", SHORT)
    command = study.command("etrm", "--nodes", "2")
    log = start(command, study.folder / "job.log", **cluster.environment).ended(0)
    assert "starting 1 ranks on node 1 (127.0.0.1)" in log
    assert_two_ranks_trained(study, alone)


def test_torchrun_on_two_nodes_trains_the_same(
    alone: Study, server: Server, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study", SHORT)
    options = "--nnodes 2 --nproc-per-node 1 --rdzv-id 7 --rdzv-backend c10d --local-addr 127.0.0.1"
    torchrun = [*options.split(), "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = ["torch.distributed.run", *torchrun, "-m", *study.command()]
    for job in [server.start(command) for _ in range(2)]:
        job.ended(0)
    assert_two_ranks_trained(study, alone)


def test_a_signal_to_one_node_saves_and_stops_both(
    cluster: Cluster, study: Study, server: Server
) -> None:
    job, nodes, _ = cluster.training(study)
    os.kill(nodes[1], signal.SIGTERM)
    cluster.go_on()
    log, saved = job.ended(EXIT_INTERRUPTED), study.newest()
    assert f"saved step {saved}; run the same command again" in log
    # It goes on with another number of ranks: two on the first machine alone.
    job = server.start(study.command("etrm", "--gpus", "2"))
    job.says(f"resuming from step {saved} ")
    job.says(f"/{LONG}:")
    ranks = job.children()
    assert len(ranks) == 2
    # The kernel asks the ranks of a killed launcher to stop: it has no time for it.
    job.kill()
    wait_for(lambda: all(map(gone, ranks)), "the end of all ranks")
    assert job.wait() == -signal.SIGKILL
    assert f"SIGTERM: saved step {study.newest()}" in job.log.read_text()


def test_a_killed_rank_ends_both_nodes_and_is_named(cluster: Cluster, study: Study) -> None:
    job, _, ranks = cluster.training(study, "--gpus", "2", ranks=2)
    os.kill(ranks[3], signal.SIGKILL)
    cluster.go_on()
    log = job.ended(1)
    # torchrun numbers nodes as they arrive: the second rank of one is 1 or 3.
    assert re.search(r"rank [13] of 4 on node 1 \(127.0.0.1\) was killed by SIGKILL", log), log
    wait_for(lambda: all(map(gone, ranks)), "the end of all ranks")
    assert not study.out().exists()


def test_a_killed_node_process_ends_the_other(cluster: Cluster, study: Study) -> None:
    job, nodes, ranks = cluster.training(study)
    os.kill(nodes[1], signal.SIGKILL)
    cluster.go_on()
    assert job.wait() in (1, EXIT_INTERRUPTED), job.log.read_text()
    wait_for(lambda: all(map(gone, [*nodes, *ranks])), "the end of all")


def test_a_node_that_cannot_train_ends_the_other(cluster: Cluster, study: Study) -> None:
    """Its rank ends before it meets the other, which would wait for it."""
    job, _, ranks = cluster.stalled(study, ("etrm.runtime.distributed:ranks_of_this_run", 1))
    os.kill(ranks[1], signal.SIGKILL)
    cluster.go_on()
    log = job.ended(1)
    assert re.search(r"rank [01] of 2 on node 1 \(127.0.0.1\) was killed by SIGKILL", log), log
    assert not study.newest()
    assert not study.out().exists()


def test_a_signal_to_the_job_reaches_all_ranks(cluster: Cluster, study: Study) -> None:
    job, _, _ = cluster.training(study)
    job.kill(signal.SIGTERM)
    cluster.go_on()
    log = job.ended(EXIT_INTERRUPTED)
    assert f"SIGUSR1: saved step {study.newest()}; run the same command again" in log


def test_nothing_is_left_of_a_killed_job(cluster: Cluster, study: Study) -> None:
    job, nodes, ranks = cluster.training(study)
    started = [*job.children(), *nodes, *ranks]
    job.kill()
    cluster.go_on()
    wait_for(lambda: all(map(gone, started)), "the end of all")
    job.wait()
