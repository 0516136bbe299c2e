"""Results of a study that are incomplete or stale, by `etrm.study.stale`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from etrm.config.text import first_few
from etrm.storage.records import DamagedFileError
from etrm.study.doctor.symptom import Study, Symptom
from etrm.study.doctor.workflow import knows
from etrm.study.layout import Run
from etrm.study.stale import Status, StudyStatus


def _all(study: Study, status: StudyStatus) -> Iterator[tuple[str, Run, Path, Status]]:
    """Yield runs and evaluations: kind, run, record and status."""
    for run in study.layout.runs():
        yield "run", run, study.layout.folder(run) / "run.json", status.run(run)
    for run in study.layout.scored():
        yield "evaluation", run, study.layout.score(run), status.score(run)


def incomplete(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Symptom]:
    """Yield interrupted runs, and folders with some of their files; `live`: runs in training."""
    for kind, run, record, found in _all(study, status):
        name, folder = str(run), record.parent
        if kind == "run" and name in live:
            continue  # it is about to be completed
        if found.step is not None and not found.up_to_date:
            steps = study.layout.config_of(run).train.steps
            text = f"{name} was interrupted at step {found.step} of {steps}, and resumes there"
            yield Symptom("incomplete", text, study.again(), (name,))
        elif found.files and found.missing:
            text = f"{folder} has only some of its files, missing: {', '.join(found.missing)}"
            yield Symptom("incomplete", text, study.again(), (str(folder),))


def stale(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Symptom]:
    """Yield stale runs and evaluations, grouped by how they differ from the current study.

    Full runs that a gate stops are left out: they would not be run.
    """
    groups: dict[tuple[str, str, bool], list[tuple[str, Path]]] = {}
    for kind, run, record, found in _all(study, status):
        if found.stale and str(run) not in live and _expected(run, status):
            # Snakemake reruns what it has a record of by itself; other results must be forced.
            group = (kind, "; ".join(found.differences()), knows(study, record))
            groups.setdefault(group, []).append((str(run), record))
    for (kind, differences, known), results in groups.items():
        names, records = zip(*results, strict=True)
        count = f"{len(names)} stale {kind}{'s' if len(names) > 1 else ''}"
        text, mend = f"{count} ({differences}): {', '.join(first_few(names))}", study.again()
        if not known:
            text += "; Snakemake has no record of how they were made, and would keep them"
            mend = study.snakemake("--cores", "2", "--forcerun", *map(str, records))
        yield Symptom("stale", text, mend, names)


def _expected(run: Run, status: StudyStatus) -> bool:
    try:
        return run.stage != "full" or status.expects_full(run.experiment, run.seed)
    except DamagedFileError:  # reported as damaged
        return False
