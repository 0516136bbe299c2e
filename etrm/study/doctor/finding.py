"""What is found to be wrong with a study, or worth to know, and how it is said."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etrm.study.layout import Pipeline

# Kinds of findings, the most urgent first: while something is locked, nothing else can be mended.
KINDS = (
    *("locked", "stuck jobs", "orphaned jobs", "leases"),
    *("damaged", "incomplete", "stale", "orphaned files"),
)
NOTE = "running"  # the kind of what needs no mending
DEFAULT = "config/config.yaml"  # the study of a Snakemake that is not told which


@dataclass(frozen=True)
class Finding:
    """One thing: what it is, and the command that mends it, none for what needs no mending."""

    kind: str
    what: str
    mend: str | None = None
    names: tuple[str, ...] = ()  # all runs or paths that it is about


@dataclass(frozen=True)
class Study:
    """The study that is looked at, its configuration's file, and the folder of the workflow."""

    pipeline: Pipeline
    configfile: str
    folder: Path

    def snakemake(self, *options: str) -> str:
        """A command line of Snakemake for this study; on a cluster, its options are to be added."""
        config = [] if self.configfile == DEFAULT else ["--configfile", self.configfile]
        return shlex.join(["snakemake", *config, *options])

    def again(self) -> str:
        """The command that runs what is not done."""
        return self.snakemake("--cores", "2")


def remove(paths: Iterable[Path]) -> str:
    """The command that removes files and folders."""
    return shlex.join(["rm", "-r", *map(str, paths)])


def lasting(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def weighed(paths: Iterable[Path]) -> tuple[str, float]:
    """What files and folders take on the disk, in words, and when one was last written."""
    size, newest = 0, 0.0
    for path in paths:
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else []
        for each in (path, *inside):
            try:
                found = each.stat()
            except OSError:  # removed meanwhile
                continue
            size += found.st_size if each in inside or path.is_file() else 0
            newest = max(newest, found.st_mtime)
    return f"{size / 2**20:,.1f} MiB", newest
