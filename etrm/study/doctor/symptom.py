"""Symptoms of a study: one observation each, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etrm.study.layout import Layout

# Kinds, the most urgent first: while something is locked, nothing else can be mended.
KINDS = (
    *("locked", "stuck jobs", "orphaned jobs", "leases"),
    *("damaged", "incomplete", "stale", "orphaned files"),
)
NOTE = "running"  # the kind of symptoms that need no mending
DEFAULT = "config/config.yaml"  # the study of a Snakemake without --configfile


@dataclass(frozen=True)
class Symptom:
    """One observation, and the command that mends it; none where nothing is to be done."""

    kind: str
    what: str
    mend: str | None = None
    names: tuple[str, ...] = ()  # of all runs or paths that it concerns


@dataclass(frozen=True)
class Study:
    """The study that is examined, the file of its configuration, and the workflow's folder."""

    layout: Layout
    configfile: str
    folder: Path

    def snakemake(self, *options: str) -> str:
        """Return a command line of Snakemake for this study, without the options of a cluster."""
        config = [] if self.configfile == DEFAULT else ["--configfile", self.configfile]
        return shlex.join(["snakemake", *config, *options])

    def again(self) -> str:
        """Return the command that runs all jobs that are not done."""
        return self.snakemake("--cores", "2")


def remove(paths: Iterable[Path]) -> str:
    """Return the command that removes files and folders."""
    return shlex.join(["rm", "-r", *map(str, paths)])


def lasting(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def weighed(paths: Iterable[Path]) -> tuple[str, float]:
    """Return the size of files and folders, in words, and the time of the last write to them."""
    size, newest = 0, 0.0
    for path in paths:
        for each in (path, *path.rglob("*")):
            try:
                found = each.stat()
            except OSError:  # removed meanwhile
                continue
            size += found.st_size * each.is_file()
            newest = max(newest, found.st_mtime)
    return f"{size / 2**20:,.1f} MiB", newest
