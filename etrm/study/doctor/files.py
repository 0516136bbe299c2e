"""Files of a study that are damaged, incomplete or stale, and those that nothing uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from etrm.config.text import first_few
from etrm.data.tables import TableError, read_augmentations, read_tasks
from etrm.runtime.run_lock import LEASES
from etrm.storage import records
from etrm.storage.records import DamagedFileError
from etrm.storage.result_cache import CONTINUED, RESULT_FILES
from etrm.study.doctor.study import Study, Symptom, lasting, remove
from etrm.study.layout import CACHE, Run
from etrm.study.stale import STATES, Status

WRITTEN = (
    *("data", "runs", "evaluation", "refinement", "validation", "selections", "state"),
    *("figures", "tables", "records", "paper"),
)
TEMPORARY_SECONDS = 600.0  # a temporary file that is written to is younger


def damaged(study: Study, verify: bool) -> Iterator[Symptom]:
    """Yield files that cannot be used; `verify`: read weights and tables to their end.

    A removed file is restored from the cache, or made again, when the study is run.
    """
    layout = study.layout
    paths = [layout.tasks, layout.augmentations]
    for run in layout.runs():
        paths += [*map(Path, layout.run_files(run)), layout.folder(run) / "verdict.json"]
    paths += [Path(path) for result in layout.results() for path in layout.score_files(*result)]
    readers = {path: READERS[path.name] for path in paths}
    selections = map(layout.selection, layout.study.selections)
    readers |= dict.fromkeys(selections, records.read_selection)
    for path, reader in readers.items():
        try:
            if path.is_file():
                (reader if verify or path.suffix not in NAMES else _opens)(path)
        except (DamagedFileError, TableError) as error:
            text = str(error).rpartition("; ")[0]  # without its own advice
            yield Symptom("damaged", text, f"{remove([path])} && {study.again()}", (str(path),))


def _weights(path: Path) -> None:
    """Read weights to their end and compare their digest with the record, if that is readable."""
    try:
        record = records.read_run(path.parent)
    except (DamagedFileError, FileNotFoundError):  # a symptom of its own
        _opens(path)
    else:
        records.check_weights(path.parent, record)


def _opens(path: Path) -> None:
    """Read the names in a file alone; a table has them at its end, which is written last."""
    names, errors, kind, expected = NAMES[path.suffix]
    try:
        names(path)
    except errors as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise DamagedFileError(path, f"no readable {kind} file ({reason})", expected) from None


Reader = Callable[[Path], object]
NAMES: dict[str, tuple[Reader, tuple[type[Exception], ...], str, str]] = {
    ".parquet": (pq.read_schema, (pa.ArrowException, OSError), "parquet", "a table of the study"),
    ".safetensors": (
        lambda path: safe_open(path, "pt").keys(),
        *((SafetensorError, OSError), "safetensors", "the weights of a run"),
    ),
}
READERS: dict[str, Reader] = {
    "tasks.parquet": read_tasks,
    "augmentations.parquet": read_augmentations,
    **records.READERS,
    "model.safetensors": _weights,
    "submission.json": lambda path: records.read_record(path, {}, "a submission"),
}


def _results(study: Study) -> Iterator[tuple[str, Run, Path, Status]]:
    """Yield kind, run, record and status of all runs, evaluations and refinements."""
    layout, status = study.layout, study.status
    for run in layout.runs():
        yield "run", run, layout.folder(run) / "run.json", status.run(run)
    for run, stage in layout.results():
        yield stage, run, layout.score(run, stage), status.score(run, stage)


def incomplete(study: Study) -> Iterator[Symptom]:
    """Yield interrupted runs, and folders with some of their files."""
    for kind, run, record, found in _results(study):
        name, folder = str(run), record.parent
        if study.drivers or (kind == "run" and name in study.live):
            continue  # it is about to be completed
        if found.step is not None and not found.up_to_date:
            steps = study.layout.config_of(run).train.steps
            text = f"{name} was interrupted at step {found.step} of {steps}, and resumes there"
            yield Symptom("incomplete", text, study.again(), (name,))
        elif found.files and found.missing:
            text = f"{folder} has only some of its files, missing: {', '.join(found.missing)}"
            yield Symptom("incomplete", text, study.again(), (str(folder),))


def stale(study: Study) -> Iterator[Symptom]:
    """Yield stale runs and evaluations, grouped by how they differ from the current study.

    Full runs that a gate stops are left out: they would not be run.
    """
    groups: dict[tuple[str, str, bool], list[tuple[str, Path]]] = {}
    for kind, run, record, found in _results(study):
        if found.stale and str(run) not in study.live and _expected(study, run):
            # Snakemake reruns results that it has a record of by itself; others must be forced.
            group = (kind, "; ".join(found.differences()), study.known(record))
            groups.setdefault(group, []).append((str(run), record))
    for (kind, differences, known), results in groups.items():
        names, paths = zip(*results, strict=True)
        count = f"{len(names)} stale {kind}{'s' if len(names) > 1 else ''}"
        text, forced = f"{count} ({differences}): {', '.join(first_few(names))}", []
        if not known:
            text += "; Snakemake has no record of how they were made, and would keep them"
            forced = ["--forcerun", *map(str, paths)]
        yield Symptom("stale", text, study.again(*forced), names)


def _expected(study: Study, run: Run) -> bool:
    try:
        return run.stage != "full" or study.status.expects_full(run.experiment, run.seed)
    except DamagedFileError:  # reported as damaged
        return False


def states(study: Study) -> Iterator[Symptom]:
    """Yield states that no run resumes from, nor is trained with now."""
    keys = {run: study.status.key(run) for run in study.layout.runs()}
    unknown = [str(run) for run, key in keys.items() if key is None]
    runs = {key[:16]: run for run, key in keys.items() if key is not None}
    used = {
        LEASES,
        CACHE,
        *([CONTINUED] if study.layout.continued() else []),
        *(key[:16] for key in study.live.values()),
    }
    for folder in filter(Path.is_dir, sorted(study.layout.state.glob("*"))):
        run, mend = runs.get(folder.name), remove([folder])
        if folder.name in used or (run and not study.status.run(run).up_to_date):
            continue  # a run resumes from here
        steps = sorted(path.stem.removeprefix("step").lstrip("0") for path in folder.glob(STATES))
        step = f"step {steps[-1] or 0}, " if steps else ""
        whose = f"{run}, which is finished" if run else "no run that the study has now"
        text = f"{folder} ({step}{_written([folder])}) is of {whose}"
        if run is None and unknown:  # it may be the state of one of these: not to be removed
            mend = study.again()
            text += (
                f", or of {', '.join(first_few(unknown))}, whose states cannot be recognised"
                " before their tables and first weights are there: make these first"
            )
        elif run is None:
            text += ": its configuration, code, data or first weights have changed"
        yield Symptom("orphaned files", text, mend, (str(folder),))


def strangers(study: Study) -> Iterator[Symptom]:
    """Yield results of experiments, stages and seeds that the study does not have."""
    layout, known = study.layout, study.layout.study.experiments
    parts = {*map(str, layout.runs())}
    # The score of a former finalist stays: it says that the experiment has looked at test.
    parts |= {
        f"{run.experiment}/{stage}/seed{run.seed}"
        for run in layout.scorable()
        for stage in RESULT_FILES
    }
    gone: dict[str, list[Path]] = {}  # by name of an experiment, or of a part of one
    for place, path in _places(layout.root):
        experiment, _, part = place.partition("/")
        if experiment not in known and not part:
            gone.setdefault(f"experiment {experiment}", []).append(path)
        elif experiment in known and part and place not in parts:
            gone.setdefault(place, []).append(path)
    for name, paths in gone.items():
        text = (
            f"{name} is not in {study.configfile}, but has results ({_written(paths)}); they may"
            " belong to another file of a study with the same name"
        )
        yield Symptom("orphaned files", text, remove(paths), tuple(map(str, paths)))


def _places(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield all folders of results: of an experiment `name`, of a part `name/stage/seed`."""
    beside = [f"{stage}/*/" for stage in RESULT_FILES]
    for glob in ("runs/*/", *beside, f"state/{CACHE}/*/", "logs/*/", "records/*.md"):
        for path in sorted(root.glob(glob)):
            yield path.stem if path.suffix == ".md" else path.name, path
    beside = [f"{stage}/*/seed*/" for stage in RESULT_FILES]
    for glob in ("runs/*/*/seed*/", f"state/{CACHE}/*/*/seed*/", *beside):
        for path in sorted(root.glob(glob)):
            stage = glob.partition("/")[0] if glob in beside else path.parts[-2]
            name = path.relative_to(root / glob.partition("/*")[0]).parts[0]
            yield f"{name}/{stage}/{path.name}", path


def temporaries(study: Study) -> Iterator[Symptom]:
    """Yield temporary files of processes that were killed while they wrote."""
    found = (p for part in WRITTEN for p in sorted((study.layout.root / part).rglob(".*.tmp")))
    before = time.time() - TEMPORARY_SECONDS
    left = [path for path in found if _weighed([path])[1] < before]
    if left:
        text = f"{len(left)} files that were being written when their process was killed"
        text += f" ({_weighed(left)[0]})"
        yield Symptom("orphaned files", text, remove(left), tuple(map(str, left)))


def _written(paths: Collection[Path]) -> str:
    size, written = _weighed(paths)
    return f"{size}, written {lasting(time.time() - written)} ago"


def _weighed(paths: Collection[Path]) -> tuple[str, float]:
    """Return the size of files and folders, in words, and the time of the last write to them."""
    size, newest = 0, 0.0
    for path in paths:
        for each in (path, *path.rglob("*")):
            try:
                found = each.stat()
            except OSError:  # removed meanwhile
                continue
            size += found.st_size * each.is_file()
            newest = max(newest, found.st_mtime)
    return f"{size / 2**20:,.1f} MiB", newest
