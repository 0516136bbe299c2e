"""Train one run on several ranks, of this machine or of several, by torchrun's elastic agent.

torchrun starts the ranks, watches them and ends all of them when one fails. Added here: every
signal that asks a run to stop is handed on to each rank, as often as it arrives and without a time
limit, so that all finish the step and save (torchrun's own handler takes a second signal for the
order to leave its ranks); the exit code 75 of a run that has saved; ranks that end with the process
that started them, however that one ends.

On several nodes `srun` starts this module once on each, with c10d rendezvous on the first host.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from etrm.errors import UserError
from etrm.launch.job import Job, read_job, read_log, write_job
from etrm.launch.slurm import ask_slurm
from etrm.runtime.distributed import ranks_of_this_run
from etrm.runtime.environment import search_first
from etrm.runtime.interruption import EXIT_INTERRUPTED, Interrupted, Interruption, signal_name
from etrm.runtime.logs import job_log
from etrm.storage.files import write_json_atomic

log = logging.getLogger(__name__)

FIRST_PORT, PORTS = 15000, 17000  # of rendezvous: below those that Linux gives to connections
# srun hands this one on to its tasks. A SIGTERM ends them at once, and no step would be saved.
TO_SRUN = signal.SIGUSR1
# From torchrun's SIGTERM to its SIGKILL of the ranks that are left when one has failed: they may
# wait in a collective for it. Ranks that were asked to stop have all saved before the first ends.
SHUTDOWN_SECONDS = 5
ROOT_CAUSE_SECONDS = 3  # a rank killed so soon after the first failure was not killed by torchrun
# torchrun's events, and the warning that a thread cannot handle signals, which this module does.
QUIET = ("torchelastic-events-null", "torch.distributed.elastic.multiprocessing.api")
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULE = "etrm.launch.torchrun"
CHECKOUT = Path(__file__).resolve().parents[2]  # where the processes that it starts find it
STOPPED = ".stopped"  # a file beside that of a job: its interruption
AGAIN = "Run the same command again to resume from the last state"


class LaunchError(UserError):
    """A rank of a run has failed, or cannot be started."""


@dataclass(frozen=True)
class Node:
    """This machine among those of a run."""

    number: int = 0
    hosts: tuple[str, ...] = ("localhost",)
    port: int = 0  # of the rendezvous, on the first host; 0: any that is free

    def __str__(self) -> str:
        return f"node {self.number} ({self.hosts[self.number]})"


def train(job: Job, size: int, nodes: int = 1) -> None:
    """Train a run here, or on `size` ranks of `nodes` machines.

    Here, where torchrun has started this process already. Raises `LaunchError` where `size` is no
    multiple of `nodes`.
    """
    if "WORLD_SIZE" in os.environ or (nodes == 1 and size <= 1):
        train_here(job)
    elif nodes == 1:
        train_on_ranks(job, size)
    elif size % nodes:
        raise LaunchError(
            f"found {size} GPUs (ranks) on {nodes} nodes, expected as many on each: the"
            " resource `gpu` counts those of all nodes, execution.gpus those of one"
        )
    else:
        train_on_nodes(job, max(1, size // nodes), nodes)


def train_here(job: Job) -> None:
    """Train as one rank."""
    from etrm.training.run import train_run  # late: a node's process starts ranks, and trains none

    with ranks_of_this_run(job.device) as ranks:
        if job.threads is not None or ranks.world_size > 1:
            threads = job.threads or os.cpu_count() or 1
            torch.set_num_threads(max(1, threads // ranks.local_world_size))
        train_run(
            job.run, job.paths, job.tracking, bar=job.bar, ranks=ranks, execution=job.execution
        )


def train_on_ranks(job: Job, size: int) -> None:
    """Train a run on `size` ranks of this machine.

    Exits with `EXIT_INTERRUPTED` when the ranks were asked to stop and have saved; raises
    `LaunchError` when one has failed. Run again, with any number of ranks, it resumes.
    """
    with tempfile.TemporaryDirectory(prefix="etrm-ranks-") as folder:
        path = Path(folder) / "job.json"
        write_job(path, job)
        _run_ranks(path, job.log, size, Node())


def _run_ranks(path: Path, written: Path | None, size: int, node: Node) -> None:
    """Run the ranks of one node, which may be one of several, for the job in a file.

    `written`: the log of the job; None: the terminal.
    """
    total = size * len(node.hosts)
    where = f" on {node}" if len(node.hosts) > 1 else ""
    log.info("starting %d ranks%s", size, where)
    config = LaunchConfig(
        min_nodes=len(node.hosts),
        max_nodes=len(node.hosts),
        nproc_per_node=size,
        run_id=path.stem,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{node.hosts[0]}:{node.port}",
        rdzv_configs={"is_host": node.number == 0, "timeout": 300},
        local_addr=node.hosts[node.number],
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    failed: list[BaseException] = []
    for name in QUIET:
        logging.getLogger(name).disabled = True
    command = ["-m", MODULE, "rank", str(path), str(os.getpid())]

    def agent() -> None:  # in a thread of its own, where torchrun leaves signals to this module
        try:
            elastic_launch(config, sys.executable)(*command)
        except BaseException as error:
            failed.append(error)

    search_first(CHECKOUT)
    with _handing_on(_ranks_of_this_process) as sent:
        thread = threading.Thread(target=agent)
        thread.start()
        thread.join()
    if not failed:
        return
    if not isinstance(failed[0], ChildFailedError):
        # Ranks that were asked to stop end one after the other, and the rendezvous with its host.
        if path.with_suffix(STOPPED).exists():
            raise _stopped(path, sent)
        raise LaunchError(f"the ranks{where} could not be started: {failed[0]}") from failed[0]
    cause = _root_cause(failed[0].failures, sent)
    if cause is None:
        raise _stopped(path, sent)
    rank, how = cause
    raise LaunchError(
        f"rank {rank} of {total}{where} {how}, so the run was ended; its error, if it had one, is"
        f" in {written or 'the lines above'}. {AGAIN}"
    )


def _root_cause(
    failures: Mapping[int, ProcessFailure], sent: Collection[int]
) -> tuple[int, str] | None:
    """Return the rank whose end has ended the others, and its end; None where a signal asked.

    `failures`: in the order seen; torchrun ends the rest, by SIGTERM at first.
    """
    first = next(iter(failures.values()))
    killed = [  # a killed rank is the root cause, also where one that misses it is seen before it
        rank
        for rank, failure in failures.items()
        if failure.exitcode < 0
        and -failure.exitcode not in {signal.SIGTERM, *sent}
        and failure.timestamp - first.timestamp < ROOT_CAUSE_SECONDS
    ]
    # A rank that was not yet training when the signal came has ended by it, and lost nothing.
    asked = {EXIT_INTERRUPTED, *(-number for number in sent)}
    codes = [failure.exitcode for failure in failures.values()]
    if not killed and asked & set(codes if sent else codes[:1]):
        return None
    rank = killed[0] if killed else next(iter(failures))
    code = failures[rank].exitcode
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return rank, how


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
    path.with_suffix(STOPPED).unlink(missing_ok=True)  # of a launcher that was killed, requeued
    log.info("starting %d ranks on each of %d nodes", size, nodes)
    search_first(CHECKOUT)
    started: list[int] = []
    try:
        with _handing_on(lambda: started, TO_SRUN) as sent:
            srun = subprocess.Popen(
                [*_srun(job, size, nodes), sys.executable, "-m", MODULE, "node", path, str(size)],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C on the terminal reaches it once, from here
                # Of a launcher that is killed.
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, TO_SRUN),
            )
            started.append(srun.pid)
            try:
                if sent:  # before there was anything to hand it on to
                    srun.send_signal(TO_SRUN)
                code = srun.wait()
            finally:
                srun.terminate()
                srun.wait()
        stopped = path.with_suffix(STOPPED).exists()
        interrupted = _stopped(path, sent)
    finally:
        for file in (path, path.with_suffix(STOPPED)):
            file.unlink(missing_ok=True)
    before_training = sent and code in (-TO_SRUN, 128 + TO_SRUN)
    if (code == 0 and stopped) or code == EXIT_INTERRUPTED or before_training:
        raise interrupted
    if code:
        raise LaunchError(
            f"the {nodes} nodes of the run ended with exit code {code}; their root cause is in"
            f" {job.log or 'the lines above'}. {AGAIN}"
        )


def _srun(job: Job, size: int, nodes: int) -> list[str]:
    """Return the command that starts one process on every node, with all that the job has there.

    `--overlap`: also where this process is a step of the job itself, which holds the same CPUs.
    `--kill-on-bad-exit`: a node that fails ends the others, which may wait for it in a collective;
    one that was interrupted exits with 0, so that the others save in peace.
    """
    found = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"]
    found += ["--wait=0", "--kill-on-bad-exit=1", "--label"]
    if job.threads is not None:
        found.append(f"--cpus-per-task={job.threads}")
    if torch.cuda.is_available() and not (job.device or "cuda").startswith("cpu"):
        found.append(f"--gpus-per-node={size}")
    return found


def this_node(environment: Mapping[str, str]) -> Node:
    """Return the node of a process that `srun` has started, one on each."""
    try:
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
        number, names = int(environment["SLURM_NODEID"]), environment["SLURM_STEP_NODELIST"]
    except (KeyError, ValueError) as error:
        raise LaunchError(
            f"SLURM's variables: found none or no number ({error}), expected those of a process"
            " that `srun` has started within a SLURM job"
        ) from None
    said, problem = ask_slurm("scontrol", "show", "hostnames", names)
    hosts = tuple(said.split())
    if not 0 <= number < len(hosts):
        raise LaunchError(
            f"SLURM_STEP_NODELIST: found {len(hosts)} hosts in {names!r} for node {number}"
            f" {problem}, expected one host for each node"
        )
    return Node(number, hosts, FIRST_PORT + (job + 101 * step) % PORTS)


@contextmanager
def _handing_on(
    processes: Callable[[], Sequence[int]], as_: int | None = None
) -> Iterator[set[int]]:
    """Within the block, hand signals that ask a run to stop on to processes; yield those that came.

    `as_`: the one that is sent instead of whichever has arrived.
    """
    sent: set[int] = set()

    def hand_on(number: int, frame: FrameType | None) -> None:
        sent.add(number)
        for pid in processes():
            with suppress(ProcessLookupError):
                os.kill(pid, as_ or number)

    before = {number: signal.signal(number, hand_on) for number in Interruption.signals}
    try:
        yield sent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ranks_of_this_process() -> Sequence[int]:
    """Return the process numbers of all children of this process."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text(encoding="utf-8").split()]


