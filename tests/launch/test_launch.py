"""What the launcher makes of the ends of its ranks, which here are small programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.launch import launch
from etrm.launch.job import Job, read_job, write_job
from etrm.launch.launch import LaunchError, train_on_ranks
from etrm.launch.nodes import Node
from etrm.runtime.interruption import EXIT_INTERRUPTED

STOPS = "signal.signal(signal.{0}, lambda *_: sys.exit(75)); open('{1}', 'w'); time.sleep(60)"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = replace(write_study(tmp_path, make_tasks(4), make_tasks(2)), strict_parents=("a", "b"))
    off = TrackingConfig(wandb="disabled")
    return Job(make_run(), paths, off, ExecutionConfig(micro_batch=2), "cpu", 2, tmp_path / "log")


def ranks_are(monkeypatch: pytest.MonkeyPatch, *programs: str) -> list[subprocess.Popen[bytes]]:
    """Rank n runs the n-th program."""
    started = []

    def start(path: Path, rank: int, size: int, node: Node, port: int) -> subprocess.Popen[bytes]:
        assert size == len(programs)
        assert path.is_file()
        code = f"import os, signal, sys, time; {programs[rank]}"
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(launch, "_start", start)
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    return started


def test_ranks_that_are_done_are_done(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    started = ranks_are(monkeypatch, "time.sleep(0.2)", "pass")
    train_on_ranks(job, 2)
    assert [rank.returncode for rank in started] == [0, 0]


@pytest.mark.parametrize(
    ("first", "second", "blamed"),
    [
        ("sys.exit(3)", "time.sleep(60)", "rank 0 of 2 ended with exit code 3"),
        ("time.sleep(60)", "sys.exit(3)", "rank 1 of 2 ended with exit code 3"),
        # The first ends because it misses the second.
        ("sys.exit(1)", "time.sleep(0.3); os.kill(os.getpid(), 9)", "rank 1 of 2 was killed by"),
    ],
)
def test_a_rank_that_fails_ends_the_others(
    first: str, second: str, blamed: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = ranks_are(monkeypatch, first, second)
    began = time.monotonic()
    with pytest.raises(LaunchError, match=blamed) as error:
        train_on_ranks(job, 2)
    assert "Run the same command again" in str(error.value)
    assert str(job.log) in str(error.value)
    assert time.monotonic() - began < 10
    assert None not in [rank.returncode for rank in started]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_goes_to_all_ranks(
    number: signal.Signals, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = [tmp_path / f"ready{rank}" for rank in range(2)]
    ranks_are(monkeypatch, *(STOPS.format(number.name, path) for path in ready))
    send_when(lambda: all(path.exists() for path in ready), number)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_code:
        train_on_ranks(job, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert signal.getsignal(number) == before


def test_ranks_that_had_not_begun_have_lost_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have no handlers yet."""
    ready = tmp_path / "ready"
    ranks_are(monkeypatch, f"open('{ready}', 'w'); time.sleep(60)", "time.sleep(60)")
    send_when(ready.exists, signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_code:
        train_on_ranks(job, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED


def test_one_rank_that_is_asked_to_stop_is_believed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one then fails, because it misses it."""
    ranks_are(monkeypatch, "sys.exit(1)", "time.sleep(0.3); sys.exit(75)")
    with pytest.raises(SystemExit) as exit_code:
        train_on_ranks(job, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED


def send_when(condition: Any, number: signal.Signals) -> None:
    def wait() -> None:
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_a_job_comes_to_its_ranks_as_it_is(job: Job) -> None:
    for each in (job, replace(job, log=None, device=None, threads=None, bar=False)):
        path = job.paths.out.with_name("job.json")
        write_job(path, each)
        assert read_job(path) == each


def test_a_process_that_torchrun_has_started_starts_no_ranks(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(launch, "train_here", lambda job: calls.append("here"))
    monkeypatch.setattr(launch, "train_on_ranks", lambda job, size: calls.append(f"on {size}"))
    launch.train(job, 1)
    launch.train(job, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.train(job, 2)
    assert calls == ["here", "on 2", "here"]


def test_a_rank_whose_launcher_is_gone_is_asked_to_stop() -> None:
    code = (
        "import signal, sys, time; from etrm.launch.processes import end_with_parent;"
        " signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); end_with_parent();"
        " print('ready', flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"ready\n"
        rank.stdin.close()
        assert rank.wait(10) == EXIT_INTERRUPTED
