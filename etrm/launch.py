"""One training run on several ranks of this machine, started from one place and stopped from there.

The ranks are processes as torchrun starts them (the same variables in their environment), but what
happens to them is ours to say: each gets the signals that arrive here, so that they finish the step
and save, whichever signal a scheduler sends and however long that takes; one that fails ends the
job within seconds; and none is left behind when this process is killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from etrm.config import parse, plain
from etrm.config.study import ExecutionConfig, RunConfig, TrackingConfig
from etrm.data.files import write_json_atomic
from etrm.distributed import ranks_of_this_run
from etrm.logs import job_log
from etrm.progress import EXIT_INTERRUPTED, Interrupted, Interruption, name_of
from etrm.train import RunPaths, train_run

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# What the others have to end by themselves, with a message of their own, when one has failed.
GRACE_SECONDS = 5.0
ADVICE = "strict_parents"  # the paths of a run that are no paths


class LaunchError(RuntimeError):
    """A rank of a run has failed."""


@dataclass(frozen=True)
class Job:
    """A training run as it is handed to its ranks."""

    run: RunConfig
    paths: RunPaths
    tracking: TrackingConfig
    execution: ExecutionConfig
    device: str | None = None  # of the only rank, or the kind of all; None: GPUs if there are any
    threads: int | None = None  # CPU threads of all ranks together; None: all that there are
    log: Path | None = None  # None: the terminal
    bar: bool = True


def train(job: Job, size: int) -> None:
    """Train a run here, or on `size` ranks where torchrun has not started this process already."""
    if size > 1 and "WORLD_SIZE" not in os.environ:
        train_on_ranks(job, size)
    else:
        train_here(job)


def train_here(job: Job) -> None:
    """This process's part in a run."""
    with ranks_of_this_run(job.device) as ranks:
        if job.threads is not None or ranks.size > 1:
            threads = job.threads or os.cpu_count() or 1
            torch.set_num_threads(max(1, threads // ranks.size))
        train_run(
            job.run, job.paths, job.tracking, bar=job.bar, ranks=ranks, execution=job.execution
        )


def train_on_ranks(job: Job, size: int) -> None:
    """Train a run on `size` ranks of this machine.

    Exits with `EXIT_INTERRUPTED` when the ranks were asked to stop and have saved; raises
    `LaunchError` when one has failed. Run again, with any number of ranks, it goes on from the
    last state.
    """
    with tempfile.TemporaryDirectory(prefix="etrm-ranks-") as folder:
        log.info("starting %d ranks", size)
        path, port = Path(folder) / "job.json", _free_port()
        write_json_atomic(path, _document(job))
        ranks = [_start(path, rank, size, port) for rank in range(size)]
        try:
            with _forwarding(ranks) as sent:
                failed = _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if failed is None:
        return
    code = ranks[failed].returncode
    # One that was not yet training when the signal came has ended by it, and lost nothing.
    if code == EXIT_INTERRUPTED or -code in sent:
        raise Interrupted(max(sent, default=0), advanced=True)
    how = f"was killed by {name_of(-code)}" if code < 0 else f"ended with exit code {code}"
    raise LaunchError(
        f"rank {failed} of {size} {how}, so the run was ended; its error, if it had one, is in"
        f" {job.log or 'the lines above'}. Run the same command again to go on from the last state"
    )


def _start(path: Path, rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    here, known = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{known}" if known else here,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    # Its input ends when this process does, and so does the rank then. In a session of its own, a
    # Ctrl-C on the terminal reaches it once, from here.
    command = [sys.executable, "-m", "etrm.launch", str(path)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def _forwarding(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """Within the block, signals that ask a run to stop go to all ranks; yields those that did."""
    sent: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        sent.add(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in Interruption.signals}
    try:
        yield sent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for the end of all, not long when one has failed; the rank that explains the failure.

    That is one that was asked to stop, else one that was killed: both take others with them, which
    then fail because somebody is missing.
    """
    until = float("inf")
    while time.monotonic() < until and None in [rank.poll() for rank in ranks]:
        if any(rank.returncode for rank in ranks):
            until = min(until, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    failed = [(rank.returncode, i) for i, rank in enumerate(ranks) if rank.returncode]
    return min(failed, key=_explains)[1] if failed else None


def _explains(failed: tuple[int, int]) -> tuple[bool, bool]:
    code, _ = failed
    return code != EXIT_INTERRUPTED, code > 0


def _document(job: Job) -> dict[str, Any]:
    return {
        "run": plain(job.run),
        "paths": asdict(job.paths),
        "tracking": plain(job.tracking),
        "execution": plain(job.execution),
        "device": job.device,
        "threads": job.threads,
        "log": job.log,
        "bar": job.bar,
    }


def _read(document: dict[str, Any]) -> Job:
    paths: dict[str, Any] = {
        k: v if v is None else Path(v) for k, v in document["paths"].items() if k != ADVICE
    }
    return Job(
        run=parse(RunConfig, document["run"]),
        paths=RunPaths(**paths, strict_parents=tuple(document["paths"][ADVICE])),
        tracking=parse(TrackingConfig, document["tracking"], "tracking"),
        execution=parse(ExecutionConfig, document["execution"], "execution"),
        device=document["device"],
        threads=document["threads"],
        log=None if document["log"] is None else Path(document["log"]),
        bar=document["bar"],
    )


def _end_with_parent() -> None:
    """Ask this process to save and stop when the one that started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> None:
    """What a rank does."""
    job, rank = _read(json.loads(Path(path).read_text(encoding="utf-8"))), int(os.environ["RANK"])
    _end_with_parent()
    name, level = (f"rank {rank}: ", logging.WARNING) if rank else ("", logging.INFO)
    with job_log(job.log, name, level, history=True):
        train_here(job)


if __name__ == "__main__":
    main(sys.argv[1])
