"""`tasks.parquet` and `augmentations.parquet`: the meaning of the columns, writing and reading.

tasks.parquet has one row per pair, in the order of tasks, demos before queries. A grid is its
height, its width and its colours in reading order, one byte each.
augmentations.parquet has one row per augmented puzzle: not the grids, but the recipe.
Column by column, the meaning is in `TASKS_SCHEMA` and `AUGMENTATIONS_SCHEMA`, and in the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etrm.arc.augment import COLORS, DIGEST_WORDS, Variants
from etrm.arc.task import Pair, Rule, Task, task_from_json, task_to_json
from etrm.errors import MissingFileError, UserError
from etrm.storage.files import ABOUT, TRUTH, write_table_atomic

# Of the tasks of a study. Evaluation is held out for the score; validation, which is of the
# training sources, for the choice of experiments.
SPLITS = ("training", "validation", "evaluation")
SOURCES = b"etrm_sources"  # metadata of tasks.parquet: the sources that it was made of, as JSON
# Metadata, too: id of a generated task → the task whose rule it follows, in `task_to_json`'s form.
# It determines no number: it decided which tasks training leaves out, and tells those that a run
# has seen.
ORIGINALS = b"etrm_originals"
ROWS_AT_ONCE = 10_000
DIGEST_BYTES = 8 * DIGEST_WORDS


def _column(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


def _truth(name: str, meaning: str) -> pa.Field:
    """Return a column of ground truth, which is no part of the keys of runs."""
    text = f"of a generated task: {meaning}. null: not known"
    return pa.field(name, pa.string(), metadata={"description": text, ABOUT: TRUTH})


TASKS_SCHEMA = pa.schema(
    [
        _column("task", pa.string(), "task id"),
        _column("source", pa.string(), "name of the source in the study's config"),
        _column("split", pa.string(), "training, validation or evaluation"),
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
        pa.field(
            "exact",
            pa.bool_(),
            nullable=False,
            metadata={
                "description": "whether it is another task when turned or in other colours: it has"
                " no variants, and touches tasks by equal grids alone",
                ABOUT: "the other columns and augmentations.parquet say what follows from it",
            },
        ),
        _truth("rule", "the name of the rule that it was made by"),
        _truth("parameters", "the values of the rule's parameters, as JSON"),
        _truth("novelty", "if it is held out, the part of it that no training task has"),
    ],
    metadata={"etrm_table": "tasks", "etrm_version": "4"},  # raised when a column changes
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
    """A file is not the table that it should be; the message says how to mend it."""

    def __init__(self, path: Path, found: str, expected: str, target: str) -> None:
        remedy = f"delete it and run the target `{target}` again"
        super().__init__(f"{path}: found {found}, expected {expected}; {remedy}")


@dataclass(frozen=True)
class TaskRecord:
    """A task, the name of its source, its split, and the held-out tasks that it gives away."""

    task: Task
    source: str
    split: str
    duplicate_of: str | None = None  # a held-out task that it touches
    answer_of: str | None = None  # one of which it holds a labelled test pair


def write_tasks(
    path: Path, records: Sequence[TaskRecord], sources: Mapping[str, Any] | None = None
) -> None:
    """Write tasks.parquet, atomically; the same records and sources give the same bytes.

    `sources`: the identity of each (`etrm.arc.sources.Loaded`), which `read_sources` returns.
    """
    rows: list[tuple[Any, ...]] = []  # one a pair
    for record in records:
        for role, pairs in (("demo", record.task.demos), ("query", record.task.queries)):
            for index, pair in enumerate(pairs):
                place = (record.task.id, record.source, record.split, role, index)
                rule = record.task.rule
                truth = (rule.name, rule.parameters, rule.novelty) if rule else (None,) * 3
                marks = (record.duplicate_of, record.answer_of, record.task.exact, *truth)
                rows.append((*place, *_cells(pair.input), *_cells(pair.output), *marks))
    tasks = [record.task for record in records]
    originals = {t.id: task_to_json(t.original) for t in tasks if t.original is not None}
    about = {**(TASKS_SCHEMA.metadata or {}), SOURCES: json.dumps(dict(sources or {}))}
    about |= {ORIGINALS: json.dumps(originals)} if originals else {}
    columns = zip(*rows, strict=True) if rows else [()] * len(TASKS_SCHEMA)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, TASKS_SCHEMA, strict=True)]
    write_table_atomic(path, pa.Table.from_arrays(arrays, schema=TASKS_SCHEMA.with_metadata(about)))


def read_sources(path: Path) -> dict[str, dict[str, Any]]:
    """Return source name → its identity, of a tasks.parquet that `read_tasks` reads."""
    about = pq.read_schema(path).metadata or {}
    return dict(json.loads(about.get(SOURCES, b"{}")))


def _cells(grid: np.ndarray | None) -> tuple[int | None, int | None, bytes | None]:
    return (None, None, None) if grid is None else (*grid.shape, grid.astype(np.uint8).tobytes())


def read_tasks(path: Path, sources: Sequence[str] | None = None) -> list[TaskRecord]:
    """Read tasks.parquet, in its order, or the tasks of some `sources`.

    Raises TableError, or MissingFileError.
    """
    table = _read(path, TASKS_SCHEMA, "tasks")
    if sources is not None:  # before rows become objects: a study may have many sources
        table = table.filter(pc.is_in(table["source"], pa.array(sources, pa.string())))
    # Some at a time: a row takes a kilobyte as an object, and there may be a million.
    rows = (row for batch in table.to_batches(ROWS_AT_ONCE) for row in batch.to_pylist())
    about = json.loads((pq.read_schema(path).metadata or {}).get(ORIGINALS, b"{}"))
    originals = {name: task_from_json(each) for name, each in about.items()}
    records: dict[str, TaskRecord] = {}
    for task_id, own in groupby(rows, key=lambda row: row["task"]):  # of adjacent rows only
        if task_id in records:
            found = f"task {task_id} in several places"
            raise TableError(path, found, "the pairs of a task together", "tasks")
        records[task_id] = _read_record(path, list(own), originals.get(task_id))
    return list(records.values())


def _read_record(path: Path, rows: Sequence[dict[str, Any]], original: Task | None) -> TaskRecord:
    task_id, source, split = (rows[0][key] for key in ("task", "source", "split"))
    pairs: dict[str, list[Pair]] = {"demo": [], "query": []}
    for row in rows:
        role = row["role"]
        in_order = role in pairs and row["index"] == len(pairs[role])
        if not in_order or (row["source"], row["split"]) != (source, split) or split not in SPLITS:
            found = f"task {task_id}, {role} {row['index']}, {row['source']}, {row['split']}"
            raise TableError(path, found, "its demos and queries in order, of one split", "tasks")
        grids = [_read_grid(path, row, key) for key in ("input", "output")]
        pairs[role].append(Pair(*grids))
    if not all(pairs.values()):
        found = f"task {task_id}: {len(pairs['demo'])} demos, {len(pairs['query'])} queries"
        raise TableError(path, found, "at least one of each", "tasks")
    name, *truth = (rows[0][key] for key in ("rule", "parameters", "novelty"))
    rule = None if name is None else Rule(name, *truth)
    demos, queries = tuple(pairs["demo"]), tuple(pairs["query"])
    task = Task(task_id, demos, queries, rule, rows[0]["exact"], original)
    return TaskRecord(task, source, split, rows[0]["duplicate_of"], rows[0]["answer_of"])


def _read_grid(path: Path, row: Mapping[str, Any], key: str) -> Any:
    height, width, cells = row[f"{key}_height"], row[f"{key}_width"], row[key]
    if cells is None and key == "output":
        return None
    if not height or not width or height * width != len(cells or b""):
        where = f"task {row['task']}, {row['role']} {row['index']}, {key}"
        found = f"{len(cells or b'')} cells of {height} x {width} ({where})"
        raise TableError(path, found, "height x width cells", "tasks")
    return np.frombuffer(cells, dtype=np.uint8).reshape(height, width)


def write_augmentations(path: Path, variants: Mapping[str, Variants]) -> None:
    """Write augmentations.parquet (task id → its variants), atomically; same input, same bytes."""
    drawn = list(variants.values())
    lengths = [len(each) for each in drawn]
    number = np.concatenate([np.arange(length, dtype=np.uint16) for length in lengths])
    dihedral = np.concatenate([each.dihedral for each in drawn]).astype(np.uint8)
    task = np.repeat(np.arange(len(drawn), dtype=np.int32), lengths)
    arrays = [
        pa.DictionaryArray.from_arrays(task, pa.array(list(variants))),
        pa.array(number),
        pa.array(dihedral),
        _binary(np.concatenate([each.permutation for each in drawn]).astype(np.uint8)),
        _binary(np.concatenate([each.digest for each in drawn]).astype("<u8")),
    ]
    table = pa.Table.from_arrays(arrays, schema=AUGMENTATIONS_SCHEMA)
    write_table_atomic(path, table, use_dictionary=["task"])  # nothing else repeats


def _binary(rows: np.ndarray) -> pa.Array:
    """Return the bytes of each row of an array, without a Python object for each."""
    kind = pa.binary(rows[0].nbytes)  # fixed size, and no bitmap of nulls
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])


def read_augmentations(path: Path) -> dict[str, Variants]:
    """Read augmentations.parquet: task id → its variants. Raises TableError, MissingFileError."""
    table = _read(path, AUGMENTATIONS_SCHEMA, "augment").unify_dictionaries().combine_chunks()
    columns = [column.chunk(0) for column in table.columns]
    task = columns[0].indices.to_numpy(zero_copy_only=False)
    names = columns[0].dictionary.to_pylist()
    variant, dihedral = (column.to_numpy() for column in columns[1:3])
    permutation = np.frombuffer(columns[3].buffers()[1], np.uint8, COLORS * len(task))
    permutation = permutation.reshape(-1, COLORS)  # [rows, 10]
    digest = np.frombuffer(columns[4].buffers()[1], "<u8", DIGEST_WORDS * len(task))
    digest = digest.astype(np.uint64).reshape(-1, DIGEST_WORDS)
    starts = np.flatnonzero(np.diff(task, prepend=-1))  # the first row of each task
    read: dict[str, Variants] = {}
    for start, end in zip(starts, [*starts[1:], len(task)], strict=True):
        name, rows = names[task[start]], slice(start, end)
        if name in read or not np.array_equal(variant[rows], np.arange(end - start)):
            found = f"variants of task {name} out of order"
            raise TableError(path, found, "numbers 0, 1, 2, ... of each task", "augment")
        read[name] = Variants(dihedral[rows], permutation[rows], digest[rows])
    return read


def _read(path: Path, schema: pa.Schema, target: str) -> pa.Table:
    """Read the columns of `schema` from a file that the `target` wrote, and verify them."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; run the target `{target}` first")
    expected = f"the table written by the target `{target}`"
    try:
        # Checksums: a changed byte is an error, not another grid.
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
        if (kind := found.field(field.name).type) != field.type:
            raise TableError(path, f"column {field.name} of type {kind}", str(field.type), target)
    version = (schema.metadata or {})[b"etrm_version"]
    if (found.metadata or {}).get(b"etrm_version") != version:
        raise TableError(path, "another version of the table", f"version {version!r}", target)
    if table.num_rows == 0:
        raise TableError(path, "no row", expected, target)
    return table.select(schema.names)
