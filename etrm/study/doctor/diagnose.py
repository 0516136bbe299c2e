"""`etrm doctor`: locked, orphaned, damaged, incomplete or stale parts, and how to mend them.

It only reads. Neither Snakemake nor SLURM nor a GPU has to be there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etrm.config.load import read_study
from etrm.study.doctor import files, processes
from etrm.study.doctor.study import KINDS, NOTE, Study, Symptom
from etrm.study.layout import Layout

CHECKS = (
    *(processes.running, processes.stuck, processes.unwatched, processes.leases),
    *(processes.locks, processes.marks, files.incomplete, files.stale),
    *(files.states, files.strangers, files.temporaries),
)
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
    symptoms = [*files.damaged(study, verify), *(s for check in CHECKS for s in check(study))]
    found = sorted(symptoms, key=lambda each: (NOTE, *KINDS).index(each.kind))
    notes = tuple(each for each in found if each.kind == NOTE)
    return Diagnosis(study.layout.study.study, tuple(found[len(notes) :]), notes)
