"""`tasks.parquet` and `augmentations.parquet`: what the columns mean, writing and reading.

tasks.parquet has one row per pair, in the order of tasks, demos before queries. A grid is its
height, its width and its colours in reading order, one byte each.
augmentations.parquet has one row per augmented puzzle: not the grids, but the recipe.
Column by column, the meaning is in `TASKS_SCHEMA` and `AUGMENTATIONS_SCHEMA`, and in the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etrm.arc.augment import COLORS, LANES, Variants
from etrm.arc.task import Pair, Task
from etrm.errors import MissingFileError, UserError
from etrm.storage.files import write_table_atomic

SPLITS = ("training", "evaluation")
DIGEST_BYTES = 8 * LANES


def _column(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


TASKS_SCHEMA = pa.schema(
    [
        _column("task", pa.string(), "task id"),
        _column("source", pa.string(), "name of the source in the study's config"),
        _column("split", pa.string(), "training or evaluation"),
        _column("role", pa.string(), "demo or query"),
        _column("index", pa.uint32(), "position among the task's pairs of this role, from 0"),
        _column("input_height", pa.uint8(), "rows of the input grid, 1-30"),
        _column("input_width", pa.uint8(), "columns of the input grid, 1-30"),
        _column("input", pa.binary(), "colours 0-9 of the input grid, row by row, a byte each"),
        _column("output_height", pa.uint8(), "rows of the output grid; null: not known", True),
        _column("output_width", pa.uint8(), "columns of the output grid; null: not known", True),
        _column("output", pa.binary(), "colours of the output grid; null: not known", True),
        _column(
            "duplicate_of",
            pa.string(),
            "of a training task: a held-out task that it touches, alone or with others, by pairs "
            "that are equal up to dihedral and colours; strict training leaves it out. null: none",
            True,
        ),
        _column(
            "answer_of",
            pa.string(),
            "of a training task: a held-out task of which it holds a labelled test pair, up to "
            "dihedral and colours; all training leaves it out. null: none",
            True,
        ),
    ],
    metadata={"etrm_table": "tasks", "etrm_version": "3"},
)

AUGMENTATIONS_SCHEMA = pa.schema(
    [
        _column("task", pa.dictionary(pa.int32(), pa.string()), "task id"),
        _column("variant", pa.uint16(), "number of the variant; 0 is the task unchanged"),
        _column(
            "dihedral",
            pa.uint8(),
            "0 identity, 1-3 quarter turns counter-clockwise, 4 left-right flip, "
            "5 up-down flip, 6 transpose, 7 left-right flip of a quarter turn",
        ),
        _column("permutation", pa.binary(COLORS), "byte c is what becomes of colour c; 0 stays 0"),
        _column("digest", pa.binary(DIGEST_BYTES), "128 bits: equal where variants look the same"),
    ],
    metadata={"etrm_table": "augmentations", "etrm_version": "1"},
)


class TableError(UserError):
    """A file is not the table it should be. The message says what to do about it."""

    def __init__(self, path: Path, found: str, expected: str, target: str) -> None:
        remedy = f"delete it and run the target `{target}` again"
        super().__init__(f"{path}: found {found}, expected {expected}; {remedy}")


@dataclass(frozen=True)
class TaskRecord:
    """A task, the name of its source, its split, and which held-out tasks it gives away."""

    task: Task
    source: str
    split: str
    duplicate_of: str | None = None  # a held-out task that it touches
    answer_of: str | None = None  # one of which it holds a labelled test pair


def write_tasks(path: Path, records: Iterable[TaskRecord]) -> None:
    """Write tasks.parquet, atomically; the same records give the same bytes."""
    columns: dict[str, list[Any]] = {name: [] for name in TASKS_SCHEMA.names}
    for record in records:
        for role, pairs in (("demo", record.task.demos), ("query", record.task.queries)):
            for index, pair in enumerate(pairs):
                values = (record.task.id, record.source, record.split, role, index)
                grids = (*_grid_cells(pair.input), *_grid_cells(pair.output))
                row = (*values, *grids, record.duplicate_of, record.answer_of)
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    write_table_atomic(path, pa.table(columns, schema=TASKS_SCHEMA))


def read_tasks(path: Path) -> list[TaskRecord]:
    """Read tasks.parquet, in its order. Raises TableError, or FileNotFoundError."""
    rows = _read(path, TASKS_SCHEMA, "tasks").to_pylist()
    grouped = groupby(rows, key=lambda row: row["task"])
    records = [_read_record(path, list(pairs)) for _, pairs in grouped]
    counts = Counter(record.task.id for record in records)
    [(task_id, occurrences)] = counts.most_common(1)
    if occurrences > 1:
        found = f"task {task_id} in {occurrences} places"
        raise TableError(path, found, "the pairs of a task together", "tasks")
    return records


def _read_record(path: Path, rows: Sequence[dict[str, Any]]) -> TaskRecord:
    task_id, source, split = (rows[0][key] for key in ("task", "source", "split"))
    pairs: dict[str, list[Pair]] = {"demo": [], "query": []}
    for row in rows:
        role = row["role"]
        in_order = role in pairs and row["index"] == len(pairs[role])
        if not in_order or (row["source"], row["split"]) != (source, split) or split not in SPLITS:
            found = f"task {task_id}, {role} {row['index']}, {row['source']}, {row['split']}"
            raise TableError(path, found, "its demos and queries in order, of one split", "tasks")
        pairs[role].append(_read_pair(path, row))
    if not all(pairs.values()):
        found = f"task {task_id}: {len(pairs['demo'])} demos, {len(pairs['query'])} queries"
        raise TableError(path, found, "at least one of each", "tasks")
    task = Task(task_id, tuple(pairs["demo"]), tuple(pairs["query"]))
    return TaskRecord(task, source, split, rows[0]["duplicate_of"], rows[0]["answer_of"])


def _grid_cells(grid: np.ndarray | None) -> tuple[int | None, int | None, bytes | None]:
    if grid is None:
        return None, None, None
    return grid.shape[0], grid.shape[1], grid.astype(np.uint8).tobytes()


def _read_pair(path: Path, row: Mapping[str, Any]) -> Pair:
    grids: list[np.ndarray | None] = []
    for key in ("input", "output"):
        height, width, cells = row[f"{key}_height"], row[f"{key}_width"], row[key]
        if cells is None and key == "output":
            grids.append(None)
            continue
        if not height or not width or height * width != len(cells or b""):
            where = f"task {row['task']}, {row['role']} {row['index']}, {key}"
            found = f"{len(cells or b'')} cells of {height} x {width} ({where})"
            raise TableError(path, found, "height x width cells", "tasks")
        grids.append(np.frombuffer(cells, dtype=np.uint8).reshape(height, width))
    assert grids[0] is not None
    return Pair(grids[0], grids[1])


def write_augmentations(path: Path, variants: Mapping[str, Variants]) -> None:
    """Write augmentations.parquet (task id -> its variants), atomically; same input, same bytes."""
    lengths = [len(drawn) for drawn in variants.values()]
    count = sum(lengths)
    parts = list(variants.values())
    dihedral = np.concatenate([part.dihedral for part in parts]).astype(np.uint8)
    permutation = np.concatenate([part.permutation for part in parts]).astype(np.uint8)
    digest = np.concatenate([part.digest for part in parts]).astype("<u8")
    arrays = [
        pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(len(parts), dtype=np.int32), lengths), pa.array(list(variants))
        ),
        pa.array(np.concatenate([np.arange(length, dtype=np.uint16) for length in lengths])),
        pa.array(dihedral),
        _fixed_size_binary(permutation, COLORS, count),
        _fixed_size_binary(digest, DIGEST_BYTES, count),
    ]
    table = pa.Table.from_arrays(arrays, schema=AUGMENTATIONS_SCHEMA)
    write_table_atomic(path, table, use_dictionary=["task"])


def _fixed_size_binary(values: np.ndarray, width: int, count: int) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values).tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, buffers)


def read_augmentations(path: Path) -> dict[str, Variants]:
    """Read augmentations.parquet: task id -> its variants. Raises TableError, FileNotFoundError."""
    table = _read(path, AUGMENTATIONS_SCHEMA, "augment")
    columns = [column.combine_chunks() for column in table.unify_dictionaries().columns]
    task = columns[0].indices.to_numpy(zero_copy_only=False)
    names = columns[0].dictionary.to_pylist()
    variant, dihedral = (column.to_numpy() for column in columns[1:3])
    permutation = _bytes_of(columns[3], COLORS).reshape(-1, COLORS)
    digest = _bytes_of(columns[4], DIGEST_BYTES).view("<u8").reshape(-1, LANES).astype(np.uint64)
    starts = np.flatnonzero(np.diff(task, prepend=-1))
    read = {}
    for start, end in zip(starts, [*starts[1:], len(task)], strict=True):
        name = names[task[start]]
        if name in read or not np.array_equal(variant[start:end], np.arange(end - start)):
            found = f"variants of task {name} out of order"
            raise TableError(path, found, "numbers 0, 1, 2, ... of each task", "augment")
        rows = slice(start, end)
        read[name] = Variants(dihedral[rows], permutation[rows], digest[rows])
    return read


def _bytes_of(column: pa.Array, width: int) -> np.ndarray:
    cells = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return cells[column.offset * width : (column.offset + len(column)) * width]


def _read(path: Path, schema: pa.Schema, target: str) -> pa.Table:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; run the target `{target}` first")
    expected = f"the table written by the target `{target}`"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TableError(path, f"no readable parquet file ({reason})", expected, target) from error
    found = table.schema
    missing = [name for name in schema.names if name not in found.names]
    if missing:
        raise TableError(path, f"no column {', '.join(missing)}", expected, target)
    for field in schema:
        if found.field(field.name).type != field.type:
            kind = found.field(field.name).type
            raise TableError(path, f"column {field.name} of type {kind}", str(field.type), target)
    version = (schema.metadata or {})[b"etrm_version"]
    if (found.metadata or {}).get(b"etrm_version") != version:
        raise TableError(path, "another version of the table", f"version {version!r}", target)
    if table.num_rows == 0:
        raise TableError(path, "no row", expected, target)
    return table.select(schema.names)
