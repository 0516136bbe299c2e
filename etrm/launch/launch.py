"""One training run on several ranks, of this machine or of several, started and stopped from here.

The ranks are processes as torchrun starts them (the same variables in their environment), but what
happens to them is ours to say: each gets the signals that arrive here, so that they finish the step
and save, whichever signal a scheduler sends and however long that takes; one that fails ends the
job within seconds; and none is left behind when this process is killed.

On several nodes `srun` starts this module once on each (a *node process*), which starts the ranks
there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from etrm.errors import UserError
from etrm.launch.job import Job, read_job, write_job
from etrm.launch.nodes import End, Node, Peers, this_node
from etrm.launch.processes import Process, begin, end_with_parent, forwarding
from etrm.runtime.distributed import ranks_of_this_run
from etrm.runtime.interruption import EXIT_INTERRUPTED, Interrupted, signal_name
from etrm.runtime.logs import job_log
from etrm.storage.files import write_json_atomic
from etrm.training.run import train_run

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# What the others have to end by themselves, with a message of their own, when one has failed.
GRACE_SECONDS = 5.0
# srun hands this one on to its tasks. A SIGTERM ends them at once, and no step would be saved.
TO_SRUN = signal.SIGUSR1
STOPPED = ".stopped"  # a file beside that of a job: how it was interrupted
AGAIN = "Run the same command again to go on from the last state"


class LaunchError(UserError):
    """A rank of a run has failed, or cannot be started."""


def train(job: Job, size: int, nodes: int = 1) -> None:
    """Train a run here, or on `size` ranks of `nodes` machines.

    Here, where torchrun has started this process already. Raises `LaunchError` for ranks that do
    not come out even.
    """
    if "WORLD_SIZE" in os.environ:
        train_here(job)
    elif nodes > 1:
        if size % nodes:
            raise LaunchError(
                f"found {size} GPUs (ranks) on {nodes} nodes, expected as many on each: the"
                " resource `gpu` counts those of all nodes, execution.gpus those of one"
            )
        train_on_nodes(job, max(1, size // nodes), nodes)
    elif size > 1:
        train_on_ranks(job, size)
    else:
        train_here(job)


def train_here(job: Job) -> None:
    """This process's part in a run."""
    with ranks_of_this_run(job.device) as ranks:
        if job.threads is not None or ranks.world_size > 1:
            threads = job.threads or os.cpu_count() or 1
            torch.set_num_threads(max(1, threads // ranks.local_world_size))
        train_run(
            job.run, job.paths, job.tracking, bar=job.bar, ranks=ranks, execution=job.execution
        )


def train_on_nodes(job: Job, size: int, nodes: int) -> None:
    """Train a run on `nodes` machines of this SLURM job, with `size` ranks on each.

    Exits and raises as `train_on_ranks`.
    """
    number = os.environ.get("SLURM_JOB_ID")
    if number is None or shutil.which("srun") is None:
        found = "no srun on the PATH" if number else "no SLURM job (SLURM_JOB_ID is not set)"
        raise LaunchError(
            f"found {found}, expected an allocation of {nodes} nodes: submit the run through SLURM,"
            " start it by torchrun on every node, or set execution.nodes to 1"
        )
    # All nodes see the folder of states.
    path = job.paths.state / "nodes" / f"{job.name}-{number}.json"
    write_job(path, job)
    log.info("starting %d ranks on each of %d nodes", size, nodes)
    try:
        code, sent = _run(_srun(job, size, nodes) + _command(path, "--node", str(size)))
        stopped = _stopped(path, sent)
    finally:
        for file in (path, path.with_suffix(STOPPED)):
            file.unlink(missing_ok=True)
    if code == 0:
        return
    # One that was not yet listening when the signal came has ended by it, and lost nothing.
    if code == EXIT_INTERRUPTED or (sent and code in (-TO_SRUN, 128 + TO_SRUN)):
        raise stopped
    raise LaunchError(
        f"the {nodes} nodes of the run ended with exit code {code}; what ended them is in"
        f" {job.log or 'the lines above'}. {AGAIN}"
    )


def _srun(job: Job, size: int, nodes: int) -> list[str]:
    """One process on every node, with all that the job has there.

    `--overlap`: also where this process is a step of the job itself, which holds the same CPUs.
    `--wait=0`, `--kill-on-bad-exit=0`: the node processes know better when to end one another.
    """
    found = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"]
    found += ["--wait=0", "--kill-on-bad-exit=0", "--label"]
    if job.threads is not None:
        found.append(f"--cpus-per-task={job.threads}")
    if torch.cuda.is_available() and not (job.device or "cuda").startswith("cpu"):
        found.append(f"--gpus-per-node={size}")
    return found


def _run(command: Sequence[str]) -> tuple[int, set[int]]:
    """Run srun to its end; its exit code, and the signals that were handed on."""
    srun = begin(command, os.environ)
    try:
        with forwarding([srun], TO_SRUN) as sent:
            return srun.wait(), sent
    finally:
        srun.terminate()
        srun.wait()


def train_on_ranks(job: Job, size: int, node: Node | None = None) -> None:
    """Train a run on `size` ranks of this machine, which may be one `node` of several.

    Exits with `EXIT_INTERRUPTED` when the ranks were asked to stop and have saved; raises
    `LaunchError` when one has failed. Run again, with any number of ranks, it goes on from the
    last state.
    """
    node = node or Node()
    several, total = len(node.hosts) > 1, size * len(node.hosts)
    where = f" on {node.name}" if several else ""
    with tempfile.TemporaryDirectory(prefix="etrm-ranks-") as folder:
        path, peers = Path(folder) / "job.json", Peers(node)
        log.info("starting %d ranks%s", size, where)
        write_job(path, job)
        ranks = [_start(path, local, size, node, peers.port) for local in range(size)]
        try:
            with forwarding(ranks) as sent:
                failed = _wait(ranks, peers)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        stopped = _stopped(path, sent)
    end = End(node.number, 0 if peers.failure() is None else 1)
    if failed is not None:
        code = ranks[failed].returncode
        how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        # One that was not yet training when the signal came has ended by it, and lost nothing.
        code = EXIT_INTERRUPTED if -code in sent else code
        rank = node.number * size + failed
        end = End(node.number, code, f"rank {rank} of {total}{where} {how}")
    end = peers.settle(end)
    if end.code == EXIT_INTERRUPTED:
        raise stopped
    if end.code:
        raise LaunchError(
            f"{end.text}, so the run was ended; its error, if it had one, is in"
            f" {job.log or 'the lines above'}. {AGAIN}"
        )


def _start(path: Path, local: int, size: int, node: Node, port: int) -> Process:
    environment = {
        **os.environ,
        "MASTER_ADDR": node.hosts[0],
        "MASTER_PORT": str(port),
        "RANK": str(node.number * size + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(len(node.hosts) * size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    return begin(_command(path), environment)


def _stopped(path: Path, sent: set[int]) -> Interrupted:
    """How the processes of a job were stopped: by a signal handed on, else by their own word."""
    try:
        note = json.loads(path.with_suffix(STOPPED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        note = {"number": 0, "advanced": False}
    return Interrupted(max(sent, default=note["number"]), note["advanced"])


@contextmanager
def _noted(path: Path, first: bool) -> Iterator[None]:
    """The `first` process of a job says how it was stopped, to the one that has started them."""
    try:
        yield
    except Interrupted as stopped:
        if first:
            note = {"number": stopped.number, "advanced": stopped.advanced}
            with suppress(OSError):  # a full disk: the exit code says the most of it
                write_json_atomic(path.with_suffix(STOPPED), note)
        raise


def _command(path: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "etrm.launch.launch", str(path), *more]


def _wait(ranks: Sequence[Process], peers: Peers) -> int | None:
    """Wait for the end of all, not long when one has failed, here or on another node.

    Returns the rank of this machine that explains the failure.
    """
    until = float("inf")
    while time.monotonic() < until and None in [rank.poll() for rank in ranks]:
        if any(rank.returncode for rank in ranks) or peers.failure():
            until = min(until, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    ends = [End(i, rank.returncode, "it failed") for i, rank in enumerate(ranks) if rank.returncode]
    return min(ends, key=lambda end: end.explains).node if ends else None


def main(path: str, *node: str) -> None:
    """What a rank does, or with `--node` and a number of ranks, a node process."""
    job = read_job(Path(path))
    end_with_parent()
    if node:
        with job_log(job.log):
            place = this_node(os.environ)
        with (
            job_log(job.log, f"{place.name}: ", history=True),
            _noted(Path(path), not place.number),
        ):
            train_on_ranks(job, int(node[1]), place)
        return
    rank = int(os.environ["RANK"])
    name, level = (f"rank {rank}: ", logging.WARNING) if rank else ("", logging.INFO)
    with job_log(job.log, name, level, history=True), _noted(Path(path), not rank):
        train_here(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
