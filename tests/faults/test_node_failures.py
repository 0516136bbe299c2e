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
import torch
from jobs import (
    EXIT_INTERRUPTED,
    SEARCHED,
    Job,
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

HOSTS = "localhost,127.0.0.1"
LONG, SHORT = 150, 20
SCONTROL = f"#!/bin/sh\necho {HOSTS.replace(',', ' ')}\n"
# Starts a process for every node, hands on SIGUSR1, ends all at once by SIGTERM or when one fails,
# and has the highest of their exit codes: as the real one.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time

options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
count = int(dict(word[2:].split("=") for word in options if "=" in word)["nodes"])
started = []
for number in range(count):
    step = {{"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": str(count), "SLURM_NODEID": str(number)}}
    step |= {{"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "{HOSTS}"}}
    started.append(subprocess.Popen(command, env=os.environ | step))


def send(number):
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


signal.signal(signal.SIGUSR1, lambda *_: send(signal.SIGUSR1))
signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGKILL))
while None in [process.poll() for process in started]:
    if any(process.returncode for process in started) and "--kill-on-bad-exit=1" in options:
        time.sleep(1.0)
        send(signal.SIGKILL)
    time.sleep(0.05)
codes = [process.returncode for process in started]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


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
def alone(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The run of one process."""
    study = make_study(tmp_path_factory.mktemp("alone") / "study", SHORT)
    start(study.etrm(), study.folder / "log").ended(0)
    return study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One that takes as long as a test needs to disturb it."""
    return make_study(tmp_path / "study", LONG)


class Cluster:
    """Runs `etrm` within a job of two nodes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(program)
            (folder / name).chmod(0o755)
        self._path = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def start(self, study: Study, *more: str, **environment: str) -> Job:
        environment |= {"PATH": self._path, "SLURM_JOB_ID": slurm_job()}
        return start(study.etrm("--nodes", "2", *more), study.folder / "job.log", **environment)

    def training(
        self, study: Study, *more: str, ranks: int = 1
    ) -> tuple[Job, list[int], list[int]]:
        """A job that has saved a state, with the processes of its nodes and of their ranks."""
        job = self.start(study, *more)
        wait_for(lambda: study.newest() >= 6, "a state")
        [srun] = job.children()
        nodes = children_of(srun)
        of_nodes = [children_of(node) for node in nodes]
        assert [len(found) for found in of_nodes] == [ranks, ranks]
        return job, nodes, [pid for found in of_nodes for pid in found]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "bin")


def test_two_nodes_train_what_one_process_trains(
    alone: Study, cluster: Cluster, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study", SHORT)
    assert "starting 1 ranks on node 1 (127.0.0.1)" in cluster.start(study).ended(0)
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2
    assert_close(study.out(), alone.out())


def test_torchrun_on_two_nodes_trains_the_same(alone: Study, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SHORT)
    options = "--nnodes 2 --nproc-per-node 1 --rdzv-id 7 --rdzv-backend c10d --local-addr 127.0.0.1"
    torchrun = [*options.split(), "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = ["torch.distributed.run", *torchrun, "-m", *study.etrm()]
    for job in [start(command, study.folder / f"torchrun{n}.log") for n in range(2)]:
        job.ended(0)
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2
    assert_close(study.out(), alone.out())


def test_a_signal_to_one_node_saves_and_stops_both(cluster: Cluster, study: Study) -> None:
    job, nodes, _ = cluster.training(study)
    os.kill(nodes[1], signal.SIGTERM)
    log, saved = job.ended(EXIT_INTERRUPTED), study.newest()
    assert f"saved step {saved}; run the same command again" in log
    # It goes on with another number of ranks: two on the first machine alone.
    log = start(study.etrm("--gpus", "2"), study.folder / "alone.log").ended(0)
    assert f"resuming from step {saved} " in log
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2


def test_a_killed_rank_ends_both_nodes_and_is_named(cluster: Cluster, study: Study) -> None:
    job, _, ranks = cluster.training(study, "--gpus", "2", ranks=2)
    os.kill(ranks[3], signal.SIGKILL)
    log = job.ended(1)
    # torchrun numbers nodes as they arrive: the second rank of one is 1 or 3.
    assert re.search(r"rank [13] of 4 on node 1 \(127.0.0.1\) was killed by SIGKILL", log), log
    wait_for(lambda: all(map(gone, ranks)), "the end of all ranks")
    assert not study.out().exists()


def test_a_killed_node_process_ends_the_other(cluster: Cluster, study: Study) -> None:
    job, nodes, ranks = cluster.training(study)
    os.kill(nodes[1], signal.SIGKILL)
    assert job.wait() in (1, EXIT_INTERRUPTED), job.log.read_text()
    wait_for(lambda: all(map(gone, [*nodes, *ranks])), "the end of all")


# Every Python process runs it as it starts.
CANNOT_TRAIN = """
import os
if os.environ.get("SLURM_NODEID") == "1" and "RANK" in os.environ:
    os._exit(3)
"""


def test_a_node_that_cannot_train_ends_the_other(cluster: Cluster, study: Study) -> None:
    """Its ranks end before they meet the others, which would wait for them."""
    (study.folder / "sitecustomize.py").write_text(CANNOT_TRAIN, encoding="utf-8")
    paths = os.pathsep.join([str(study.folder), SEARCHED])
    log = cluster.start(study, PYTHONPATH=paths).ended(1)
    assert re.search(r"rank [01] of 2 on node 1 \(127.0.0.1\) ended with exit code 3", log), log
    assert not study.newest()
    assert not study.out().exists()


def test_a_signal_to_the_job_reaches_all_ranks(cluster: Cluster, study: Study) -> None:
    job, _, _ = cluster.training(study)
    job.kill(signal.SIGTERM)
    log = job.ended(EXIT_INTERRUPTED)
    assert f"SIGUSR1: saved step {study.newest()}; run the same command again" in log


def test_nothing_is_left_of_a_killed_job(cluster: Cluster, study: Study) -> None:
    job, nodes, ranks = cluster.training(study)
    started = [*job.children(), *nodes, *ranks]
    job.kill()
    wait_for(lambda: all(map(gone, started)), "the end of all")
    job.wait()
