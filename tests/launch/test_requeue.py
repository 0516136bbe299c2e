"""A job that goes back into the queue, with a `scontrol` that writes down what it is asked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from etrm.launch.slurm import going_on, preemptible, requeue
from etrm.runtime.interruption import EXIT_INTERRUPTED, Interrupted

SCONTROL = """#!/bin/sh
echo "$@" >> {folder}/asked
if [ "$1" = show ]; then cat {folder}/job; fi
if [ -e {folder}/refuses ] && [ "$1" = requeue ]; then echo "not allowed" >&2; exit 1; fi
"""
RUNNING = "JobId=7 JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:01:00")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a running job; what `scontrol` was asked is in `asked` there."""
    script = tmp_path / "scontrol"
    script.write_text(SCONTROL.format(folder=tmp_path))
    script.chmod(0o755)
    (tmp_path / "job").write_text(RUNNING)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def asked(job: Path) -> list[str]:
    path = job / "asked"
    return (
        [line for line in path.read_text().splitlines() if "requeue" in line]
        if path.exists()
        else []
    )


def interrupted(number: int, advanced: bool) -> None:
    with pytest.raises(Interrupted) as stopped, going_on():
        raise Interrupted(number, advanced)
    assert stopped.value.code == EXIT_INTERRUPTED


def test_a_run_whose_time_is_over_goes_back(job: Path) -> None:
    interrupted(signal.SIGUSR1, advanced=True)
    assert asked(job) == ["requeue 7"]


def test_a_run_that_got_no_further_counts_as_failed(job: Path) -> None:
    interrupted(signal.SIGUSR1, advanced=False)
    assert asked(job) == []


def test_a_run_that_somebody_cancels_does_not_come_back(job: Path) -> None:
    interrupted(signal.SIGTERM, advanced=True)
    interrupted(signal.SIGINT, advanced=True)
    assert asked(job) == []


@pytest.mark.parametrize("advanced", [True, False])
def test_a_run_that_is_preempted_goes_back(job: Path, advanced: bool) -> None:
    (job / "job").write_text(PREEMPTED)
    interrupted(signal.SIGTERM, advanced)
    assert asked(job) == ["requeue 7"]


def test_outside_a_job_nothing_is_asked(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    interrupted(signal.SIGUSR1, advanced=True)
    assert not (job / "asked").exists()


def test_a_queue_that_refuses_is_said(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job / "refuses").touch()
    assert not requeue()
    assert (
        "SLURM job 7 could not be put back into the queue (not allowed)" in capsys.readouterr().err
    )


def told_to_stop() -> None:
    """An evaluation that gets a SIGTERM."""
    with preemptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_an_evaluation_goes_back_when_it_is_preempted(job: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (job / "job").write_text(PREEMPTED)
    with pytest.raises(Interrupted):
        told_to_stop()
    assert asked(job) == ["requeue 7"]
    assert signal.getsignal(signal.SIGTERM) == before
    (job / "job").write_text(RUNNING)
    with pytest.raises(Interrupted):
        told_to_stop()
    assert asked(job) == ["requeue 7"], "cancelled by somebody"
