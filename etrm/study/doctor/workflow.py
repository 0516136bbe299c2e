"""Leftovers of Snakemake: processes, locks, and marks of outputs that were being made."""

from __future__ import annotations

import binascii
import os
import re
import socket
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from etrm.study.doctor.symptom import DEFAULT, Study, Symptom, lasting

FOLDER = ".snakemake"
PROC = Path("/proc")  # a folder for each process of this machine
# Options of a process that is itself a job of Snakemake, or runs none.
NO_DRIVER = re.compile(r"-[a-z]*n[a-z]*|--(mode|dry-?run|unlock|lint|report)(=.*)?")


@dataclass(frozen=True)
class Driver:
    """A Snakemake of this machine that runs the study."""

    pid: int
    run_id: str | None  # the name of its SLURM jobs; None: its log does not say


def drivers(study: Study) -> list[Driver]:
    """Return the processes of Snakemake that run the study, of this machine and this user."""
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            arguments = _read(process / "cmdline").split("\0")
            if _drives(arguments, study) and (process / "cwd").resolve() == study.folder:
                found.append(Driver(int(process.name), _run_id(study)))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _drives(arguments: Sequence[str], study: Study) -> bool:
    """Recognise `snakemake …`, `python …/snakemake …` or `python -m snakemake …` for a study."""
    if "snakemake" not in [Path(argument).name for argument in arguments[:3]]:
        return False
    if any(map(NO_DRIVER.fullmatch, arguments)):
        return False
    files = _configfiles(arguments) or [DEFAULT]  # relative to its working directory
    wanted = (study.folder / study.configfile).resolve()
    return any((study.folder / file).resolve() == wanted for file in files)


def _configfiles(arguments: Sequence[str]) -> list[str]:
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--configfile", "--configfiles"):  # takes all values up to the next option
            after = arguments[number + 1 :]
            values = takewhile(lambda each: each and not each.startswith("-"), after)
            return [*([value] if value else []), *values]
    return []


def _run_id(study: Study) -> str | None:
    """Return the name of SLURM jobs that the newest Snakemake of this folder has logged."""
    logs = sorted((study.folder / FOLDER / "log").glob("*.log"), key=lambda p: p.stat().st_mtime)
    _, found, rest = (_read(logs[-1]) if logs else "").partition("SLURM run ID: ")
    return rest.split()[0] if found else None


def locks(study: Study) -> Iterator[Symptom]:
    """Yield the lock of a Snakemake that has ended; `study` has no driver."""
    root = f"{study.layout.root}/"  # a lock lists the files that it is on
    files = [
        file
        for file in (study.folder / FOLDER / "locks").glob("*.lock")
        if any(line.startswith(root) for line in _read(file).splitlines())
    ]
    if files:
        age = lasting(time.time() - max(file.stat().st_mtime for file in files))
        yield Symptom(
            "locked",
            f"locked for {age} by a Snakemake that does not run on {socket.gethostname()}; it may"
            " run on another machine, which cannot be seen from here: look there first",
            study.snakemake("--unlock"),
            tuple(str(file.relative_to(study.folder)) for file in files),
        )


def marks(study: Study) -> Iterator[Symptom]:
    """Yield outputs that were being made when Snakemake was killed; `study` has no driver."""
    marked: dict[Path, list[str]] = {}
    for output in sorted(_marked(study.folder / FOLDER / "incomplete")):
        if output.is_relative_to(study.layout.root) and (study.folder / output).exists():
            marked.setdefault(output.parent, []).append(output.name)
    for folder, names in marked.items():
        yield Symptom(
            "incomplete",
            f"{folder} was being made when Snakemake ended: {', '.join(names)} may be incomplete",
            study.again(),
            tuple(str(folder / name) for name in names),
        )


def _marked(folder: Path) -> Iterator[Path]:
    """Yield the outputs that are marked: the name of a mark is a path in base 64, in parts."""
    for mark in folder.rglob("*"):
        if mark.is_file():
            parts = [part.removeprefix("@") for part in mark.relative_to(folder).parts]
            try:
                yield Path(urlsafe_b64decode("".join(parts)).decode())
            except (binascii.Error, UnicodeDecodeError):
                continue  # a file of Snakemake that is no mark


def knows(study: Study, output: Path) -> bool:
    """Return whether Snakemake has a record of how an output was made; else it keeps it."""
    folder = study.folder / FOLDER / "metadata"
    if not folder.is_dir():
        return False
    name = urlsafe_b64encode(str(output).encode()).decode()
    most = (os.pathconf(folder, "PC_NAME_MAX") or 255) - 1  # characters of a part
    parts = [name[i : i + most] for i in range(0, len(name), most)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]).is_file()
