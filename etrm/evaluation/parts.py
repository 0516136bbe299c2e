"""Predictions on disk while they are made: a decoding that was killed resumes from its parts.

A part is a file of the predictions of consecutive batches, written every `SECONDS` as a whole or
not at all. Its name has their numbers, its metadata the evaluation and the shard; a part that says
another, or is damaged, counts as missing. So memory holds the predictions of `SECONDS` while they
are made, and whoever comes after a kill decodes the batches that no part has, and no other.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from etrm.errors import UserError
from etrm.evaluation.decode import LaneQuestions, in_order
from etrm.evaluation.shards import ALONE, Shard, tags_of
from etrm.runtime.progress import Progress
from etrm.storage.files import write_table_atomic
from etrm.storage.records import read_predictions
from etrm.storage.result_cache import cache_result

log = logging.getLogger(__name__)

PARTS = ".parts"  # folder of all parts, beside the cached results of an evaluation
SECONDS = 30.0  # of decoding that a kill loses at most
Found = dict[tuple[int, int], pa.Table]  # by the numbers (first, end) of their batches
Predict = Callable[[Sequence[LaneQuestions]], Iterator[pa.Table]]  # yields a table for each batch


@dataclass(frozen=True)
class Parts:
    """The parts of one decoding: of an evaluation, or of one of its shards."""

    folder: Path | None  # None: they are in memory alone
    tags: dict[str, str]  # of the evaluation and the shard, in the metadata of every part

    def complete(self, batches: Sequence[LaneQuestions], predict: Predict, name: str) -> pa.Table:
        """Return the predictions of all batches, in order; those that no part has are decoded.

        `name`: whose they are, in its progress.
        """
        with Progress(name, _count(batches), True, True, "prediction") as progress:
            return self._complete(batches, predict, progress)

    def _complete(
        self, batches: Sequence[LaneQuestions], predict: Predict, progress: Progress
    ) -> pa.Table:
        held: Found = {}  # in memory alone
        # Several times where another process has removed parts meanwhile.
        while missing := _gaps(sorted(found := self._read(batches, held)), len(batches)):
            done = sum(len(table) for table in found.values())
            del found  # it is read again when all is there
            progress.begin(done)
            for first, end in missing:
                for rows in self._decode(first, batches[first:end], predict, held):
                    done += rows
                    progress.pace(done)
        return in_order([found[batch] for batch in sorted(found)])

    def _decode(
        self, first: int, batches: Sequence[LaneQuestions], predict: Predict, held: Found
    ) -> Iterator[int]:
        """Decode batches, the first of which has number `first`; yield the rows of each."""
        tables: list[pa.Table] = []
        begun, last = time.monotonic(), first + len(batches)
        for end, table in enumerate(predict(batches), first + 1):
            tables.append(table)
            if end == last or time.monotonic() - begun >= SECONDS:
                self._write(end - len(tables), end, pa.concat_tables(tables), held)
                tables, begun = [], time.monotonic()
            yield len(table)

    def _write(self, first: int, end: int, table: pa.Table, held: Found) -> None:
        """Write a part; where there is no room for it, or no folder, hold it."""
        if self.folder is None:
            held[first, end] = table
            return
        path = self.folder / f"batches-{first:06d}-{end:06d}.parquet"
        try:
            write_table_atomic(path, table.replace_schema_metadata(self.tags))
        except OSError as error:
            log.warning("%s: not written, and lost if this job ends early (%s)", path, error)
            held[first, end] = table

    def _read(self, batches: Sequence[LaneQuestions], held: Found) -> Found:
        """Return the parts that can be used, and those in memory, which do not overlap."""
        found = dict(held)
        for path in sorted(self.folder.glob("batches-*.parquet")) if self.folder else ():
            first, end = (int(number) for number in path.stem.split("-")[1:])
            if end > len(batches) or any(first < e and f < end for f, e in found):
                continue  # of batches that another part has
            try:
                table = read_predictions(path)
            except UserError:  # damaged, or removed meanwhile
                continue
            tags = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            if tags == self.tags and len(table) == _count(batches[first:end]):
                found[first, end] = table.replace_schema_metadata()
        return found


IN_MEMORY = Parts(None, {})


def parts_of(store: Path | None, key: str, shard: Shard = ALONE) -> Parts:
    """Return the parts of an evaluation, or of a shard of it, that an earlier job has written.

    `store`: of the cached results; parts of other keys in it (other settings, weights or code) are
    removed. None: nothing outlives this job.
    """
    if store is None:
        return IN_MEMORY
    for folder in (store / PARTS).glob("*"):
        if folder.name != key[:16]:
            shutil.rmtree(folder, ignore_errors=True)
    folder = store / PARTS / key[:16] / f"{shard.number}-of-{shard.of}"
    return Parts(folder, tags_of(key, shard))


def _count(batches: Sequence[LaneQuestions]) -> int:
    return sum(len(index) for _, index, _ in batches)


def _gaps(done: Sequence[tuple[int, int]], of: int) -> list[tuple[int, int]]:
    """Return the ranges (first, end) of 0 … `of` that `done`, in order, leaves out."""
    ends = [0, *(end for _, end in done)]
    firsts = [*(first for first, _ in done), of]
    return [(end, first) for end, first in zip(ends, firsts, strict=True) if end < first]


def cache_finished(out: Path, names: Sequence[str], store: Path | None, key: str) -> None:
    """Cache the files of a finished result, and remove its parts, which no job needs any more.

    Where that fails, as on a full disk, the result itself is written: a warning says so.
    """
    if store is None:
        return
    try:
        cache_result(out, names, store, key)
        shutil.rmtree(store / PARTS, ignore_errors=True)
    except OSError as error:
        log.warning("%s is complete, but could not be cached in %s (%s)", out, store, error)
