"""`etrm doctor`: what is locked, orphaned, damaged, incomplete or stale, and what mends it.

It only reads. Neither Snakemake nor SLURM nor a GPU has to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etrm.config.load import read_study
from etrm.study.doctor import damage, jobs, orphans, results, workflow
from etrm.study.doctor.symptom import KINDS, NOTE, Study, Symptom
from etrm.study.layout import Layout
from etrm.study.status import StudyStatus

ADVICE = "On a cluster, give Snakemake the options that the study was started with as well."


@dataclass(frozen=True)
class Diagnosis:
    """All that was found in a study."""

    study: str
    findings: tuple[Symptom, ...]  # the most urgent first
    notes: tuple[Symptom, ...]  # what needs no mending

    @property
    def code(self) -> int:
        """Exit code: 0 where there is nothing to mend."""
        return int(bool(self.findings))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "study": self.study,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": [asdict(note) for note in self.notes],
        }

    def text(self) -> str:
        """For a terminal: by kind, what it is and below it the command that mends it."""
        lines = []
        for kind in (NOTE, *KINDS):
            of_kind = [f for f in (*self.notes, *self.findings) if f.kind == kind]
            lines += [kind.capitalize(), *_lines(of_kind), ""] if of_kind else []
        end = ADVICE if self.findings else f"Study {self.study}: nothing to mend"
        return "\n".join([*lines, end])


def _lines(findings: Iterable[Symptom]) -> Iterator[str]:
    for finding in findings:
        yield f"  {finding.what}"
        if finding.mend is not None:
            yield f"      {finding.mend}"


def diagnose(configfile: str, verify: bool = False) -> Diagnosis:
    """Look at the study of a file, in this folder; `verify`: read all weights as well.

    Raises `ConfigError` where there is no such study.
    """
    study = Study(Layout(read_study(configfile)), configfile, Path.cwd().resolve())
    found = sorted(_findings(study, verify), key=lambda f: (NOTE, *KINDS).index(f.kind))
    notes = tuple(f for f in found if f.kind == NOTE)
    return Diagnosis(study.layout.study.study, tuple(f for f in found if f.kind != NOTE), notes)


def _findings(study: Study, verify: bool) -> Iterator[Symptom]:
    status, watching, submitted = StudyStatus(study.layout), workflow.drivers(study), []
    try:
        submitted = jobs.slurm_jobs(study)
    except jobs.SqueueError as error:
        yield Symptom(NOTE, f"SLURM jobs were not looked at: squeue gave no answer ({error})")
    live = jobs.live_runs(study, submitted)
    for driver in watching:
        yield Symptom(NOTE, f"Snakemake runs the study (process {driver.pid})", None)
    yield from jobs.stuck(submitted)
    yield from jobs.unwatched(study, submitted, watching)
    yield from jobs.leases(study, status, submitted, watching)
    if not watching:  # else it is at work on them
        yield from workflow.locks(study)
        yield from workflow.marks(study)
        yield from results.incomplete(study, status, live)
    yield from damage.damaged(study, verify)
    yield from results.stale(study, status, live)
    yield from orphans.states(study, status, live.values())
    yield from orphans.strangers(study)
    yield from orphans.temporaries(study)
