"""Processes that train runs of a study: SLURM jobs that nobody watches, and leases."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from etrm.runtime.run_lock import LEASES, SILENCE_SECONDS, Holder, all_holders, is_running
from etrm.study.doctor.finding import NOTE, Finding, Study, lasting, listed, remove
from etrm.study.doctor.workflow import Driver
from etrm.study.layout import Run
from etrm.study.status import StudyStatus

SQUEUE = ("squeue", "--me", "--noheader", "--format=%i|%T|%r|%Z|%k|%M|%j")
SQUEUE_SECONDS = 10.0
# Why a job waits that asks for what it will never get: more time, or nodes, than there are.
NEVER = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit"),
)
OTHER = ", in another configuration or from other data or code than today's"
UNWATCHED = "; no Snakemake on this machine watches it: started again, the study takes it over"


class SqueueError(RuntimeError):
    """`squeue` is there and gives no answer."""


@dataclass(frozen=True)
class SlurmJob:
    """A SLURM job of this user, as `squeue` tells it."""

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
    """The jobs that Snakemake has submitted from this folder; none where there is no SLURM."""
    try:
        done = subprocess.run(
            SQUEUE, capture_output=True, encoding="utf-8", errors="replace", timeout=SQUEUE_SECONDS
        )
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SqueueError(str(error)) from None
    if done.returncode:
        raise SqueueError(done.stderr.strip())
    fields = [line.split("|", 6) for line in done.stdout.splitlines()]
    jobs = [SlurmJob(*each) for each in fields if len(each) == 7]
    return [
        job
        for job in jobs
        if job.comment.startswith("rule_") and Path(job.folder).resolve() == study.folder
    ]


def stuck(jobs: Sequence[SlurmJob]) -> Iterator[Finding]:
    """Jobs that wait for what they will never get; Snakemake waits with them."""
    for reason in NEVER:
        waiting = [job for job in jobs if job.state == "PENDING" and job.reason == reason]
        if waiting:
            cancel = shlex.join(["scancel", *(job.id for job in waiting)])
            yield Finding(
                "stuck jobs",
                f"{listed(map(str, waiting))} will never start ({reason}): change what it asks for"
                " in slurm/site.yaml (time: runtime), stop Snakemake, and start it again",
                cancel,
                tuple(job.id for job in waiting),
            )


def unwatched(
    study: Study, jobs: Sequence[SlurmJob], watching: Sequence[Driver]
) -> Iterator[Finding]:
    """SLURM jobs whose Snakemake is gone; they go on, and their results are used."""
    ids = {driver.run_id for driver in watching}
    left = [job for job in jobs if not watching or (None not in ids and job.name not in ids)]
    if not left:
        return
    cancel = shlex.join(["scancel", *(job.id for job in left)])
    count = "1 SLURM job runs" if len(left) == 1 else f"{len(left)} SLURM jobs run"
    yield Finding(
        "orphaned jobs",
        f"{count} that no Snakemake on this machine watches:"
        f" {listed(map(str, left))}. Started again, the study takes over what they train where"
        " they are; or end them",
        f"{study.again()}    # or: {cancel}",
        tuple(job.id for job in left),
    )


def leases(
    study: Study, status: StudyStatus, jobs: Sequence[SlurmJob], watching: Sequence[Driver]
) -> Iterator[Finding]:
    """Who has the lease on which run: those that live are noted."""
    ids = {job.id for job in jobs}
    runs = {f"{r.experiment}/{r.stage}/seed{r.seed}": r for r in study.pipeline.runs()}
    for name, holder in all_holders(study.pipeline.state):
        process, run = str(holder), runs.get(name)
        silent = _dead(holder, ids)
        if silent is None:
            text = f"{name} is trained by {process} since {holder.record['began']}"
            text += "" if run is None or _is_of_today(holder, run, status) else OTHER
            text += "" if watching else UNWATCHED
            yield Finding(NOTE, text, names=(name,))
            continue
        done = run is None or not status.run(run).missing
        mend = remove([study.pipeline.state / LEASES / name]) if done else study.again()
        yield Finding("leases", f"{process} still has {name}, and {silent}", mend, (name,))


def _dead(holder: Holder, ids: set[str]) -> str | None:
    """What speaks for it that a holder has ended; None where it lives, as far as can be seen."""
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
    holders = all_holders(study.pipeline.state)
    return {name: h.record["key"] for name, h in holders if _dead(h, ids) is None}
