"""Atomic files: written to a temporary file in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

T = TypeVar("T")
ZSTD_LEVEL = 9
ABOUT = b"etrm_about"  # metadata of a column about other columns, which determines no result
TRUTH = b"ground truth"  # the value of `ABOUT` in columns that no model is shown
COMPRESSION: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": ZSTD_LEVEL,
    "write_page_checksum": True,
}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of `path` (created where missing).

    At the end of the block the file is flushed to the disk and replaces `path`. When the block
    raises, it is removed, and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # renamed within one file system
    try:
        yield temporary
        _flush(temporary)  # before the rename: a crash must not leave a name without content
        os.replace(temporary, path)
    except BaseException:  # an interruption as well
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system lets a folder be flushed
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_once(path: Path, read: Callable[[Path], T]) -> T:
    """Return the result of `read` for a file, which is called once while the file is unchanged."""
    found = path.stat()
    result: T = _read_once(read, path, found.st_mtime_ns, found.st_size)
    return result


@cache
def _read_once(read: Callable[[Path], Any], path: Path, time: int, size: int) -> Any:
    return read(path)


def table_digest(path: Path) -> str:
    """Return the SHA-256 of a parquet file without its footer: of all values, and of nothing else.

    The footer holds texts for people (descriptions, versions, where the values came from), which
    change no result. Nor do columns marked `ABOUT`: the digest is that of a file without them. Any
    other file counts whole.
    """
    content = path.read_bytes()  # pages, footer, its length in 4 bytes, PAR1
    footer = int.from_bytes(content[-8:-4], "little") if content[-4:] == b"PAR1" else 0
    if not footer:
        return hashlib.sha256(content).hexdigest()
    found, start = hashlib.sha256(), 0
    end = len(content) - 8 - footer
    for first, last in [*_chunks_about(content), (end, end)]:
        found.update(memoryview(content)[start:first])
        start = last
    return found.hexdigest()


def _chunks_about(content: bytes) -> list[tuple[int, int]]:
    """Return the ranges of bytes, ascending, that hold columns marked `ABOUT`."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowException:  # a damaged footer, which whoever reads the table reports
        return []
    marked = [i for i, each in enumerate(file.schema_arrow) if ABOUT in (each.metadata or {})]
    groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
    chunks = [group.column(i) for group in groups for i in marked]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return sorted((s, s + c.total_compressed_size) for s, c in zip(starts, chunks, strict=True))


def truth_digest(path: Path) -> str | None:
    """Return the SHA-256 of the columns marked `TRUTH` of a parquet file, None where all are empty.

    `table_digest` leaves them out, because no run sees them: a read-out of contexts does.
    """
    try:
        marked = [f.name for f in pq.read_schema(path) if (f.metadata or {}).get(ABOUT) == TRUTH]
        with pq.ParquetFile(path) as file:  # `read_table` would import pandas
            table = file.read(columns=marked)
    except pa.ArrowException:  # as above
        return None
    if all(column.null_count == len(table) for column in table.columns):
        return None
    text = json.dumps(table.to_pydict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_table_atomic(path: Path, table: pa.Table, **options: Any) -> None:
    """Write a parquet file, zstd-compressed; equal tables give equal bytes.

    `options` are those of `pyarrow.parquet.write_table`.
    """
    # Arrow would take a path with a colon for the address of another file system.
    local = pa.fs.LocalFileSystem()
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, filesystem=local, **(COMPRESSION | options))


def write_json_atomic(path: Path, content: Any) -> None:
    """Write `content` as indented JSON.

    NumPy numbers and arrays become numbers and lists, tuples lists, paths strings; NaN and
    infinities, which JSON lacks, become null. Raises `TypeError` for objects of other types.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):  # also a subclass of it, whose `repr` may differ
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
