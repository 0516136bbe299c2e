"""What a SLURM cluster asks for: the site's own settings, the resources of a stage, requeueing.

`slurm/config.yaml`, the profile, and the rules take their values from here. A site's settings are
in `slurm/site.yaml`, which git ignores; `slurm/site.example.yaml` has every key with its default.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from etrm.config.schema import ConfigError, Problem, option, parse, show
from etrm.logs import say
from etrm.progress import Interrupted

SITE = Path("slurm/site.yaml")
VARIABLE = "ETRM_SITE"
STAGES = ("pretrain", "overfit", "full", "evaluate")
SECONDS = 20.0  # that a command of SLURM may take


@dataclass(frozen=True)
class Runtime:
    """What one attempt of a stage may take. A run that needs longer goes on in another job."""

    pretrain: int = option("a pretraining job", 1440, unit="minutes", ge=1)
    overfit: int = option("an overfit job", 480, unit="minutes", ge=1)
    full: int = option("a full run's job", 1440, unit="minutes", ge=1)
    evaluate: int = option("an evaluation job", 480, unit="minutes", ge=1)
    most: int = option(
        "the time limit of the partition; later attempts ask for more time, up to this",
        2880,
        unit="minutes",
        ge=1,
    )


@dataclass(frozen=True)
class SiteConfig:
    """One site's settings. Each may be left out."""

    partition: str | None = option("partition of the GPU jobs; null: the cluster's default", None)
    account: str | None = option("account that is charged; null: the one that SLURM finds", None)
    qos: str | None = option("quality of service", None)
    constraint: str | None = option("features that a node must have, as in `sbatch -C`", None)
    ask_by: str = option(
        "how GPUs are asked for: `gpu` (`sbatch --gpus`), or `gres` (`sbatch --gres`) on clusters"
        " that take only that",
        "gpu",
        choices=("gpu", "gres"),
    )
    gpu_model: str | None = option("model of the GPUs as the cluster names it, as in a100", None)
    cpus_per_gpu: int = option("CPU cores of each GPU", 8, unit="cores", ge=1)
    memory_per_cpu: int = option("memory of each core, first attempt", 8000, unit="MB", ge=1)
    most_memory_per_cpu: int = option(
        "later attempts ask for half as much again, up to this", 16000, unit="MB", ge=1
    )
    runtime: Runtime = option("time of a job, by stage", factory=Runtime)
    warn: int = option(
        "how long before the time limit a job is told to save; it then puts itself back into the"
        " queue. At least what a step and a save take; SLURM may be a minute early",
        180,
        unit="seconds",
        ge=1,
    )
    jobs: int = option("most jobs in the queue at once", 100, unit="jobs", ge=1)
    retries: int = option(
        "how often a job that failed is submitted again. A job that saves before its time limit,"
        " or is preempted, goes on as the same job and needs none of these",
        3,
        ge=0,
    )
    poll: int = option("first look at a job's state", 40, unit="seconds", ge=1)
    status_command: str | None = option(
        "`sacct`; `squeue` where the cluster has no accounting database; null: as the plugin finds",
        None,
        choices=("sacct", "squeue"),
    )
    extra: str = option("further options of sbatch, as one text", "")

    def problems(self) -> list[Problem]:
        """A warning that comes before there was time for much."""
        minutes = min(getattr(self.runtime, stage) for stage in STAGES)
        if 2 * self.warn < 60 * minutes:
            return []
        expected = f"less than half of the shortest job ({minutes} minutes)"
        return [Problem("warn", f"{self.warn} seconds", expected)]

    @property
    def options(self) -> str:
        """Options of sbatch that Snakemake has no resource for.

        The signal goes to the job's step, where training is; without `append`, a requeued job
        would overwrite its own log.
        """
        return f"--signal=USR1@{self.warn} --open-mode=append {self.extra}".strip()

    @property
    def memory(self) -> str:
        """MB per core as an expression of Snakemake."""
        wanted = f"{self.memory_per_cpu} * (1 + attempt) // 2"
        return f"min({max(self.memory_per_cpu, self.most_memory_per_cpu)}, {wanted})"

    def resources(self, stage: str, gpus: int = 1, nodes: int = 1) -> dict[str, Any]:
        """Resources of a stage's rule, on `nodes` with so many GPUs each; None is one not set.

        SLURM counts `gpu` over all nodes, and `gres` on each. The plugin wraps a job in an `srun`
        of one process, on one node, unless it is an MPI job, one with `mpi` and `tasks`: such are
        ours on several nodes, where training calls `srun` itself (`etrm.launch`), with one task on
        each. `tasks` alone would be taken for `--ntasks-per-gpu`. So many GPUs in all need not be
        as many on each node, which is said beside.
        """
        several = nodes > 1
        of_node = ":".join(filter(None, (self.gpu_model, str(gpus))))
        uneven = several and self.ask_by == "gpu"
        return {
            "gpu": gpus * nodes if self.ask_by == "gpu" else None,
            "gres": f"gpu:{of_node}" if self.ask_by == "gres" else None,
            "runtime": self._minutes(stage),
            "nodes": nodes,
            "mpi": "srun" if several else None,
            "tasks": nodes if several else None,
            "tasks_per_gpu": 0 if several else None,
            "slurm_extra": f"{self.options} --gpus-per-node={of_node}" if uneven else None,
        }

    def _minutes(self, stage: str) -> Callable[..., int]:
        """More in each attempt, up to the most."""
        first: int = getattr(self.runtime, stage)

        def runtime(wildcards: Any, attempt: int) -> int:
            return min(max(first, self.runtime.most), first * attempt)

        return runtime


