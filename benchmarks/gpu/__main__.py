"""The command `python -m benchmarks.gpu`: parts one after the other, written as they come."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.__main__ import pick_device
from benchmarks.gpu.correctness import (
    MODELS,
    compiled_rows,
    encoder_rows,
    exact_rows,
    golden_rows,
)
from benchmarks.gpu.isolation import failure, rows_within
from benchmarks.gpu.quick import QUICK, simplify_compilation
from benchmarks.gpu.speed import device_rows, kernel_rows, overfit_rows, part_rows, training_rows
from benchmarks.mix import Mix, NoTasks, load_mix
from benchmarks.rows import Row, file_of, rows_of_other_cases, table, write_rows
from benchmarks.setups import Setting
from benchmarks.synthetic import synthetic_mix
from etrm.runtime.terminal import use_stand_ins

TOTAL = 480.0  # seconds of all parts
LEAST = 5.0  # seconds that are left, below which no part begins
SECONDS = 5.0  # of the timed steps of a measurement
TASKS = 200  # synthetic ones
OUT = "OUT"  # the environment variable that names a folder for results


@dataclass(frozen=True)
class Part:
    """A part of the command: its rows, and the seconds that it may take."""

    name: str
    limit: float
    rows: Callable[[Setting, float], Iterator[Row]]


def _part(name: str, limit: float, rows: Callable[[Setting], Iterator[Row]]) -> Part:
    return Part(name, limit, lambda setting, _: rows(setting))


# Correctness first: a fast wrong step is worth nothing. The last part also gets what others leave.
PARTS = (
    _part("device", 15, device_rows),
    _part("golden", 20, golden_rows),
    _part("encoders", 50, encoder_rows),
    _part("compiled", 70, compiled_rows),
    _part("exact", 35, exact_rows),
    *(_part(f"train/{model}", 55, partial(training_rows, model=model)) for model in MODELS),
    _part("parts", 25, part_rows),
    _part("kernels", 35, kernel_rows),
    Part("overfit", TOTAL, overfit_rows),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, print one table; 1 where a check fails or a part did not end."""
    use_stand_ins()
    options = _parse(arguments)
    try:
        mix = _mix(options)
    except OSError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    begun, rows = time.monotonic(), list[Row]()
    left = lambda: options.total - (time.monotonic() - begun)  # noqa: E731
    parts = [part for part in PARTS if not options.only or part.name in options.only]
    for part in parts:
        print(f"[{options.total - left():5.0f} s] {part.name}", file=sys.stderr, flush=True)
        limit = left() if options.quick else min(part.limit, left())
        if limit < LEAST:
            rows.append(failure(part.name, "was left out: no time was left"))
            continue
        for row in rows_within(part.name, limit, partial(_rows, part, limit, options, mix)):
            rows.append(row)
            _write(options, rows)  # what was measured stays, whatever a later part does
    print(table(rows))
    failed = [row for row in rows if row.ok is False]
    for row in failed:
        print(row.note or f"{row.case} {row.part}: found {row.found}, expected at most {row.bound}")
    print(f"{len(rows)} rows, {len(failed)} of them failed, in {_file(options, rows) or 'no file'}")
    return 1 if failed else 0


def _rows(part: Part, limit: float, options: argparse.Namespace, mix: Mix) -> Iterator[Row]:
    """Yield the rows of a part, in its own process."""
    device = pick_device(options.device)
    setting = Setting(device, mix, seconds=SECONDS)
    if options.quick:
        simplify_compilation(trace=part.name == "compiled")
        setting = Setting(device, mix, seconds=0.0, **QUICK)
    yield from part.rows(setting, limit)


def _mix(options: argparse.Namespace) -> Mix:
    if options.quick and options.tasks is None:
        return synthetic_mix(6, 0, largest=6)
    try:
        return load_mix(options.tasks)
    except NoTasks:
        return synthetic_mix(TASKS, 0)


def _file(options: argparse.Namespace, rows: Sequence[Row]) -> Path | None:
    """Return where the rows go; numbers of tiny sizes go only where they are asked for."""
    if options.out is not None:
        return Path(options.out)
    if os.environ.get(OUT):
        return Path(os.environ[OUT]) / "gpu.json"
    names = [row.device for row in rows if row.device]
    return file_of(names[0]) if names and not options.quick else None


def _write(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    path, names = _file(options, rows), [row.device for row in rows if row.device]
    for row in rows:  # a part that did not end has not told its device
        row.device = row.device or next(iter(names), "")
    if path is not None:
        write_rows(path, rows, rows_of_other_cases(path, [row.case for row in rows]))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Check and measure one GPU, in at most eight minutes.",
        epilog=f"Parts: {', '.join(part.name for part in PARTS)}.",
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument(
        "--tasks",
        type=Path,
        metavar="FILE",
        help="a tasks.parquet (default: ARC-AGI-1 where it is found, else synthetic tasks)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the rows go as JSON (default: gpu.json in the folder that the environment"
        f" variable {OUT} names, else benchmarks/results/<device>.json)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[part.name for part in PARTS],
        metavar="PART",
        help="run this part (repeatable)",
    )
    parser.add_argument(
        "--total",
        type=float,
        default=TOTAL,
        metavar="SECONDS",
        help="limit of all parts together (default %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
