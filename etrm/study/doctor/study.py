"""The examined study, as far as it can be seen from here: its files, processes and SLURM jobs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from etrm.launch.slurm import ask_slurm
from etrm.runtime.run_lock import SILENCE_SECONDS, Holder, all_holders, is_running
from etrm.study.layout import Layout
from etrm.study.stale import StudyStatus

# Kinds, the most urgent first: while something is locked, nothing else can be mended.
KINDS = (
    *("locked", "stuck jobs", "orphaned jobs", "leases"),
    *("damaged", "incomplete", "stale", "orphaned files"),
)
NOTE = "running"  # the kind of symptoms that need no mending
DEFAULT = "config/config.yaml"  # the study of a Snakemake without --configfile
PROC = Path("/proc")  # a folder for each process of this machine
# Options of a process that is itself a job of Snakemake, or runs none.
NO_DRIVER = re.compile(r"-[a-z]*n[a-z]*|--(mode|dry-?run|unlock|lint|report)(=.*)?")
SQUEUE = ("squeue", "--me", "--noheader", "--format=%i|%T|%r|%Z|%k|%M|%j")


@dataclass(frozen=True)
class Symptom:
    """One observation, and the command that mends it; none where nothing is to be done."""

    kind: str
    what: str
    mend: str | None = None
    names: tuple[str, ...] = ()  # of all runs or paths that it concerns


@dataclass(frozen=True)
class SlurmJob:
    """A SLURM job of this user, in the fields of `SQUEUE`."""

    id: str
    state: str
    reason: str  # why it waits
    folder: str
    comment: str  # rule and wildcards, as Snakemake's plugin writes them
    time: str
    name: str  # the same for all jobs of one Snakemake

    def __str__(self) -> str:
        rule = self.comment.removeprefix("rule_").replace("_wildcards_", " ")
        return f"{self.id} ({rule}, {self.state.lower()}, {self.time})"


@dataclass(frozen=True)
class Study:
    """A study, the file of its configuration, and the workflow's folder; each is read once."""

    layout: Layout
    configfile: str
    folder: Path

    def again(self, *options: str) -> str:
        """Return the command that runs all jobs that are not done, with options of Snakemake."""
        return self.snakemake("--cores", "2", *options)

    def snakemake(self, *options: str) -> str:
        """Return a command line of Snakemake for this study, without the options of a cluster."""
        config = [] if self.configfile == DEFAULT else ["--configfile", self.configfile]
        return shlex.join(["snakemake", *config, *options])

    @cached_property
    def status(self) -> StudyStatus:
        """Return the statuses of its runs and evaluations."""
        return StudyStatus(self.layout)

    @cached_property
    def drivers(self) -> list[int]:
        """Return the processes of Snakemake that run the study, of this machine and this user."""
        return [int(process.name) for process in PROC.glob("[0-9]*") if self._drives(process)]

    def _drives(self, process: Path) -> bool:
        """Recognise `snakemake …`, `python …/snakemake …` or `python -m snakemake …`."""
        try:
            arguments = read(process / "cmdline").split("\0")
            here = (process / "cwd").resolve() == self.folder
        except OSError:  # it has ended, or is another user's
            return False
        if "snakemake" not in [Path(argument).name for argument in arguments[:3]] or not here:
            return False
        files = _configfiles(arguments) or [DEFAULT]  # relative to its working directory
        found = [(self.folder / file).resolve() for file in files]
        ours = (self.folder / self.configfile).resolve() in found
        return ours and not any(map(NO_DRIVER.fullmatch, arguments))

    @cached_property
    def submitter(self) -> str | None:
        """Return the name of SLURM jobs that the newest Snakemake of this folder has logged."""
        logs = sorted(self.snakemakes("log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        _, found, rest = (read(logs[-1]) if logs else "").partition("SLURM run ID: ")
        return rest.split()[0] if found else None

    @cached_property
    def squeue(self) -> tuple[list[SlurmJob], str]:
        """Return the jobs that Snakemake submitted here, and why SLURM gives no answer, if so."""
        if shutil.which(SQUEUE[0]) is None:
            return [], ""
        said, problem = ask_slurm(*SQUEUE)
        if problem:
            return [], problem.splitlines()[-1]
        fields = [line.split("|", 6) for line in said.splitlines()]
        jobs = [SlurmJob(*each) for each in fields if len(each) == 7]
        ours = [job for job in jobs if job.comment.startswith("rule_")]
        return [job for job in ours if Path(job.folder).resolve() == self.folder], ""

    @property
    def jobs(self) -> list[SlurmJob]:
        """Return the SLURM jobs of the study."""
        return self.squeue[0]

    @cached_property
    def holders(self) -> list[tuple[str, Holder, str | None]]:
        """Return run, holder, and evidence that the holder has ended, of every lease."""
        return [(name, held, self._dead(held)) for name, held in all_holders(self.layout.state)]

    def _dead(self, holder: Holder) -> str | None:
        runs = is_running(holder.record)
        if runs is not None:
            return None if runs else "has ended"
        if holder.record.get("slurm_job") in {job.id for job in self.jobs}:
            return None
        silent = time.time() - holder.renewed
        if silent < SILENCE_SECONDS:
            return None
        return f"has given no heartbeat for {lasting(silent)}, by the clock of this machine"

    @property
    def live(self) -> dict[str, str]:
        """Return the key of the run that each live process trains, by the name of the run."""
        return {name: holder.record["key"] for name, holder, dead in self.holders if dead is None}

    def snakemakes(self, part: str) -> Path:
        """Return a folder of Snakemake's own records: `locks`, `incomplete`, `metadata`, `log`."""
        return self.folder / ".snakemake" / part

    def known(self, output: Path) -> bool:
        """Return whether Snakemake has a record of how an output was made; else it keeps it."""
        folder = self.snakemakes("metadata")
        if not folder.is_dir():
            return False
        name = urlsafe_b64encode(str(output).encode()).decode()
        most = (os.pathconf(folder, "PC_NAME_MAX") or 255) - 1  # characters of a part
        parts = [name[i : i + most] for i in range(0, len(name), most)]
        return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]).is_file()


def read(path: Path) -> str:
    """Return the text of a file that is not ours, whatever its encoding."""
    return path.read_text(encoding="utf-8", errors="replace")


def remove(paths: Iterable[Path]) -> str:
    """Return the command that removes files and folders."""
    return shlex.join(["rm", "-r", *map(str, paths)])


def lasting(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _configfiles(arguments: Sequence[str]) -> list[str]:
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--configfile", "--configfiles"):  # takes all values up to the next option
            after = arguments[number + 1 :]
            values = takewhile(lambda each: each and not each.startswith("-"), after)
            return [*([value] if value else []), *values]
    return []