def read_site(path: Path | None = None) -> SiteConfig:
    """The settings of `path`, else of the file that ETRM_SITE names, else of `slurm/site.yaml`.

    The defaults where there is no such file. Raises `ConfigError` with all that is wrong in it.
    """
    named = os.environ.get(VARIABLE)
    where = path or Path(named or SITE)
    if not where.exists() and not named and path is None:
        return SiteConfig()
    try:
        document = yaml.safe_load(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        expected = f"the file of settings that {VARIABLE} names"
        raise ConfigError([Problem(str(where), "no such file", expected)]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = "no YAML: " + " ".join(str(error).split())
        raise ConfigError([Problem(str(where), found, "a YAML file")], str(where)) from None
    if document is not None and not isinstance(document, Mapping):
        problem = Problem("(top level)", show(document), "a block of keys")
        raise ConfigError([problem], str(where))
    try:
        site: SiteConfig = parse(SiteConfig, document or {})
    except ConfigError as error:
        raise ConfigError(error.problems, str(where)) from None
    return site


def gpus_of(resources: Mapping[str, Any]) -> int:
    """GPUs of a job on all its nodes, by `gpu`, or `gres` where the cluster takes only that."""
    by_gres = str(resources.get("gres") or "").split(":")
    if by_gres[0] == "gpu":
        count = int(by_gres[-1]) if by_gres[-1].isdigit() else 1
        return count * nodes_of(resources)
    return int(resources.get("gpu") or 1)


def nodes_of(resources: Mapping[str, Any]) -> int:
    """Nodes of a job."""
    return int(resources.get("nodes") or 1)


def threads_of(resources: Mapping[str, Any], threads: int) -> int:
    """CPU threads of a job on each node: those of its GPUs on a cluster, else the rule's."""
    of_each = resources.get("cpus_per_gpu")
    if not of_each or not this_job():
        return threads
    return max(1, int(of_each) * gpus_of(resources) // nodes_of(resources))


def this_job() -> str | None:
    """The number of the SLURM job that this process is a part of."""
    return os.environ.get("SLURM_JOB_ID")


@contextmanager
def going_on() -> Iterator[None]:
    """Within the block, a run that saves because its time is over goes back into the queue.

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
    """Within the block, a job that saves nothing on the way goes back into the queue all the same
    where SLURM would cancel it to make room; a warning of the time limit does not end it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, advanced=False)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with going_on():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _preempted() -> bool:
    """Is SLURM ending this job to make room for another one?"""
    job = this_job()
    return job is not None and _preempted_job(_slurm("scontrol", "show", "job", job)[0])


def _preempted_job(text: str) -> bool:
    at = re.search(r"\bPreemptTime=(\S+)", text)
    return at is not None and at[1] not in ("None", "N/A", "Unknown")


def _slurm(*command: str) -> tuple[str, str]:
    """What a command of SLURM prints, and what is wrong with it; empty where nothing is."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return done.stdout, done.stderr.strip() if done.returncode else ""


def requeue() -> bool:
    """Put this job back into SLURM's queue; False where that is not possible.

    It keeps its number, so that whoever waits for it goes on waiting, and is ended by SLURM.
    """
    job = this_job()
    if job is None:
        return False
    problem = _slurm("scontrol", "requeue", job)[1]
    if problem:
        text = "SLURM job %s could not be put back into the queue (%s): it counts as failed"
        say(text % (job, problem), logging.WARNING)
    else:
        say(f"SLURM job {job}: back in the queue, to go on from there")
    return not problem
