"""Generated pairs on disk: the file of a source, and the tasks in it (`etrm.data.generate` writes).

A file holds the pairs of one choice of options, and its name their digest: studies with the same
options share it, and another version of the generator writes another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etrm.arc.parse import Problems, SourceProblem, count
from etrm.arc.task import Pair, Rule, Task, task_from_json
from etrm.config.sources import GeneratedSource

PROGRAM = Path(__file__).with_name("generator_program.py")
LOCK = Path(__file__).resolve().parents[2] / "envs" / "generators.txt"  # in a checkout
READING = ("problems", "tests", "prefix", "folder")  # options that change no pair
ABOUT = b"etrm_generated"  # metadata: generation, its digest, counts of each rule, originals
VERSION = "1"  # of the table, raised when a column changes


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"description": meaning})


SCHEMA = pa.schema(
    [
        _column("rule", pa.string(), "name of the rule; the rows of each are a row group"),
        _column("input_height", pa.uint8(), "rows of the input grid, 1-30"),
        _column("input_width", pa.uint8(), "columns of the input grid, 1-30"),
        _column("input", pa.binary(), "colours 0-9 of the input grid, row by row, a byte each"),
        _column("output_height", pa.uint8(), "rows of the output grid"),
        _column("output_width", pa.uint8(), "columns of the output grid"),
        _column("output", pa.binary(), "colours of the output grid"),
    ],
    metadata={"etrm_table": "generated", "etrm_version": VERSION},
)


@dataclass(frozen=True)
class Generated:
    """The pairs of a file by rule, and its metadata."""

    pools: dict[str, list[Pair]]
    about: dict[str, Any]


def library() -> str:
    """Return name and version of the generator, as its lock file has them: `name==version`."""
    lines = LOCK.read_text(encoding="utf-8").splitlines() if LOCK.is_file() else []
    return next((line for line in lines if line and not line.startswith("#")), "unknown")


def generation(source: GeneratedSource) -> dict[str, Any]:
    """Return all that determines the pairs of a source."""
    options = {k: v for k, v in dataclasses.asdict(source).items() if k not in READING}
    program = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()[:16]
    return {**options, "library": library(), "program": program, "table": VERSION}


def generated_file(source: GeneratedSource) -> Path:
    """Return the path of the pairs of a source."""
    text = json.dumps(generation(source), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(source.folder) / f"{source.kind}-{name}.parquet"


def revision_of(source: Any) -> str | None:
    """Return the generator, its version and its options; None for tasks that are not generated."""
    if not isinstance(source, GeneratedSource):
        return None
    options = ", ".join(f"{k} {v}" for k, v in generation(source).items() if k != "library")
    return f"{library()} ({options})"


def load_generated(
    source: GeneratedSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    """Return a task for each rule, of all of its pairs, and the file that they were read from.

    Each stands for the public task that its rule is of, where there is one.
    """
    path = generated_file(source)
    try:
        found = read_generated(path)
    except FileNotFoundError:
        fix = "run the target `tasks`, or `etrm prepare`: they generate them first"
        return problems.add(str(path), "no such file", "generated pairs", fix) or ([], "")
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = f"no table of generated pairs ({str(error).splitlines()[0]})"
        fix = "delete it: it is generated again"
        return problems.add(str(path), reason, "generated pairs", fix) or ([], "")
    originals = found.about["originals"]
    tasks = []
    for rule in found.about["rules"]:
        pairs, name = found.pools.get(rule, []), source.prefix + rule
        if len(pairs) <= source.tests:
            counts = found.about["rules"][rule]
            drawn = f"{count(pairs, 'pair')} in {counts['draws']} draws ({counts['rejected']})"
            expected = f"more pairs than {source.tests}, the number of tests"
            problems.append(SourceProblem(f"{path}: rule {rule}", drawn, expected, task=name))
            continue
        demos, queries = pairs[: -source.tests], pairs[-source.tests :]
        original = task_from_json(originals[rule]) if rule in originals else None
        tasks.append(Task(name, tuple(demos), tuple(queries), Rule(rule, "{}"), original=original))
    return tasks, f"{path.name} (content {found.about['digest'][:16]})"


def read_generated(path: Path) -> Generated:
    """Read a file of generated pairs; raises FileNotFoundError, and pyarrow's errors."""
    pools: dict[str, list[Pair]] = {}
    with path.open("rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
        about = json.loads(file.schema_arrow.metadata[ABOUT])
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group).combine_chunks()
            if len(rows):
                inputs, outputs = (_grids(rows, key) for key in ("input", "output"))
                pairs = [Pair(i, o) for i, o in zip(inputs, outputs, strict=True)]
                pools[rows["rule"][0].as_py()] = pairs
    return Generated(pools, about)


def _grids(rows: pa.Table, key: str) -> list[np.ndarray]:
    """Return the grids of a column, as views of one array."""
    heights, widths = (rows[f"{key}_{side}"].to_numpy() for side in ("height", "width"))
    cells = rows[key].combine_chunks()
    ends = np.cumsum(heights.astype(np.int64) * widths)
    all_cells = np.frombuffer(b"".join(cells.to_pylist()), dtype=np.uint8)
    return [
        grid.reshape(h, w)
        for grid, h, w in zip(np.split(all_cells, ends[:-1]), heights, widths, strict=True)
    ]
