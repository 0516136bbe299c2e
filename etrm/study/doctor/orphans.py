"""Files in the folder of a study that no run, evaluation or process of it uses."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path

from etrm.config.text import first_few
from etrm.runtime.run_lock import LEASES
from etrm.study.doctor.symptom import Study, Symptom, lasting, remove, weighed
from etrm.study.layout import CACHE
from etrm.study.stale import STATES, StudyStatus

WRITTEN = ("data", "runs", "evaluation", "state", "figures", "tables", "records")
TEMPORARY_SECONDS = 600.0  # a temporary file that is written to is younger


def states(study: Study, status: StudyStatus, live: Collection[str]) -> Iterator[Symptom]:
    """Yield states that no run resumes from; `live`: keys of runs that processes train now."""
    keys = {run: status.key(run) for run in study.layout.runs()}
    unknown = [str(run) for run, key in keys.items() if key is None]
    runs = {key[:16]: run for run, key in keys.items() if key is not None}
    used = {LEASES, CACHE, *(key[:16] for key in live)}
    for folder in sorted(study.layout.state.glob("*")):
        if folder.name in used or not folder.is_dir():
            continue
        run, mend, text = runs.get(folder.name), remove([folder]), _described(folder)
        if run is not None:
            if not status.run(run).up_to_date:
                continue  # the run resumes from here
            text += f" is of {run}, which is finished"
        else:
            text += " is of no run that the study has now"
            if unknown:  # while a key is unknown, this may be its state: not to be removed
                mend = study.again()
                text += (
                    f", or of {', '.join(first_few(unknown))}, whose states cannot be recognised"
                    " before their tables and first weights are there: make these first"
                )
            else:
                text += ": its configuration, code, data or first weights have changed"
        yield Symptom("orphaned files", text, mend, (str(folder),))


def _described(folder: Path) -> str:
    steps = sorted(path.stem.removeprefix("step").lstrip("0") for path in folder.glob(STATES))
    step = f"step {steps[-1] or 0}, " if steps else ""
    return f"{folder} ({step}{_written([folder])})"


def _written(paths: Collection[Path]) -> str:
    size, written = weighed(paths)
    return f"{size}, written {lasting(time.time() - written)} ago"


def strangers(study: Study) -> Iterator[Symptom]:
    """Yield results of experiments, stages and seeds that the study does not have."""
    layout = study.layout
    known = {f"{run.experiment}/{run.stage}/seed{run.seed}" for run in layout.runs()}
    known |= {f"{run.experiment}/evaluation/seed{run.seed}" for run in layout.scored()}
    gone: dict[str, list[Path]] = {}  # by name of an experiment, or of a part of one
    for place, path in _results(layout.root):
        experiment = place.partition("/")[0]
        if experiment not in layout.study.experiments and place == experiment:
            gone.setdefault(f"experiment {experiment}", []).append(path)
        elif experiment in layout.study.experiments and place not in {experiment, *known}:
            gone.setdefault(place, []).append(path)
    for name, paths in gone.items():
        text = (
            f"{name} is not in {study.configfile}, but has results ({_written(paths)}); they may"
            " belong to another file of a study with the same name"
        )
        yield Symptom("orphaned files", text, remove(paths), tuple(map(str, paths)))


def _results(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield all folders of results: of an experiment `name`, of a part `name/stage/seed`."""
    for parent in ("runs", "evaluation", f"state/{CACHE}", "logs"):
        for folder in sorted((root / parent).glob("*/")):
            yield folder.name, folder
    for record in sorted((root / "records").glob("*.md")):
        yield record.stem, record
    for parent in ("runs", f"state/{CACHE}"):
        for folder in sorted((root / parent).glob("*/*/seed*/")):
            yield "/".join(folder.parts[-3:]), folder
    for folder in sorted((root / "evaluation").glob("*/seed*/")):
        yield f"{folder.parts[-2]}/evaluation/{folder.name}", folder


def temporaries(study: Study) -> Iterator[Symptom]:
    """Yield temporary files of processes that were killed while they wrote."""
    found = (p for part in WRITTEN for p in sorted((study.layout.root / part).rglob(".*.tmp")))
    before = time.time() - TEMPORARY_SECONDS
    left = [path for path in found if weighed([path])[1] < before]
    if left:
        text = f"{len(left)} files that were being written when their process was killed"
        text += f" ({weighed(left)[0]})"
        yield Symptom("orphaned files", text, remove(left), tuple(map(str, left)))
