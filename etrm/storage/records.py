"""Records of a study: `run.json`, `verdict.json`, `score.json`, and the tables beside them.

All readers use these functions, so that a damaged file is reported in the same way everywhere, with
the defect and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etrm.errors import MissingFileError, UserError
from etrm.storage.files import file_digest

Keys = Mapping[str, type | tuple[type, ...]]  # dotted key: its type or types

NUMBER = (int, float)  # JSON writes 1.0 as 1 in some languages
IDENTITY: Keys = {"experiment": str, "stage": str, "seed": int}
DESCRIBED: Keys = {**IDENTITY, "kind": str, "split": str}  # enough to list a run in a report
RUN: Keys = {
    **DESCRIBED,
    **{"config": dict, "key": str, "weights_sha256": str, "code_digest": str},
    **{"steps_done": int, "device": str},
}
VERDICT: Keys = {
    **{"experiment": str, "seed": int, "passed": bool, "diagnosis": list},
    **{"exact_accuracy": NUMBER, "threshold": NUMBER},
}
SCORE: Keys = {
    **IDENTITY,
    **{"evaluation": dict, "run_key": str, "held_out": dict, "pass": dict, "metrics": dict},
    **{"partial": bool, "predictions": int, "device": str},
}
REFINEMENT: Keys = {
    **IDENTITY,
    **{"refinement": dict, "run_key": str, "held_out": dict, "methods": dict, "device": str},
}
VALIDATION: Keys = {
    **IDENTITY,
    **{"validation": dict, "run_key": str, "tasks": dict, "exact": (*NUMBER, type(None))},
    **{"seen": list, "device": str},
}
SELECTION: Keys = {"selection": str, "rule": dict, "runs": list, "tasks": int}
REMEDY = "delete it and run its study again, which restores it or makes it anew"
_MISSING = object()  # None is a value of JSON


class DamagedFileError(UserError):
    """A file of a study that cannot be used; the message names it, its defect and the remedy."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(f"{path}: found {found}, expected {expected}; {REMEDY}")
        self.path, self.found = path, found


def read_run(folder: Path, keys: Keys = RUN) -> dict[str, Any]:
    """Return the `run.json` of a run folder; raise `DamagedFileError`, or `FileNotFoundError`."""
    return read_record(folder / "run.json", keys, "the record of a run")


def check_weights(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's weights, which must be the one in its record.

    Raises `DamagedFileError` where they are others, or damaged, and `FileNotFoundError`.
    """
    path, expected = folder / "model.safetensors", str(record["weights_sha256"])
    found = file_digest(path)
    if found != expected:
        wanted = f"{expected}, which its run.json says: it was changed, damaged, or is another's"
        raise DamagedFileError(path, f"SHA-256 {found}", wanted)
    return found


def read_record(path: Path, keys: Keys, expected: str) -> dict[str, Any]:
    """Return the JSON object in a file, which has at least `keys` (dotted), each of its type.

    Raises `DamagedFileError` for anything else, and `FileNotFoundError`.
    """
    try:
        content = json.loads(path.read_bytes() or b"null")  # a full disk leaves empty files
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file, expected {expected}") from None
    except OSError as error:
        raise DamagedFileError(path, f"an unreadable file ({error.strerror})", expected) from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise DamagedFileError(path, f"no JSON ({error})", expected) from None
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise DamagedFileError(path, found, expected)
    values = {key: _value_at(content, key) for key in keys}  # other keys are allowed
    if missing := [key for key, value in values.items() if value is _MISSING]:
        raise DamagedFileError(path, f"no {', '.join(missing)}", expected)
    for key, value in values.items():
        if not isinstance(value, keys[key]):
            found = f"{key} = {json.dumps(value)[:40]}"
            raise DamagedFileError(path, found, f"{expected}, where it is of another type")
    return content


def _value_at(record: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(record, dict) or part not in record:
            return _MISSING
        record = record[part]
    return record


def read_table(path: Path, expected: str, columns: tuple[str, ...] = ()) -> pa.Table:
    """Return a parquet table that has at least `columns`.

    Raises `DamagedFileError` for anything else, and `FileNotFoundError`.
    """
    try:
        # With checksums: a flipped bit may otherwise be read as another number.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file, expected {expected}") from None
    except (pa.ArrowException, OSError) as error:
        # Some messages of Arrow span lines, some are empty.
        reason = (str(error).splitlines() or ["of no known kind"])[0]
        raise DamagedFileError(path, f"no readable parquet file ({reason})", expected) from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise DamagedFileError(path, f"no column {', '.join(missing)}", expected)
    return table


def read_metrics(folder: Path) -> pa.Table:
    """Return the `metrics.parquet` of a run folder, a row for each logged step."""
    return read_table(folder / "metrics.parquet", "the metrics of a run", ("step",))


# Readers of the other records and tables by their path; they raise as `read_record` does.
read_verdict = partial(read_record, keys=VERDICT, expected="the verdict on an overfit run")
read_score = partial(read_record, keys=SCORE, expected="the score of a run")
read_refinement = partial(read_record, keys=REFINEMENT, expected="the refinement of a run")
read_validation = partial(read_record, keys=VALIDATION, expected="the validation of a run")
read_selection = partial(read_record, keys=SELECTION, expected="the record of a selection")
read_predictions = partial(  # a row for each task, query and variant
    read_table,
    expected="the predictions of an evaluation",
    columns=("task", "query", "variant", "height", "width", "grid", "q_halt"),
)
read_contexts = partial(  # a row for each task
    read_table,
    expected="the contexts of an evaluation",
    columns=("task", "split", "rule", "context"),
)
read_refined_answers = partial(  # a row for each attempt at a question
    read_table,
    expected="the refined answers of a run",
    columns=("method", "steps", "attempt", "task", "query", "variant", "grid", "likelihood"),
)
READERS: dict[str, Callable[[Path], object]] = {  # by the name of the file
    "run.json": lambda path: read_run(path.parent),
    "metrics.parquet": lambda path: read_metrics(path.parent),
    "verdict.json": read_verdict,
    "score.json": read_score,
    "predictions.parquet": read_predictions,
    "contexts.parquet": read_contexts,
    "refinement.json": read_refinement,
    "refinement.parquet": read_refined_answers,
    "validation.json": read_validation,
}
