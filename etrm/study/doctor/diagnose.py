"""`etrm doctor`: locked, orphaned, damaged, incomplete or stale parts, and how to mend them.

It only reads. Neither Snakemake nor SLURM nor a GPU has to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etrm.config.load import read_study
from etrm.study.doctor import damage, jobs, orphans, results, workflow
from etrm.study.doctor.symptom import KINDS, NOTE, Study, Symptom
from etrm.study.layout import Layout
from etrm.study.stale import StudyStatus

ADVICE = "On a cluster, give Snakemake the options that the study was started with as well."


@dataclass(frozen=True)
class Diagnosis:
    """All symptoms of a study."""

    study: str
    symptoms: tuple[Symptom, ...]  # the most urgent first
    notes: tuple[Symptom, ...]  # those that need no mending

    @property
    def code(self) -> int:
        """Return the exit code: 0 where there is nothing to mend."""
        return int(bool(self.symptoms))

    def document(self) -> dict[str, Any]:
        """Return the diagnosis as JSON."""
        return {
            "study": self.study,
            "findings": [asdict(symptom) for symptom in self.symptoms],
            "notes": [asdict(note) for note in self.notes],
        }

    def text(self) -> str:
        """Return the diagnosis for a terminal: by kind, each with its command below it."""
        lines = []
        for kind in (NOTE, *KINDS):
            of_kind = [s for s in (*self.notes, *self.symptoms) if s.kind == kind]
            lines += [kind.capitalize()] if of_kind else []
            for symptom in of_kind:
                lines += [f"  {symptom.what}", *([f"      {symptom.mend}"] if symptom.mend else [])]
            lines += [""] if of_kind else []
        end = ADVICE if self.symptoms else f"Study {self.study}: nothing to mend"
        return "\n".join([*lines, end])


def diagnose(configfile: str, verify: bool = False) -> Diagnosis:
    """Examine the study of a file, in this folder; `verify`: read weights and tables to their end.

    Raises `ConfigError` where there is no such study.
    """
    study = Study(Layout(read_study(configfile)), configfile, Path.cwd().resolve())
    found = sorted(_symptoms(study, verify), key=lambda each: (NOTE, *KINDS).index(each.kind))
    notes = tuple(each for each in found if each.kind == NOTE)
    return Diagnosis(study.layout.study.study, tuple(found[len(notes) :]), notes)


def _symptoms(study: Study, verify: bool) -> Iterator[Symptom]:
    status, watching, submitted = StudyStatus(study.layout), workflow.drivers(study), []
    try:
        submitted = jobs.slurm_jobs(study)
    except jobs.SqueueError as error:
        yield Symptom(NOTE, f"SLURM jobs are unknown: squeue gave no answer ({error})")
    live = jobs.live_runs(study, submitted)
    for driver in watching:
        yield Symptom(NOTE, f"Snakemake runs the study (process {driver.pid})")
    yield from jobs.stuck(submitted)
    yield from jobs.unwatched(study, submitted, watching)
    yield from jobs.leases(study, status, submitted, watching)
    if not watching:  # else it is about to complete them
        yield from workflow.locks(study)
        yield from workflow.marks(study)
        yield from results.incomplete(study, status, live)
    yield from damage.damaged(study, verify)
    yield from results.stale(study, status, live)
    yield from orphans.states(study, status, live.values())
    yield from orphans.strangers(study)
    yield from orphans.temporaries(study)
