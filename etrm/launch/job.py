"""The description of a training run for the processes that train it, and its form on disk.

The code that trains is imported by processes that train: a node's own only starts them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.load import plain
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.storage.files import write_json_atomic

if TYPE_CHECKING:
    from etrm.training.run import RunPaths

BLOCKS = {"run": RunConfig, "tracking": TrackingConfig, "execution": ExecutionConfig}


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
    write_json_atomic(path, plain(job))


def read_log(path: Path) -> Path | None:
    """Read the log alone of a job that `write_job` has written."""
    log = json.loads(path.read_text(encoding="utf-8"))["log"]
    return log and Path(log)


def read_job(path: Path) -> Job:
    """Read a job that `write_job` has written."""
    from etrm.training.run import RunPaths

    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name, kind in BLOCKS.items():
        document[name] = parse(kind, document[name], "" if kind is RunConfig else name)
    log, paths = document["log"], document["paths"]
    advice = tuple(paths.pop("strict_parents"))  # names, no paths
    places: dict[str, Any] = {name: path and Path(path) for name, path in paths.items()}
    document |= {"paths": RunPaths(**places, strict_parents=advice), "log": log and Path(log)}
    return Job(**document)
