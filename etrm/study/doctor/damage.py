"""Files of a study that are damaged: everything that a stage or a report would read."""

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
    """Files that are there and cannot be used; `verify`: read weights and tables whole.

    Whatever is removed is restored from what is kept, or made anew, when the study is run again.
    """
    for path, read in _files(study, verify):
        if not path.is_file():
            continue
        try:
            read(path)
        except (DamagedFileError, TableError) as error:
            text = str(error).rpartition("; ")[0]
            mend = f"{remove([path])} && {study.again()}"
            yield Symptom("damaged", text, mend, (str(path),))


def _files(study: Study, verify: bool) -> Iterator[tuple[Path, Reader]]:
    layout = study.layout
    yield layout.tasks, read_tasks if verify else _schema
    yield layout.augmentations, read_augmentations if verify else _schema
    for run in layout.runs():
        folder = layout.folder(run)
        yield folder / "run.json", lambda path: read_run(path.parent)
        yield folder / "metrics.parquet", _metrics if verify else _schema
        yield folder / "model.safetensors", _weights if verify else _names_of_weights
        yield folder / "verdict.json", read_verdict
    for run in layout.scored():
        for path in map(Path, layout.score_files(run)):
            if path.suffix == ".parquet":
                yield path, read_predictions if verify else _schema
            elif path.name == "score.json":
                yield path, read_score
            else:
                yield path, lambda path: read_record(path, {}, "the submission of a run")


def _weights(path: Path) -> None:
    """Read all of a run's weights; a damaged record is found where it is read."""
    try:
        record = read_run(path.parent)
    except (DamagedFileError, FileNotFoundError):
        return _names_of_weights(path)
    check_weights(path.parent, record)
    return None


def _names_of_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        found = f"no readable safetensors file ({error})"
        raise DamagedFileError(path, found, "the weights of a run") from None


def _schema(path: Path) -> None:
    """Look at the end of a table alone, which is written last."""
    try:
        pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        found = f"no readable parquet file ({(str(error).splitlines() or ['empty'])[0]})"
        raise DamagedFileError(path, found, "a table of the study") from None


def _metrics(path: Path) -> None:
    read_metrics(path.parent)
