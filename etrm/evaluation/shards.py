"""An evaluation that several jobs share: each decodes its part, then one gathers them all.

A part takes whole batches, those that a single job would decode as well: on the same kind of device
its answers are then the same to the last bit, whatever else is decoded beside them. A part's file
says which evaluation it is of and which part, and the one that gathers believes nothing that it has
not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from etrm.config.text import first_few
from etrm.data.corpus import Corpus, Episodes
from etrm.errors import UserError
from etrm.evaluation.decode import ORDER, PREDICTIONS
from etrm.storage.files import write_table_atomic

Lane = tuple[Episodes, Tensor, Tensor]  # questions; index [N] and variant [N] of what is asked
Row = tuple[str, int, int]  # task id, test input, variant
AGAIN = "delete it and run the same command again: its job then decodes this part anew"
SHOWN = 3  # rows that an error names


class PartError(UserError):
    """Parts that are no complete evaluation."""


@dataclass(frozen=True)
class Part:
    """One of the jobs that share an evaluation."""

    number: int  # from 0
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise PartError(
                f"found part {self.number} of {self.of}, expected one of 0 to {self.of - 1}"
            )

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"


def share(lanes: Sequence[Lane], batch_size: int, part: Part) -> list[Lane]:
    """What a part decodes of all lanes: their batches are dealt in turn, from lane to lane.

    No part has two batches more than another, of a lane or of all; lanes without any are left out.
    """
    shared, first = [], 0
    for episodes, index, variant in lanes:
        batch = first + torch.arange(len(index), device=index.device) // batch_size
        own = batch % part.of == part.number
        if bool(own.any()):
            shared.append((episodes, index[own], variant[own]))
        first += -(-len(index) // batch_size)
    return shared


def rows_of(corpus: Corpus, lanes: Sequence[Lane]) -> list[Row]:
    """What is asked, by the names that predictions have."""
    rows: list[Row] = []
    for episodes, index, variant in lanes:
        tasks, pairs = episodes.task[index].tolist(), episodes.query[index].tolist()
        for task, pair, v in zip(tasks, pairs, variant.tolist(), strict=True):
            rows.append((corpus.tasks[task].id, pair - corpus.query_pairs[task].start, v))
    return rows


def write_part(path: Path, table: pa.Table, part: Part, key: str) -> None:
    """Write the predictions of one part of the evaluation with this key."""
    says = {"etrm_evaluation": key, "etrm_part": str(part)}
    write_table_atomic(path, table.replace_schema_metadata(says))


def gather(
    paths: Sequence[Path],
    corpus: Corpus,
    lanes: Sequence[Lane],
    batch_size: int,
    key: str,
    diverged: bool = False,
) -> pa.Table:
    """The predictions of all parts, as one job would have made them.

    The parts of a run that has `diverged` may be empty. Raises `PartError` with the file that is
    missing, damaged, of another evaluation or in the place of another part, or whose predictions
    are not exactly those that its part was asked for.
    """
    tables = []
    for number, path in enumerate(paths):
        part = Part(number, len(paths))
        table = _read(path, part, key)
        if table.num_rows or not diverged:
            _check(path, part, table, rows_of(corpus, share(lanes, batch_size, part)))
        tables.append(table)
    columns = pa.concat_tables(tables).sort_by(ORDER).combine_chunks().columns
    return pa.table(columns, schema=PREDICTIONS)


def _read(path: Path, part: Part, key: str) -> pa.Table:
    if not path.is_file():
        raise PartError(f"{path}: not there, expected {part}: run the same command again")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise PartError(
            f"{path}: found a damaged file ({error}), expected {part}; {AGAIN}"
        ) from None
    says = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    found = says.get("etrm_part", "predictions of no part")
    if found != str(part):
        raise PartError(f"{path}: found {found}, expected {part}; {AGAIN}")
    if says.get("etrm_evaluation") != key:
        raise PartError(
            f"{path}: found {part} of another evaluation (other weights, tasks, settings or code),"
            f" expected that of this one; {AGAIN}"
        )
    return table


def _check(path: Path, part: Part, table: pa.Table, asked: Sequence[Row]) -> None:
    """Is every row that was asked for there, once, and no other?"""
    names = zip(*(table[name].to_pylist() for name in ("task", "query", "variant")), strict=True)
    found = Counter[Row](names)
    wanted = set(asked)
    faults = {
        "missing": sorted(wanted - found.keys()),
        "twice": sorted(row for row, times in found.items() if times > 1),
        "not asked for": sorted(found.keys() - wanted),
    }
    said = [f"{len(rows)} {fault} ({_rows(rows)})" for fault, rows in faults.items() if rows]
    if said:
        raise PartError(
            f"{path}: found {table.num_rows} predictions, expected the {len(wanted)} of {part},"
            f" each once: {', '.join(said)}; {AGAIN}"
        )


def _rows(rows: Sequence[Row]) -> str:
    named = (f"{task} test {query} variant {variant}" for task, query, variant in rows)
    return ", ".join(first_few(named, SHOWN))
