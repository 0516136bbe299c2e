"""What Snakemake has left: its processes, locks, and marks of outputs that were being made."""

from __future__ import annotations

import binascii
import os
import re
import socket
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from etrm.runtime.run_lock import PROC
from etrm.study.doctor.finding import DEFAULT, Finding, Study, lasting

FOLDER = ".snakemake"
# Options of a process that is one of Snakemake's jobs, or runs none.
NO_DRIVER = re.compile(r"-[a-z]*n[a-z]*|--(mode|dry-?run|unlock|lint|report)(=.*)?")


@dataclass(frozen=True)
class Driver:
    """A Snakemake of this machine that runs the study."""

    pid: int
    run_id: str | None  # the name of its SLURM jobs, as far as its log has it


def drivers(study: Study) -> list[Driver]:
    """Those that can be seen: of this machine, and of this user."""
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            arguments = (
                (process / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
            )
            if _drives(arguments, study) and (process / "cwd").resolve() == study.folder:
                found.append(Driver(int(process.name), _run_id(study)))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def _drives(arguments: Sequence[str], study: Study) -> bool:
    """`snakemake …`, `python …/snakemake …` or `python -m snakemake …`, for this study."""
    if "snakemake" not in [Path(argument).name for argument in arguments[:3]]:
        return False
    if any(map(NO_DRIVER.fullmatch, arguments)):
        return False
    files = _configfiles(arguments) or [DEFAULT]
    return any((study.folder / f).resolve() == _config(study) for f in files)


def _config(study: Study) -> Path:
    return (study.folder / study.configfile).resolve()


def _configfiles(arguments: Sequence[str]) -> list[str]:
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--configfile", "--configfiles"):
            given = [value] if value else []
            for following in arguments[number + 1 :]:
                if following.startswith("-") or not following:
                    break
                given.append(following)
            return given
    return []


def _run_id(study: Study) -> str | None:
    """The name of its SLURM jobs that the newest Snakemake of this folder has logged."""
    logs = sorted((study.folder / FOLDER / "log").glob("*.log"), key=lambda p: p.stat().st_mtime)
    text = logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""
    _, found, rest = text.partition("SLURM run ID: ")
    return rest.split()[0] if found else None


def locks(study: Study) -> Iterator[Finding]:
    """Locks of a Snakemake that is gone; `study` has no driver."""
    root = f"{study.pipeline.root}/"
    files = [
        file
        for file in (study.folder / FOLDER / "locks").glob("*.lock")
        if any(
            line.startswith(root)
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        )
    ]
    if not files:
        return
    age = lasting(time.time() - max(file.stat().st_mtime for file in files))
    yield Finding(
        "locked",
        f"locked for {age} by a Snakemake that does not run on {socket.gethostname()}; one on"
        " another machine cannot be seen from here, so look there first",
        study.snakemake("--unlock"),
        tuple(str(file.relative_to(study.folder)) for file in files),
    )


def marks(study: Study) -> Iterator[Finding]:
    """Outputs that were being made when a Snakemake was killed; `study` has no driver."""
    marked: dict[Path, list[str]] = {}
    for output in sorted(_marked(study.folder / FOLDER / "incomplete")):
        if output.is_relative_to(study.pipeline.root) and (study.folder / output).exists():
            marked.setdefault(output.parent, []).append(output.name)
    for folder, names in marked.items():
        yield Finding(
            "incomplete",
            f"{folder} was being made when Snakemake ended: {', '.join(names)} may be incomplete",
            study.again(),
            tuple(str(folder / name) for name in names),
        )


def _marked(folder: Path) -> Iterator[Path]:
    """The names of marks are the paths of outputs, in base 64, long ones in parts."""
    for mark in folder.rglob("*"):
        if mark.is_file():
            parts = [part.removeprefix("@") for part in mark.relative_to(folder).parts]
            try:
                yield Path(urlsafe_b64decode("".join(parts)).decode())
            except (binascii.Error, UnicodeDecodeError):
                continue  # of Snakemake's own


def knows(study: Study, output: Path) -> bool:
    """Does Snakemake have a record of how an output was made? Else it keeps it as it is."""
    folder = study.folder / FOLDER / "metadata"
    if not folder.is_dir():
        return False
    name, most = urlsafe_b64encode(str(output).encode()).decode(), _longest(folder)
    parts = [name[i : i + most] for i in range(0, len(name), most)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]).is_file()


def _longest(folder: Path) -> int:
    """Characters of a name that are in one part."""
    return (os.pathconf(folder, "PC_NAME_MAX") or 255) - 1
