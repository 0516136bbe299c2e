"""Processes that train runs of a study: SLURM jobs that nobody watches, and leases."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.runtime.run_lock import LEASES, SILENCE_SECONDS, Holder, all_holders, is_running
from etrm.study.doctor.symptom import NOTE, Study, Symptom, lasting, remove
from etrm.study.doctor.workflow import Driver
from etrm.study.layout import Run
from etrm.study.stale import StudyStatus

SQUEUE = ("squeue", "--me", "--noheader", "--format=%i|%T|%r|%Z|%k|%M|%j")
SQUEUE_SECONDS = 10.0  # to wait for its answer
# Reasons of SLURM for a job that can never start: it asks for more time, or nodes, than there are.
NEVER = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit"),
)
OTHER = ", in another configuration or from other data or code than the study has now"
UNWATCHED = "; no Snakemake on this machine watches it: started again, the study takes it over"


class SqueueError(UserError):
    """`squeue` is installed and gives no answer."""


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


def slurm_jobs(study: Study) -> list[SlurmJob]:
    """Return the jobs that Snakemake has submitted from this folder; none without SLURM."""
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "replace", "timeout": SQUEUE_SECONDS}
    try:
        done = subprocess.run(SQUEUE, capture_output=True, **options)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SqueueError(str(error)) from None
    if done.returncode:
        raise SqueueError((done.stderr.strip().splitlines() or ["no reason"])[-1])
    fields = [line.split("|", 6) for line in done.stdout.splitlines()]
    jobs = [SlurmJob(*each) for each in fields if len(each) == 7]
    ours = [job for job in jobs if job.comment.startswith("rule_")]
    return [job for job in ours if Path(job.folder).resolve() == study.folder]


def stuck(jobs: Sequence[SlurmJob]) -> Iterator[Symptom]:
    """Yield the jobs that can never start; Snakemake waits for them."""
    for reason in NEVER:
        waiting = [job for job in jobs if job.state == "PENDING" and job.reason == reason]
        if waiting:
            ids = tuple(job.id for job in waiting)
            text = (
                f"{', '.join(first_few(waiting))} will never start ({reason}): lower the request"
                " in slurm/site.yaml (time: runtime), stop Snakemake, and start it again"
            )
            yield Symptom("stuck jobs", text, shlex.join(["scancel", *ids]), ids)


def unwatched(
    study: Study, jobs: Sequence[SlurmJob], watching: Sequence[Driver]
) -> Iterator[Symptom]:
    """Yield the SLURM jobs whose Snakemake has ended; they still run, and their results count."""
    drivers = {driver.run_id for driver in watching}
    # While the log of a driver does not name its jobs, any job may be its own.
    left = [j for j in jobs if not watching or (None not in drivers and j.name not in drivers)]
    if left:
        ids = tuple(job.id for job in left)
        count = "1 SLURM job runs" if len(left) == 1 else f"{len(left)} SLURM jobs run"
        text = (
            f"{count} that no Snakemake on this machine watches: {', '.join(first_few(left))}."
            " Started again, the study takes over their training where it is; or cancel them"
        )
        mend = f"{study.again()}    # or: {shlex.join(['scancel', *ids])}"
        yield Symptom("orphaned jobs", text, mend, ids)


def leases(
    study: Study, status: StudyStatus, jobs: Sequence[SlurmJob], watching: Sequence[Driver]
) -> Iterator[Symptom]:
    """Return a symptom for each lease whose holder is dead, and a note for each that lives."""
    ids = {job.id for job in jobs}
    runs = {f"{r.experiment}/{r.stage}/seed{r.seed}": r for r in study.layout.runs()}
    for name, holder in all_holders(study.layout.state):
        process, run = str(holder), runs.get(name)
        silent = _dead(holder, ids)
        if silent is None:
            text = f"{name} is trained by {process} since {holder.record['began']}"
            text += "" if run is None or _is_of_today(holder, run, status) else OTHER
            text += "" if watching else UNWATCHED
            yield Symptom(NOTE, text, names=(name,))
            continue
        done = run is None or not status.run(run).missing
        mend = remove([study.layout.state / LEASES / name]) if done else study.again()
        yield Symptom("leases", f"{process} still has {name}, and {silent}", mend, (name,))


def _dead(holder: Holder, ids: set[str]) -> str | None:
    """Return the evidence that a holder has ended; None where it lives, as far as can be seen."""
    runs = is_running(holder.record)
    if runs is not None:
        return None if runs else "has ended"
    if holder.record.get("slurm_job") in ids:
        return None
    silent = time.time() - holder.renewed
    if silent < SILENCE_SECONDS:
        return None
    return f"has given no heartbeat for {lasting(silent)}, by the clock of this machine"


def _is_of_today(holder: Holder, run: Run, status: StudyStatus) -> bool:
    return status.key(run) in (None, holder.record["key"])


def live_runs(study: Study, jobs: Sequence[SlurmJob]) -> dict[str, str]:
    """Key of the run that each live process trains, by the name of the run."""
    ids = {job.id for job in jobs}
    holders = all_holders(study.layout.state)
    return {name: h.record["key"] for name, h in holders if _dead(h, ids) is None}
