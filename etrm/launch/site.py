"""Resources requested from a SLURM cluster: the site's own settings, and the resources of a stage.

`slurm/config.yaml`, the profile, and the rules take their values from here. A site's settings are
in `slurm/site.yaml`, which git ignores; `slurm/site.example.yaml` has every key with its default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.config.files import located, read_file
from etrm.config.schema import ConfigError, ConfigProblem, option, parse

SITE = Path("slurm/site.yaml")
VARIABLE = "ETRM_SITE"
STAGES = ("pretrain", "overfit", "full", "evaluate")


@dataclass(frozen=True)
class Runtime:
    """Time limit of one attempt of a stage. A run that needs longer resumes in another job."""

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
        " queue. At least the time of a step and a save; SLURM may be a minute early",
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

    def problems(self) -> list[ConfigProblem]:
        """Reject a warning so early that a job has no time to train."""
        minutes = min(getattr(self.runtime, stage) for stage in STAGES)
        if 2 * self.warn < 60 * minutes:
            return []
        expected = f"less than half of the shortest job ({minutes} minutes)"
        return [ConfigProblem("warn", f"{self.warn} seconds", expected)]

    @property
    def options(self) -> str:
        """Return options of sbatch that Snakemake has no resource for.

        The signal goes to the job's step, where training is; without `append`, a requeued job
        would overwrite its own log.
        """
        return f"--signal=USR1@{self.warn} --open-mode=append {self.extra}".strip()

    @property
    def memory(self) -> str:
        """Return the MB per core as an expression of Snakemake."""
        wanted = f"{self.memory_per_cpu} * (1 + attempt) // 2"
        return f"min({max(self.memory_per_cpu, self.most_memory_per_cpu)}, {wanted})"

    def resources(self, stage: str, gpus: int = 1, nodes: int = 1) -> dict[str, Any]:
        """Return a stage's resources on `nodes` with so many GPUs each; None is one not set.

        SLURM counts `gpu` over all nodes, and `gres` on each. The plugin wraps a job in an `srun`
        of one process, on one node, unless it is an MPI job, one with `mpi` and `tasks`: such are
        ours on several nodes, where training calls `srun` itself (`etrm.launch.torchrun`), with one
        task on each. `tasks` alone would be taken for `--ntasks-per-gpu`. So many GPUs in all need
        not be as many on each node, which is said beside.
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
        """Ask for more in each attempt, up to the most."""
        first: int = getattr(self.runtime, stage)

        def runtime(wildcards: Any, attempt: int) -> int:
            return min(max(first, self.runtime.most), first * attempt)

        return runtime


def read_site(path: Path | None = None) -> SiteConfig:
    """Read the settings of `path`, else of the file in ETRM_SITE, else of `slurm/site.yaml`.

    The defaults where there is no such file. Raises `ConfigError` with all that is wrong in it.
    """
    named = os.environ.get(VARIABLE)
    where = located(path or Path(named or SITE))
    if not where.exists() and not named and path is None:
        return SiteConfig()
    document = read_file(where, f"the file of settings that {VARIABLE} names")
    try:
        site: SiteConfig = parse(SiteConfig, {} if document is None else document)
    except ConfigError as error:
        raise ConfigError(error.problems, str(where)) from None
    return site
