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
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from jobs import EXIT_INTERRUPTED, SEARCHED, Study, make_study, metrics, wait_for
from safetensors.torch import load_file

from etrm.launch.torchrun import FIRST_PORT, PORTS

HOSTS = "localhost,127.0.0.1"
PYTHON = {"PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
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


@dataclass(frozen=True)
class Started:
    """A process, and the file of what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self, within: float = 120) -> tuple[int, str]:
        """Its exit code, and what it has said."""
        return self.process.wait(within), self.log.read_text()

    def children(self) -> list[int]:
        """The processes that it has started and that live, in their order."""
        return children_of(self.process.pid)


def start(command: list[str], log: Path, **environment: str) -> Started:
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **PYTHON, **environment},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Started(process, log)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])


def slurm_job() -> str:
    """The number of a job whose port is free."""
    return str((free_port() - FIRST_PORT) % PORTS)


def gone(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
            == "Z"
        )
    except OSError:
        return True


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
    run = start(etrm(study), study.folder / "log")
    code, log = run.end()
    assert code == 0, log
    return study


def etrm(study: Study, *more: str) -> list[str]:
    return [sys.executable, "-m", "etrm", *study.command("etrm", *more)]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One that takes as long as a test needs to disturb it."""
    return make_study(tmp_path / "study", LONG)


def test_two_nodes_train_what_one_process_trains(
    alone: Study, cluster: Callable[..., Started], tmp_path: Path
) -> None:
    study = make_study(tmp_path / "study", SHORT)
    code, log = cluster(study).end()
    assert code == 0, log
    assert "starting 1 ranks on node 1 (127.0.0.1)" in log
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2
    assert_close(study.out(), alone.out())


def test_torchrun_on_two_nodes_trains_the_same(alone: Study, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", SHORT)
    torchrun = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-id",
        "7",
        "--rdzv-backend",
        "c10d",
    ]
    torchrun += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, *etrm(study)[1:]]
    started = [start(command, study.folder / f"torchrun{n}.log") for n in range(2)]
    ends = [each.end() for each in started]
    assert [code for code, _ in ends] == [0, 0], ends
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2
    assert_close(study.out(), alone.out())


def test_a_signal_to_one_node_saves_and_stops_both(
    cluster: Callable[..., Started], study: Study
) -> None:
    job = cluster(study)
    wait_for(lambda: study.newest() >= 12, "a state")
    [srun] = job.children()
    os.kill(children_of(srun)[1], signal.SIGTERM)
    code, log = job.end(60)
    assert code == EXIT_INTERRUPTED, log
    saved = study.newest()
    assert f"saved step {saved}; run the same command again" in log
    # It goes on with another number of ranks: two on the first machine alone.
    code, log = start(etrm(study, "--gpus", "2"), study.folder / "alone.log").end()
    assert code == 0, log
    assert f"resuming from step {saved} " in log
    assert json.loads((study.out() / "run.json").read_text())["ranks"] == 2


def test_a_killed_rank_ends_both_nodes_and_is_named(
    cluster: Callable[..., Started], study: Study
) -> None:
    job = cluster(study, "--gpus", "2")
    wait_for(lambda: study.newest() >= 6, "a state")
    [srun] = job.children()
    ranks = [children_of(node) for node in children_of(srun)]
    assert [len(found) for found in ranks] == [2, 2]
    os.kill(ranks[1][1], signal.SIGKILL)
    code, log = job.end(60)
    assert code == 1, log
    # torchrun numbers nodes as they arrive: the second rank of one is 1 or 3.
    assert re.search(r"rank [13] of 4 on node 1 \(127.0.0.1\) was killed by SIGKILL", log), log
    wait_for(lambda: all(gone(pid) for found in ranks for pid in found), "the end of all ranks")
    assert not study.out().exists()


def test_a_killed_node_process_ends_the_other(
    cluster: Callable[..., Started], study: Study
) -> None:
    job = cluster(study)
    wait_for(lambda: study.newest() >= 6, "a state")
    [srun] = job.children()
    nodes = children_of(srun)
    ranks = [pid for node in nodes for pid in children_of(node)]
    os.kill(nodes[1], signal.SIGKILL)
    code, log = job.end(60)
    assert code in (1, EXIT_INTERRUPTED), log
    wait_for(lambda: all(map(gone, [*nodes, *ranks])), "the end of all")


# Every Python process runs it as it starts.
CANNOT_TRAIN = """
import os
if os.environ.get("SLURM_NODEID") == "1" and "RANK" in os.environ:
    os._exit(3)
"""


def test_a_node_that_cannot_train_ends_the_other(
    cluster: Callable[..., Started], study: Study
) -> None:
    """Its ranks end before they meet the others, which would wait for them."""
    (study.folder / "sitecustomize.py").write_text(CANNOT_TRAIN, encoding="utf-8")
    paths = os.pathsep.join([str(study.folder), PYTHON["PYTHONPATH"]])
    code, log = cluster(study, PYTHONPATH=paths).end(60)
    assert code == 1, log
    assert re.search(r"rank [01] of 2 on node 1 \(127.0.0.1\) ended with exit code 3", log), log
    assert not study.newest()
    assert not study.out().exists()


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., Started]:
    """Runs `etrm` within a job of two nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def run(study: Study, *more: str, **environment: str) -> Started:
        command = etrm(study, "--nodes", "2", *more)
        environment |= {"PATH": path, "SLURM_JOB_ID": slurm_job()}
        return start(command, study.folder / "job.log", **environment)

    return run


def test_a_signal_to_the_job_reaches_all_ranks(
    cluster: Callable[..., Started], study: Study
) -> None:
    job = cluster(study)
    wait_for(lambda: study.newest() >= 6, "a state")
    job.process.send_signal(signal.SIGTERM)
    code, log = job.end(30)
    assert code == EXIT_INTERRUPTED, log
    assert f"SIGUSR1: saved step {study.newest()}; run the same command again" in log


def test_nothing_is_left_of_a_killed_job(cluster: Callable[..., Started], study: Study) -> None:
    job = cluster(study)
    wait_for(lambda: study.newest() >= 6, "a state")
    [srun] = job.children()
    nodes = children_of(srun)
    ranks = [pid for node in nodes for pid in children_of(node)]
    assert (len(nodes), len(ranks)) == (2, 2)
    job.process.kill()
    wait_for(lambda: all(map(gone, [srun, *nodes, *ranks])), "the end of all")


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for found in threads for child in found.read_text().split())
