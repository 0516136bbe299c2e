"""Table of the results of the encoders study: `python -m benchmarks.encoders [--results DIR]`.

It reads the overfit runs of `config/encoders.yaml` (`snakemake --configfile config/encoders.yaml
--cores 2 gate`, or `python -m etrm run NAME overfit --configfile config/encoders.yaml`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from etrm.runtime.terminal import use_stand_ins

Row = Mapping[str, Any]
COLUMNS = (
    "encoder",
    "pairing",
    "parameters",
    "exact match",
    "steps to 90 %",
    "steps",
    "gradient norm",
    "between-task ratio",
    "effective rank",
    "task k-NN",
    "swap drop",
    "seconds",
)
REACHED = 0.9


def main() -> int:
    """Print the table of all finished runs; 1 where there is none."""
    use_stand_ins()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", default="results/encoders", help="the study's folder")
    folder = Path(parser.parse_args().results)
    lines = [line_of(path.parent) for path in sorted(folder.glob("runs/*/overfit/seed*/run.json"))]
    if not lines:
        print(f"{folder}: found no overfit run, expected those of the encoders study")
        return 1
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    return 0


def line_of(run: Path) -> list[str]:
    """Return the cells of one run folder."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    finals = [(r["step"], r["all.exact_accuracy"]) for r in rows if known(r, "all.exact_accuracy")]
    reached = next((str(step) for step, exact in finals if exact >= REACHED), "–")
    context = record["config"]["context"]
    return [
        str(record["experiment"]).removeprefix("encoder_").removesuffix("_concat"),
        str(context["pairing"]),
        f"{record['num_params'] / 1e3:.0f} k",
        f"{max(exact for _, exact in finals):.1%}",
        reached,
        str(record["steps_done"]),
        f"{median(rows, 'grad/encoder_norm', 10, 500):.3f}",
        *(last(rows, f"encoder/{name}", shown) for name, shown in MEASURES),
        f"{record['seconds']:.0f}",
    ]


MEASURES = (
    ("between_task_ratio", "{:.2f}"),
    ("effective_rank", "{:.1f}"),
    ("task_knn_accuracy", "{:.0%}"),
    ("context_swap_drop", "{:.2f}"),
)


def known(row: Row, name: str) -> bool:
    """Return whether this row has the metric."""
    return row.get(name) is not None


def median(rows: Sequence[Row], name: str, first: int, last: int) -> float:
    """Return the median of a metric over steps first..last."""
    return statistics.median(r[name] for r in rows if known(r, name) and first <= r["step"] <= last)


def last(rows: Sequence[Row], name: str, shown: str) -> str:
    """Return the latest value of a metric; a dash where there is none."""
    values = [row[name] for row in rows if known(row, name)]
    return shown.format(values[-1]) if values else "–"


if __name__ == "__main__":
    sys.exit(main())
