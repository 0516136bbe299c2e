"""Files in the folder of a study that no run, evaluation or process of it has a use for."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from etrm.runtime.run_lock import LEASES
from etrm.study.doctor.finding import Finding, Study, lasting, listed, remove, weighed
from etrm.study.doctor.results import name_of
from etrm.study.layout import Run
from etrm.study.status import STATES, StudyStatus

FINISHED = "finished"  # results that `etrm.storage.finished` keeps, among the states
WRITTEN = ("data", "runs", "evaluation", "state", "figures", "tables", "records")
# What has not been written to for so long is no file that somebody is writing.
TEMPORARY_SECONDS = 600.0
CAUTION = "another study file with the same name of study may have it"


def states(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Finding]:
    """States that no run goes on from; `live`: keys of runs that processes train now."""
    keys = {run: status.key(run) for run in study.pipeline.runs()}
    unknown = [name_of(run) for run, key in keys.items() if key is None]
    runs = {key[:16]: run for run, key in keys.items() if key is not None}
    used = {key[:16] for key in live}
    for folder in sorted(study.pipeline.state.glob("*")):
        if folder.name in (LEASES, FINISHED) or folder.name in used or not folder.is_dir():
            continue
        run = runs.get(folder.name)
        if run is None:
            yield _orphan(study, folder, unknown)
        elif not status.run(run).missing and not status.run(run).differences():
            text = f"{_described(folder)} is of {name_of(run)}, which is finished"
            yield Finding("orphaned files", text, remove([folder]), (str(folder),))


def _orphan(study: Study, folder: Path, unknown: list[str]) -> Finding:
    """A state of no run that is known; it is not to be removed while it may be of one."""
    text = f"{_described(folder)} is of no run that the study has today"
    if unknown:
        text += (
            f", or of {listed(unknown)}, which cannot be told before their tables and first"
            " weights are there: make these first"
        )
        return Finding("orphaned files", text, study.again(), (str(folder),))
    text += ": its configuration, code, data or first weights are no more"
    return Finding("orphaned files", text, remove([folder]), (str(folder),))


def _described(folder: Path) -> str:
    size, written = weighed([folder])
    steps = sorted(path.stem.removeprefix("step").lstrip("0") for path in folder.glob(STATES))
    step = f"step {steps[-1] or 0}, " if steps else ""
    return f"{folder} ({step}{size}, written {lasting(time.time() - written)} ago)"


def strangers(study: Study) -> Iterator[Finding]:
    """Results of experiments, stages and seeds that the study does not have."""
    gone: dict[str, list[Path]] = {}
    experiments, known = study.pipeline.study.experiments, set(_known(study))
    for experiment, path in _results(study.pipeline.root):
        if experiment not in experiments:
            gone.setdefault(f"experiment {experiment}", []).append(path)
    for experiment, place, path in _parts(study.pipeline.root):
        if experiment in experiments and (experiment, place) not in known:
            gone.setdefault(f"{experiment}/{place}", []).append(path)
    for name, paths in gone.items():
        size, written = weighed(paths)
        text = (
            f"{name} is not in {study.configfile}, but has results ({size}, written"
            f" {lasting(time.time() - written)} ago); {CAUTION}"
        )
        yield Finding("orphaned files", text, remove(paths), tuple(map(str, paths)))


def _known(study: Study) -> Iterator[tuple[str, str]]:
    """Experiment, and stage with seed, of all runs and evaluations."""
    for run in study.pipeline.runs():
        yield run.experiment, _place(run, run.stage)
    for run in study.pipeline.scored():
        yield run.experiment, _place(run, "evaluation")


def _place(run: Run, stage: str) -> str:
    return f"{stage}/seed{run.seed}"


def _results(root: Path) -> Iterator[tuple[str, Path]]:
    """Experiment, and where all that there is of it is."""
    for parent in ("runs", "evaluation", f"state/{FINISHED}", "logs"):
        for folder in sorted((root / parent).glob("*/")):
            yield folder.name, folder
    for record in sorted((root / "records").glob("*.md")):
        yield record.stem, record


def _parts(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Experiment, stage with seed, and folder of runs, evaluations and kept ones."""
    for parent in ("runs", f"state/{FINISHED}"):
        for folder in sorted((root / parent).glob("*/*/seed*/")):
            yield folder.parts[-3], "/".join(folder.parts[-2:]), folder
    for folder in sorted((root / "evaluation").glob("*/seed*/")):
        yield folder.parts[-2], f"evaluation/{folder.name}", folder


def temporaries(study: Study) -> Iterator[Finding]:
    """What processes that were killed while they wrote have left."""
    before = time.time() - TEMPORARY_SECONDS
    left = [path for path in _temporaries(study.pipeline.root) if weighed([path])[1] < before]
    if left:
        text = f"{len(left)} files that were being written when their process was killed"
        yield Finding(
            "orphaned files",
            f"{text} ({weighed(left)[0]})",
            remove(left),
            tuple(map(str, left)),
        )


def _temporaries(root: Path) -> Iterable[Path]:
    return (path for part in WRITTEN for path in sorted((root / part).rglob(".*.tmp")))
