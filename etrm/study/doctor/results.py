"""Results of a study that are incomplete, or are not what would be made today."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from etrm.config.text import first_few
from etrm.storage.finished import RUN_FILES, SCORE_FILES
from etrm.storage.records import DamagedFileError
from etrm.study.doctor.finding import Finding, Study
from etrm.study.doctor.workflow import knows
from etrm.study.layout import Run
from etrm.study.status import StudyStatus


def name_of(run: Run) -> str:
    """A run as its folders are named."""
    return f"{run.experiment}/{run.stage}/seed{run.seed}"


def incomplete(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Finding]:
    """Runs that were interrupted, and folders that have only some of their files."""
    for run in study.pipeline.runs():
        name, missing, step = name_of(run), status.run(run).missing, status.run(run).step
        if name in live:
            continue
        if step is not None and (missing or status.run(run).differences()):
            steps = study.pipeline.config_of(run).train.steps
            text = f"{name} was interrupted at step {step} of {steps}, from which it goes on"
            yield Finding("incomplete", text, study.again(), (name,))
        elif 0 < len(missing) < len(RUN_FILES):
            yield _partial(study, study.pipeline.folder(run), missing)
    for run in study.pipeline.scored():
        missing = status.score(run).missing
        if 0 < len(missing) < len(SCORE_FILES):
            yield _partial(study, Path(study.pipeline.score_files(run)[0]).parent, missing)


def _partial(study: Study, folder: Path, missing: Sequence[str]) -> Finding:
    text = f"{folder} has only some of its files, missing: {', '.join(missing)}"
    return Finding("incomplete", text, study.again(), (str(folder),))


def stale(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Finding]:
    """Runs and evaluations that differ from what would be made status, by how they differ.

    What a gate stops today is left out: it would not be made.
    """
    found: dict[tuple[str, str, bool], list[tuple[str, Path]]] = {}
    for what, run, target, differences in _all(study, status):
        if differences and _going(study, run) and name_of(run) not in live:
            group = (what, "; ".join(differences), knows(study, target))
            found.setdefault(group, []).append((name_of(run), target))
    for (what, how, known), results in found.items():
        names, targets = zip(*results, strict=True)
        count = f"{len(names)} {what}{'s' if len(names) > 1 else ''}"
        text = f"{count} made otherwise than today ({how}): {', '.join(first_few(names))}"
        if not known:
            text += "; Snakemake has no record of how they were made, and would keep them"
        mend = study.again() if known else _forced(study, targets)
        yield Finding("stale", text, mend, names)


def _going(study: Study, run: Run) -> bool:
    """Has no gate stopped it? Where that cannot be read, the file is found to be damaged."""
    try:
        return run.stage != "full" or study.pipeline.projected(run.experiment, run.seed)
    except DamagedFileError:
        return False


def _all(study: Study, status: StudyStatus) -> Iterator[tuple[str, Run, Path, list[str]]]:
    """What it is, its run, its record, and how it differs."""
    for run in study.pipeline.runs():
        yield "run", run, study.pipeline.folder(run) / "run.json", status.run(run).differences()
    for run in study.pipeline.scored():
        score = Path(study.pipeline.score_files(run)[SCORE_FILES.index("score.json")])
        yield "evaluation", run, score, status.score(run).differences()


def _forced(study: Study, targets: Collection[Path]) -> str:
    return study.snakemake("--cores", "2", "--forcerun", *map(str, targets))
