"""An evaluation that several jobs share: each decodes a shard, and one job merges the shards.

A shard takes whole batches, the same that a single job would decode: on the same kind of device its
answers are the same to the last bit. A shard's file names its evaluation (by key) and its number,
and every row is counted before shards are merged.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from etrm.config.text import first_few
from etrm.data.corpus import Corpus
from etrm.errors import UserError
from etrm.evaluation.decode import LaneQuestions, in_batches, in_order
from etrm.storage.files import write_table_atomic

CONTEXTS = "etrm_contexts"  # in the metadata of the first shard
Row = tuple[str, int, int]  # task id, test input, variant
AGAIN = "delete it and run the same command again: its job then decodes this shard anew"
SHOWN = 3  # rows that an error names


class ShardError(UserError):
    """Shards that are not a complete evaluation."""


@dataclass(frozen=True)
class Shard:
    """One of the jobs that share an evaluation."""

    number: int  # from 0
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ShardError(
                f"found shard {self.number} of {self.of}, expected one of 0 to {self.of - 1}"
            )

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}"


ALONE = Shard(0, 1)  # all of an evaluation


def questions_of_shard(
    lanes: Sequence[LaneQuestions], batch_size: int, shard: Shard
) -> list[LaneQuestions]:
    """Return the batches that a shard decodes: they are dealt in turn, from lane to lane.

    No shard has two batches more than another, of a lane or of all.
    """
    return in_batches(lanes, batch_size)[shard.number :: shard.of]


def rows_of(corpus: Corpus, lanes: Sequence[LaneQuestions]) -> list[Row]:
    """Return the rows of predictions that the questions give, in their order."""
    rows: list[Row] = []
    for episodes, index, variant in lanes:
        tasks, pairs = episodes.task[index].tolist(), episodes.query[index].tolist()
        for task, pair, v in zip(tasks, pairs, variant.tolist(), strict=True):
            rows.append((corpus.tasks[task].id, pair - corpus.query_pairs[task].start, v))
    return rows


def write_shard(
    path: Path, table: pa.Table, shard: Shard, key: str, contexts: pa.Table | None = None
) -> None:
    """Write the predictions of one shard of the evaluation with this key.

    The first shard has the `contexts` of all tasks as well: the job that merges builds no model.
    """
    tags: dict[str, str | bytes] = {**tags_of(key, shard)}
    if contexts is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, contexts.schema) as stream:
            stream.write_table(contexts)
        tags[CONTEXTS] = base64.b64encode(sink.getvalue())
    write_table_atomic(path, table.replace_schema_metadata(tags))


def contexts_in(path: Path) -> pa.Table:
    """Return the contexts in the file of the first shard, which `merge_shards` has read."""
    data = base64.b64decode((pq.read_schema(path).metadata or {})[CONTEXTS.encode()])
    return pa.ipc.open_stream(data).read_all()


def tags_of(key: str, shard: Shard) -> dict[str, str]:
    """Return the metadata of a table of the predictions of one shard of an evaluation."""
    return {"etrm_evaluation": key, "etrm_shard": str(shard)}


def merge_shards(
    paths: Sequence[Path],
    corpus: Corpus,
    lanes: Sequence[LaneQuestions],
    batch_size: int,
    key: str,
    diverged: bool = False,
) -> pa.Table:
    """Return the predictions of all shards, as one job would have made them.

    The shards of a run that has `diverged` may be empty. Raises `ShardError` with the file that is
    missing, damaged, of another evaluation or in the place of another shard, or whose predictions
    are not exactly those that were asked for.
    """
    tables = []
    for number, path in enumerate(paths):
        shard = Shard(number, len(paths))
        table = _read(path, shard, key)
        if table.num_rows or not diverged:
            _check(
                path, shard, table, rows_of(corpus, questions_of_shard(lanes, batch_size, shard))
            )
        tables.append(table)
    return in_order([table.replace_schema_metadata() for table in tables])


def _read(path: Path, shard: Shard, key: str) -> pa.Table:
    """Return the table of a shard's file, whose metadata name the evaluation and the shard."""
    if not path.is_file():
        raise ShardError(f"{path}: not there, expected {shard}: run the same command again")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        found = f"a damaged file ({error})"
        raise ShardError(f"{path}: found {found}, expected {shard}; {AGAIN}") from None
    tags = table.schema.metadata or {}
    found, expected = tags.get(b"etrm_shard", b"predictions of no shard").decode(), str(shard)
    if found == expected and tags.get(b"etrm_evaluation") != key.encode():
        found += " of another evaluation (other weights, tasks, settings or code)"
        expected = "that of this one"
    if found != expected:
        raise ShardError(f"{path}: found {found}, expected {expected}; {AGAIN}")
    return table


def _check(path: Path, shard: Shard, table: pa.Table, asked: Sequence[Row]) -> None:
    """Raise `ShardError` unless every row that was asked for is there, once, and no other."""
    names = zip(*(table[name].to_pylist() for name in ("task", "query", "variant")), strict=True)
    found = Counter[Row](names)
    wanted = set(asked)
    faults = {
        "missing": sorted(wanted - found.keys()),
        "twice": sorted(row for row, times in found.items() if times > 1),
        "not asked for": sorted(found.keys() - wanted),
    }
    summary = [f"{len(rows)} {fault} ({_rows(rows)})" for fault, rows in faults.items() if rows]
    if summary:
        raise ShardError(
            f"{path}: found {table.num_rows} predictions, expected the {len(wanted)} of {shard},"
            f" each once: {', '.join(summary)}; {AGAIN}"
        )


def _rows(rows: Sequence[Row]) -> str:
    named = (f"{task} test {query} variant {variant}" for task, query, variant in rows)
    return ", ".join(first_few(named, SHOWN))
