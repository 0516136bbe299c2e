"""Damaged files of a study: every file that a stage or a report would read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from etrm.data.tables import TableError, read_augmentations, read_tasks
from etrm.storage import records
from etrm.storage.records import DamagedFileError
from etrm.study.doctor.symptom import Study, Symptom, remove


def damaged(study: Study, verify: bool) -> Iterator[Symptom]:
    """Yield files that cannot be used; `verify`: read weights and tables to their end.

    A removed file is restored from the cache, or made again, when the study is run.
    """
    layout = study.layout
    paths = [layout.tasks, layout.augmentations]
    for run in layout.runs():
        paths += [*map(Path, layout.run_files(run)), layout.folder(run) / "verdict.json"]
    paths += [Path(path) for run in layout.scored() for path in layout.score_files(run)]
    for path in filter(Path.is_file, paths):
        try:
            READERS[path.name][verify](path)
        except (DamagedFileError, TableError) as error:
            text = str(error).rpartition("; ")[0]  # without its own advice
            yield Symptom("damaged", text, f"{remove([path])} && {study.again()}", (str(path),))


def _weights(path: Path) -> None:
    """Read weights to their end and compare their digest with the record, if that is readable."""
    try:
        record = records.read_run(path.parent)
    except (DamagedFileError, FileNotFoundError):  # a symptom of its own
        _names_of_weights(path)
    else:
        records.check_weights(path.parent, record)


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


Reader = Callable[[Path], object]
# By the name of a file: to read enough to trust it, and to read all of it.
READERS: dict[str, tuple[Reader, Reader]] = {
    "tasks.parquet": (_schema, read_tasks),
    "augmentations.parquet": (_schema, read_augmentations),
    "run.json": (lambda path: records.read_run(path.parent),) * 2,
    "metrics.parquet": (_schema, lambda path: records.read_metrics(path.parent)),
    "model.safetensors": (_names_of_weights, _weights),
    "verdict.json": (records.read_verdict, records.read_verdict),
    "predictions.parquet": (_schema, records.read_predictions),
    "score.json": (records.read_score, records.read_score),
    "submission.json": (lambda path: records.read_record(path, {}, "a submission"),) * 2,
}
