"""The description of a training run for the processes that train it, and its form on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.load import plain
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.storage.files import write_json_atomic
from etrm.training.run import RunPaths

ADVICE = "strict_parents"  # the paths of a run that are no paths


@dataclass(frozen=True)
class Job:
    """A training run, and how it is executed."""

    run: RunConfig
    paths: RunPaths
    tracking: TrackingConfig
    execution: ExecutionConfig
    device: str | None = None  # of the only rank, or the kind of all; None: GPUs if there are any
    threads: int | None = None  # CPU threads of all ranks of a node; None: all that there are
    log: Path | None = None  # None: the terminal
    bar: bool = True

    @property
    def name(self) -> str:
        """Return the stem of the names of its files."""
        return f"{self.run.experiment}-{self.run.stage}-seed{self.run.seed}"


def write_job(path: Path, job: Job) -> None:
    """Write a job to a file that `read_job` reads."""
    document = {
        "run": plain(job.run),
        "paths": asdict(job.paths),
        "tracking": plain(job.tracking),
        "execution": plain(job.execution),
        "device": job.device,
        "threads": job.threads,
        "log": job.log,
        "bar": job.bar,
    }
    write_json_atomic(path, document)


def read_job(path: Path) -> Job:
    """Read a job that `write_job` has written."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
