"""Processes and their leftovers: locks and marks of Snakemake, SLURM jobs, leases of runs."""

from __future__ import annotations

import binascii
import shlex
import socket
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path

from etrm.config.text import first_few
from etrm.runtime.run_lock import LEASES
from etrm.study.doctor.study import NOTE, Study, Symptom, lasting, read, remove

# Reasons of SLURM for a job that can never start: it asks for more time, or nodes, than there are.
NEVER = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit"),
)
OTHER = ", in another configuration or from other data or code than the study has now"
UNWATCHED = "; no Snakemake on this machine watches it: started again, the study takes it over"


def running(study: Study) -> Iterator[Symptom]:
    """Yield a note for each Snakemake that runs the study, and one where SLURM is silent."""
    if problem := study.squeue[1]:
        yield Symptom(NOTE, f"SLURM jobs are unknown: squeue gave no answer ({problem})")
    for pid in study.drivers:
        yield Symptom(NOTE, f"Snakemake runs the study (process {pid})")


def stuck(study: Study) -> Iterator[Symptom]:
    """Yield the SLURM jobs that can never start; Snakemake waits for them."""
    for reason in NEVER:
        waiting = [job for job in study.jobs if (job.state, job.reason) == ("PENDING", reason)]
        if waiting:
            ids = tuple(job.id for job in waiting)
            text = (
                f"{', '.join(first_few(waiting))} will never start ({reason}): lower the request"
                " in slurm/site.yaml (time: runtime), stop Snakemake, and start it again"
            )
            yield Symptom("stuck jobs", text, shlex.join(["scancel", *ids]), ids)


def unwatched(study: Study) -> Iterator[Symptom]:
    """Yield the SLURM jobs whose Snakemake has ended; they still run, and their results count."""
    left = study.jobs
    if study.drivers:  # while the log of one does not name its jobs, any job may be its own
        left = [job for job in left if study.submitter not in (None, job.name)]
    if left:
        ids = tuple(job.id for job in left)
        count = "1 SLURM job runs" if len(left) == 1 else f"{len(left)} SLURM jobs run"
        text = (
            f"{count} that no Snakemake on this machine watches: {', '.join(first_few(left))}."
            " Started again, the study takes over their training where it is; or cancel them"
        )
        mend = f"{study.again()}    # or: {shlex.join(['scancel', *ids])}"
        yield Symptom("orphaned jobs", text, mend, ids)


def leases(study: Study) -> Iterator[Symptom]:
    """Yield a symptom for each lease whose holder is dead, and a note for each that lives."""
    runs = {str(run): run for run in study.layout.runs()}
    for name, holder, dead in study.holders:
        run = runs.get(name)
        if dead is None:
            text = f"{name} is trained by {holder} since {holder.record['began']}"
            of_today = run is None or study.status.key(run) in (None, holder.record["key"])
            text += ("" if of_today else OTHER) + ("" if study.drivers else UNWATCHED)
            yield Symptom(NOTE, text, names=(name,))
            continue
        done = run is None or not study.status.run(run).missing
        mend = remove([study.layout.state / LEASES / name]) if done else study.again()
        yield Symptom("leases", f"{holder} still has {name}, and {dead}", mend, (name,))


def locks(study: Study) -> Iterator[Symptom]:
    """Yield the lock of a Snakemake that has ended."""
    root = f"{study.layout.root}/"  # a lock lists the files that it is on
    files = [
        file
        for file in study.snakemakes("locks").glob("*.lock")
        if any(line.startswith(root) for line in read(file).splitlines())
    ]
    if files and not study.drivers:
        age = lasting(time.time() - max(file.stat().st_mtime for file in files))
        text = (
            f"locked for {age} by a Snakemake that does not run on {socket.gethostname()}; it may"
            " run on another machine, which cannot be seen from here: look there first"
        )
        names = tuple(str(file.relative_to(study.folder)) for file in files)
        yield Symptom("locked", text, study.snakemake("--unlock"), names)


def marks(study: Study) -> Iterator[Symptom]:
    """Yield outputs that were being made when Snakemake was killed, by their folder."""
    marked: dict[Path, list[str]] = {}
    for output in sorted(_marked(study.snakemakes("incomplete"))):
        there = output.is_relative_to(study.layout.root) and (study.folder / output).exists()
        if there and not study.drivers:  # else it is about to complete them
            marked.setdefault(output.parent, []).append(output.name)
    for folder, names in marked.items():
        text = f"{folder} was being made when Snakemake ended: {', '.join(names)} may be incomplete"
        outputs = tuple(str(folder / name) for name in names)
        yield Symptom("incomplete", text, study.again(), outputs)


def _marked(folder: Path) -> Iterator[Path]:
    """Yield the outputs that are marked: the name of a mark is a path in base 64, in parts."""
    for mark in filter(Path.is_file, folder.rglob("*")):
        parts = [part.removeprefix("@") for part in mark.relative_to(folder).parts]
        try:
            yield Path(urlsafe_b64decode("".join(parts)).decode())
        except (binascii.Error, UnicodeDecodeError):
            continue  # a file of Snakemake that is no mark
