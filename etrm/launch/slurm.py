"""A SLURM job seen from inside: the resources it has, and its return to the queue."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from etrm.runtime.interruption import Interrupted
from etrm.runtime.logs import say

SECONDS = 20.0  # that a command of SLURM may take


def gpus_of(resources: Mapping[str, Any]) -> int:
    """Return the GPUs of a job on all nodes: by `gpu`, or `gres` where that is the only way."""
    by_gres = str(resources.get("gres") or "").split(":")
    if by_gres[0] == "gpu":
        count = int(by_gres[-1]) if by_gres[-1].isdigit() else 1
        return count * nodes_of(resources)
    return int(resources.get("gpu") or 1)


def nodes_of(resources: Mapping[str, Any]) -> int:
    """Return the number of nodes of a job."""
    return int(resources.get("nodes") or 1)


def threads_of(resources: Mapping[str, Any], threads: int) -> int:
    """Return the CPU threads of a job on each node: on a cluster, those of its GPUs."""
    of_each = resources.get("cpus_per_gpu")
    if not of_each or not this_job():
        return threads
    return max(1, int(of_each) * gpus_of(resources) // nodes_of(resources))


def this_job() -> str | None:
    """Return the number of the SLURM job of this process; None outside of one."""
    return os.environ.get("SLURM_JOB_ID")


@contextmanager
def going_on() -> Iterator[None]:
    """Requeue a run that saves because its time is over.

    Not where this job has got it no further: it would never end. It counts as failed then, and the
    next attempt has more time. A job that is preempted goes back too, where SLURM would cancel it.
    """
    try:
        yield
    except Interrupted as stopped:
        over = stopped.number == signal.SIGUSR1 and stopped.advanced
        if over or (stopped.number == signal.SIGTERM and _preempted()):
            requeue()
        raise


@contextmanager
def preemptible() -> Iterator[None]:
    """Requeue a preempted job that saves nothing on the way.

    A warning of the time limit does not end it.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, advanced=False)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with going_on():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _preempted() -> bool:
    """Return whether SLURM ends this job to make room for another one."""
    job = this_job()
    said = "" if job is None else ask_slurm("scontrol", "show", "job", job)[0]
    at = re.search(r"\bPreemptTime=(\S+)", said)
    return at is not None and at[1] not in ("None", "N/A", "Unknown")


def ask_slurm(*command: str) -> tuple[str, str]:
    """Return the output of a command of SLURM, and its error; empty where there is none."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    failed = f"exit code {done.returncode}" if done.returncode else ""
    return done.stdout, failed and (done.stderr.strip() or failed)


def requeue() -> bool:
    """Put this job back into SLURM's queue; False where that is not possible.

    It keeps its number, so that whoever waits for it goes on waiting, and is ended by SLURM.
    """
    job = this_job()
    if job is None:
        return False
    problem = ask_slurm("scontrol", "requeue", job)[1]
    if problem:
        text = "SLURM job %s could not be put back into the queue (%s): it counts as failed"
        say(text % (job, problem), logging.WARNING)
    else:
        say(f"SLURM job {job}: requeued, to resume from there")
    return not problem
