"""A measurement as a row: of the JSON file, which has all fields, and of the printed table."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import card_peak, matmul_gflops
from benchmarks.setups import Setting
from etrm.models.compute import DTYPES
from etrm.storage.digests import commit
from etrm.storage.files import write_json_atomic


@dataclass(kw_only=True)
class Row:
    """One measurement; null where a field has no meaning for its case."""

    case: str  # as in `--only`
    layout: str | None = None  # padded: the official one; lanes
    dtype: str | None = None  # fp32, bf16: of the forward pass
    part: str | None = None  # what of the case: a part of the step, a number of ranks, …
    examples_per_second: float | None = None
    gflop_per_example: float | None = None  # that the layout asks for, see benchmarks.flops
    gflop_of_all: float | None = None  # the same, over all questions: training on lanes draws some
    matmul_gflops: float | None = None  # GFLOP/s of a square product in `dtype`, beside this row
    utilisation: float | None = None  # GFLOP/s reached, of matmul_gflops
    mfu: float | None = None  # of mfu_peak_gflops, on a GPU
    mfu_peak_gflops: float | None = None
    mfu_peak: str | None = None  # whose: of the data sheet, or measured
    speedup: float | None = None  # examples per second, of the padded (or first) row of this call
    seconds_per_step: float | None = None  # training: of all slots; evaluation: of one example
    seconds: float | None = None  # of the whole case, or of a part of a step
    share: float | None = None  # of the step's time
    efficiency: float | None = None  # speed of n ranks, of n times that of one
    batch_size: int | None = None
    micro_batches: dict[str, int] | None = None  # passes by canvas side
    peak_memory_bytes: int | None = None  # of the device; on a CPU, of the process
    bytes: int | None = None  # on disk
    found: float | None = None  # a difference that is checked, a loss, a count
    bound: float | None = None  # the most that `found` may be
    ok: bool | None = None  # the check holds; false where it could not be made
    tasks: str | None = None  # whose questions were measured
    device: str = ""
    threads: int = field(default_factory=torch.get_num_threads)
    torch: str = torch.__version__
    commit: str | None = None
    measured: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    note: str | None = None


def new_row(setting: Setting, **values: Any) -> Row:
    """Return a row of this device and these tasks."""
    head = {"device": device_name(setting.device), "tasks": setting.mix.name, "commit": _commit()}
    return Row(**(head | values))


@cache
def _commit() -> str | None:
    return commit()


def rate_beside(setting: Setting, dtype: str) -> float:
    """GFLOP/s of a matrix product, measured now."""
    return matmul_gflops(setting.device, DTYPES[dtype], setting.matmul_side)


def set_rates(row: Row, setting: Setting, rates: Sequence[float], devices: int = 1) -> None:
    """Fill in utilisation, of each of `devices`, from matrix products measured beside the row."""
    row.matmul_gflops = max(rates)
    if row.examples_per_second is None or row.gflop_per_example is None or row.dtype is None:
        return
    reached = row.examples_per_second * row.gflop_per_example / devices
    row.utilisation = reached / row.matmul_gflops
    if setting.gpu:
        peak = card_peak(setting.device, row.dtype)
        row.mfu_peak = "measured matrix product" if peak is None else "data sheet, dense"
        row.mfu_peak_gflops = row.matmul_gflops if peak is None else peak
        row.mfu = reached / row.mfu_peak_gflops


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{device.type}-{cores}-cores ({platform.machine()})"


def default_file(device: torch.device) -> Path:
    """Return the path of the results of a device."""
    return file_of(device_name(device))


def file_of(device: str) -> Path:
    """Return the path of the results of a device, by its name in rows."""
    name = device.partition(" (")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Path(__file__).parent / "results" / f"{slug}.json"


def write_rows(path: Path, rows: Sequence[Row], kept: Sequence[dict[str, Any]] = ()) -> None:
    """Write a list of rows: `kept` from before, and these."""
    write_json_atomic(path, [*kept, *(dataclasses.asdict(row) for row in rows)])


def rows_of_other_cases(path: Path, cases: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a file of results whose cases are not measured now."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in found if row["case"] not in cases]


def _number(digits: int, scale: float = 1.0, unit: str = "") -> Callable[[float], str]:
    return lambda value: f"{value * scale:.{digits}g}{unit}"


def _fixed(digits: int, scale: float = 1.0, unit: str = "") -> Callable[[float], str]:
    return lambda value: f"{value * scale:.{digits}f}{unit}"


COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("case", "case", str),
    ("part", "part", str),
    ("layout", "layout", str),
    ("dtype", "dtype", str),
    ("batch", "batch_size", str),
    ("s/step", "seconds_per_step", _number(3)),
    ("examples/s", "examples_per_second", _number(3)),
    ("×padded", "speedup", _fixed(2)),
    ("GFLOP/ex.", "gflop_per_example", _fixed(0)),
    ("matmul GFLOP/s", "matmul_gflops", _fixed(0)),
    ("of matmul", "utilisation", _fixed(0, 100, " %")),
    ("MFU", "mfu", _fixed(0, 100, " %")),
    ("seconds", "seconds", _number(3)),
    ("share", "share", _fixed(1, 100, " %")),
    ("efficiency", "efficiency", _fixed(0, 100, " %")),
    ("found", "found", _number(3)),
    ("bound", "bound", _number(3)),
    ("ok", "ok", lambda value: "yes" if value else "NO"),
    ("peak GB", "peak_memory_bytes", _fixed(1, 1e-9)),
    ("disk MB", "bytes", _fixed(0, 1e-6)),
)


def table(rows: Sequence[Row]) -> str:
    """All rows; a column that none of them has is left out."""
    shown = [
        (title, name, form)
        for title, name, form in COLUMNS
        if any(getattr(row, name) is not None for row in rows)
    ]
    lines = [[title for title, _, _ in shown]]
    for row in rows:
        values = [(getattr(row, name), form) for _, name, form in shown]
        lines.append(["" if value is None else form(value) for value, form in values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    text = {"case", "part", "layout", "dtype"}
    aligned = [
        "  ".join(
            cell.ljust(width) if title in text else cell.rjust(width)
            for cell, width, (title, _, _) in zip(line, widths, shown, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * max(map(len, aligned)), *aligned[1:]])
