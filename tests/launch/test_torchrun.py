"""What the launcher makes of the ends of its ranks, which here are small programs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from etrm.launch import torchrun
from etrm.launch.job import Job, read_job, write_job
from etrm.launch.torchrun import LaunchError, train_on_ranks
from etrm.runtime.interruption import EXIT_INTERRUPTED

STOPS = "signal.signal(signal.{0}, lambda *_: sys.exit(75)); open('{1}', 'w'); time.sleep(60)"


Programs = Callable[..., None]


@pytest.fixture
def ranks_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programs:
    """Rank n runs the n-th program."""

    def write(*programs: object) -> None:
        code = "import os, signal, sys, time\nexec({!r}[int(os.environ['RANK'])])\n"
        (tmp_path / "programs_of_ranks.py").write_text(code.format(programs))

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(torchrun, "MODULE", "programs_of_ranks")
    return write


def is_interrupted(job: Job) -> None:
    with pytest.raises(SystemExit) as exit_code:
        train_on_ranks(job, 2)
    assert exit_code.value.code == EXIT_INTERRUPTED


def test_ranks_that_are_done_are_done(job: Job, ranks_are: Programs, tmp_path: Path) -> None:
    marks = [tmp_path / "0", tmp_path / "1"]
    ranks_are(*(f"time.sleep(0.2); open({str(m)!r}, 'w')" for m in marks))
    train_on_ranks(job, 2)
    assert all(mark.exists() for mark in marks), "both have been waited for"


@pytest.mark.parametrize(
    ("first", "second", "blamed"),
    [
        ("sys.exit(3)", "time.sleep(60)", "rank 0 of 2 ended with exit code 3"),
        ("time.sleep(60)", "sys.exit(3)", "rank 1 of 2 ended with exit code 3"),
        # The first ends because it misses the second.
        ("time.sleep(0.5); sys.exit(1)", "os.kill(os.getpid(), 9)", "rank 1 of 2 was killed by"),
    ],
)
def test_a_rank_that_fails_ends_the_others(
    first: str, second: str, blamed: str, job: Job, ranks_are: Programs
) -> None:
    ranks_are(first, second)
    with pytest.raises(LaunchError, match=blamed) as error:
        train_on_ranks(job, 2)
    assert "Run the same command again" in str(error.value)
    assert str(job.log) in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_goes_to_all_ranks(
    number: signal.Signals, job: Job, ranks_are: Programs, tmp_path: Path
) -> None:
    ready = [tmp_path / f"ready{rank}" for rank in range(2)]
    ranks_are(*(STOPS.format(number.name, path) for path in ready))
    send_when(lambda: all(path.exists() for path in ready), number)
    before = signal.getsignal(number)
    is_interrupted(job)
    assert signal.getsignal(number) == before


def test_ranks_that_had_not_begun_have_lost_nothing(
    job: Job, ranks_are: Programs, tmp_path: Path
) -> None:
    """They have no handlers yet."""
    ready = tmp_path / "ready"
    ranks_are(f"open('{ready}', 'w'); time.sleep(60)", "time.sleep(60)")
    send_when(ready.exists, signal.SIGTERM)
    is_interrupted(job)


def test_one_rank_that_is_asked_to_stop_is_believed(job: Job, ranks_are: Programs) -> None:
    """The other one then fails, because it misses it."""
    ranks_are("time.sleep(0.5); sys.exit(1)", "sys.exit(75)")
    is_interrupted(job)


def send_when(condition: Any, number: signal.Signals, times: int = 1) -> None:
    def wait() -> None:
        while not condition():
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

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
    monkeypatch.setattr(torchrun, "train_here", lambda job: calls.append("here"))
    monkeypatch.setattr(torchrun, "train_on_ranks", lambda job, size: calls.append(f"on {size}"))
    torchrun.train(job, 1)
    torchrun.train(job, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    torchrun.train(job, 2)
    assert calls == ["here", "on 2", "here"]


def test_a_second_signal_abandons_no_rank(job: Job, ranks_are: Programs, tmp_path: Path) -> None:
    """A scheduler sends one to every process of a job, and another when time is up."""
    ready, saved = ([tmp_path / f"{what}{rank}" for rank in range(2)] for what in ("on", "saved"))
    program = (
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append(1))\n"
        "open('{0}', 'w')\n"
        "while len(told) < 2: time.sleep(0.05)\n"
        "time.sleep(0.6)\n"  # a save, longer than the signals
        "open('{1}', 'w')\n"
        "sys.exit(75)\n"
    )
    ranks_are(*(program.format(*each) for each in zip(ready, saved, strict=True)))
    send_when(lambda: all(path.exists() for path in ready), signal.SIGTERM, 3)
    is_interrupted(job)
    assert all(path.exists() for path in saved)