def end_with_parent(parent: int) -> None:
    """Ask this process to save and stop when its launcher is gone, however that has ended."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGTERM)


def _stopped(path: Path, sent: set[int]) -> Interrupted:
    """Return how a job was stopped: by a signal handed on, else by its ranks' own word."""
    try:
        note = json.loads(path.with_suffix(STOPPED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        note = {"number": 0, "advanced": False}
    return Interrupted(max(sent, default=note["number"]), note["advanced"])


def main(kind: str, path: str, number: str) -> None:
    """Be a `node`, which starts a number of ranks, or a `rank` of the process of this number."""
    (_be_node if kind == "node" else _be_rank)(Path(path), int(number))


def _be_node(path: Path, size: int) -> None:
    written = read_log(path)
    with job_log(written):
        node = this_node(os.environ)
    with job_log(written, f"{node}: ", history=True):
        try:
            _run_ranks(path, written, size, node)
        except Interrupted:
            sys.exit(0 if path.with_suffix(STOPPED).exists() else EXIT_INTERRUPTED)


def _be_rank(path: Path, launcher: int) -> None:
    job, rank = read_job(path), int(os.environ["RANK"])
    end_with_parent(launcher)
    name, level = (f"rank {rank}: ", logging.WARNING) if rank else ("", logging.INFO)
    with job_log(job.log, name, level, history=True):
        try:
            train_here(job)
        except Interrupted as stopped:
            if rank == 0:
                note = {"number": stopped.number, "advanced": stopped.advanced}
                with suppress(OSError):  # a full disk: the exit code says the most of it
                    write_json_atomic(path.with_suffix(STOPPED), note)
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
