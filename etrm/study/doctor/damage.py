"""Damaged files of a study: every file that a stage or a report would read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from etrm.data.tables import TableError, read_augmentations, read_tasks
from etrm.storage.records import (
    DamagedFileError,
    check_weights,
    read_metrics,
    read_predictions,
    read_record,
    read_run,
    read_score,
    read_verdict,
)
from etrm.study.doctor.symptom import Study, Symptom, remove

Reader = Callable[[Path], object]


def damaged(study: Study, verify: bool) -> Iterator[Symptom]:
    """Yield files that cannot be used; `verify`: read weights and tables to their end.

    A removed file is restored from the cache, or made again, when the study is run.
    """
    for path, read in _files(study, verify):
        try:
            if path.is_file():
                read(path)
        except (DamagedFileError, TableError) as error:
            text = str(error).rpartition("; ")[0]  # without its own advice
            yield Symptom("damaged", text, f"{remove([path])} && {study.again()}", (str(path),))


def _files(study: Study, verify: bool) -> Iterator[tuple[Path, Reader]]:
    layout = study.layout
    yield layout.tasks, read_tasks if verify else _schema
    yield layout.augmentations, read_augmentations if verify else _schema
    for folder in map(layout.folder, layout.runs()):
        yield folder / "run.json", lambda path: read_run(path.parent)
        yield folder / "metrics.parquet", _metrics if verify else _schema
        yield folder / "model.safetensors", _weights if verify else _names_of_weights
        yield folder / "verdict.json", read_verdict
    for run in layout.scored():
        for path in map(Path, layout.score_files(run)):
            if path.suffix == ".parquet":
                yield path, read_predictions if verify else _schema
            elif path == layout.score(run):
                yield path, read_score
            else:
                yield path, lambda path: read_record(path, {}, "the submission of a run")


def _metrics(path: Path) -> None:
    read_metrics(path.parent)


def _weights(path: Path) -> None:
    """Read weights to their end and compare their digest with the record, if that is readable."""
    try:
        record = read_run(path.parent)
    except (DamagedFileError, FileNotFoundError):  # a symptom of its own
        _names_of_weights(path)
    else:
        check_weights(path.parent, record)


def _names_of_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        found = f"no readable safetensors file ({error})"
        raise DamagedFileError(path, found, "the weights of a run") from None


def _schema(path: Path) -> None:
    """Read the end of a table alone, which is written last."""
    try:
        pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        found = f"no readable parquet file ({(str(error).splitlines() or ['empty'])[0]})"
        raise DamagedFileError(path, found, "a table of the study") from None
