"""A job that goes back into the queue, with a `scontrol` that writes down what it is asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etrm.launch.slurm import going_on, preemptible, requeue
from etrm.runtime.interruption import EXIT_INTERRUPTED, Interrupted

SCONTROL = """
echo "$@" >> {folder}/asked
if [ "$1" = show ]; then cat {folder}/job; fi
if [ -e {folder}/refuses ] && [ "$1" = requeue ]; then echo "not allowed" >&2; exit 1; fi
"""
RUNNING = "JobId=7 JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:01:00")


@pytest.fixture
def job(
    tmp_path: Path, program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a running job; what `scontrol` was asked is in `asked` there."""
    program("scontrol", SCONTROL.format(folder=tmp_path))
    (tmp_path / "job").write_text(RUNNING)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path


def asked(job: Path) -> list[str]:
    path = job / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if "requeue" in line]


def interrupted(number: int, advanced: bool) -> None:
    with pytest.raises(Interrupted) as stopped, going_on():
        raise Interrupted(number, advanced)
    assert stopped.value.code == EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("number", "state", "advanced", "goes_back"),
    [
        (signal.SIGUSR1, RUNNING, True, True),  # its time is over
        (signal.SIGUSR1, RUNNING, False, False),  # it got no further: it counts as failed
        (signal.SIGTERM, RUNNING, True, False),  # somebody cancels it
        (signal.SIGINT, RUNNING, True, False),
        (signal.SIGTERM, PREEMPTED, True, True),
        (signal.SIGTERM, PREEMPTED, False, True),
    ],
)
def test_a_run_goes_back_when_its_time_is_over_or_it_is_preempted(
    number: int, state: str, advanced: bool, goes_back: bool, job: Path
) -> None:
    (job / "job").write_text(state)
    interrupted(number, advanced)
    assert asked(job) == ["requeue 7"] * goes_back


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
