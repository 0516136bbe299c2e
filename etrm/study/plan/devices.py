"""Devices whose hours a plan counts: of finished runs, of benchmarks, and GPUs by data sheets.

A rate is FLOP/s. A benchmark of the device measures it. Without one it is that of the data sheet
times a utilisation that is assumed, and bounded by the bandwidth of the memory.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etrm.study.plan.jobs import PlanError

# Of the project, not of the package: an installed copy has none.
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
HOW = "python -m benchmarks"
GIGA = 1e9
# Of the dense peak, by number format: what well-run training reaches (PaLM, 2204.02311: 46 % in
# bf16). float32 runs without TensorFloat-32, on units that feed worse.
ASSUMED = {"bf16": 0.4, "fp32": 0.3}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """A GPU by its maker's data sheet: dense peaks in FLOP/s, memory in bytes, bytes/s."""

    name: str  # as PyTorch calls it
    part: str  # of the name, by which it is known
    bf16: float
    fp32: float  # without TensorFloat-32, which PyTorch leaves off
    memory: float
    bandwidth: float

    def peak(self, dtype: str) -> float:
        """Return the peak of a number format."""
        return {"bf16": self.bf16, "fp32": self.fp32}[dtype]


CARDS = (  # the first whose part is in a name; without a form named, SXM
    Card("NVIDIA H100 PCIe", "H100 PCIe", 756e12, 51e12, 80e9, 2.0e12),
    Card("NVIDIA H100 NVL", "H100 NVL", 835e12, 60e12, 94e9, 3.9e12),
    Card("NVIDIA H100 80GB HBM3", "H100", 989e12, 67e12, 80e9, 3.35e12),
    Card("NVIDIA H200", "H200", 989e12, 67e12, 141e9, 4.8e12),
    Card("NVIDIA A100-SXM4-80GB", "A100", 312e12, 19.5e12, 80e9, 2.04e12),
    Card("NVIDIA L40S", "L40S", 362e12, 91.6e12, 48e9, 0.864e12),
    Card("NVIDIA GeForce RTX 4090", "4090", 165e12, 82.6e12, 24e9, 1.008e12),
)
DEFAULT = ("H100", "H200", "A100", "L40S", "4090")  # parts, where nothing has been measured


def card_of(name: str) -> Card | None:
    """Return the data sheet of a GPU by its name; None where it is not in the table."""
    return next((card for card in CARDS if card.part.lower() in name.lower()), None)


@dataclass(frozen=True)
class Rate:
    """A speed of computation, and where it comes from."""

    flops: float  # a second
    measured: str


@dataclass(frozen=True)
class Device:
    """The device whose hours are counted."""

    name: str  # as PyTorch calls it
    rows: Sequence[Row] = field(default=(), repr=False)  # its benchmarks
    card: Card | None = None  # its data sheet

    @property
    def gpu(self) -> bool:
        """Return whether it is a GPU, whose hours are GPU-hours."""
        return family(self.name) != "cpu"

    @property
    def measured(self) -> str:
        """Return the date of its latest benchmark."""
        return max(str(row.get("measured")) for row in self.rows)

    @property
    def unit(self) -> str:
        """Return `GPU-hours`, or hours on that CPU."""
        return "GPU-hours" if self.gpu else f"hours on {slug(self.name)}"

    def rate(self, cases: Sequence[str], dtype: str, intensity: float) -> Rate | None:
        """Return the rate of the first of `cases` that has been benchmarked, or the assumed one.

        `intensity`: FLOP per byte that unfused kernels move. None where nothing says how fast.
        """
        for case in cases:
            for row in self.rows:
                same = (row["case"], row["layout"], row["dtype"]) == (case, "lanes", dtype)
                if same and row.get("gflop_per_example"):
                    rate = row["examples_per_second"] * row["gflop_per_example"] * GIGA
                    return Rate(rate, f"FLOPs at the rate of benchmark {case}")
        if self.card is None:
            return None
        share = ASSUMED[dtype]
        rate = min(share * self.card.peak(dtype), self.card.bandwidth * intensity)
        text = f"FLOPs at an assumed {share:.0%} of the {dtype} peak of {self.card.part}"
        return Rate(rate, text.replace("%", " %"))


def devices(runs: Sequence[str], folder: Path = BENCHMARKS) -> list[Device]:
    """Return the devices of finished runs, most used first, benchmarked GPUs, others, CPUs.

    `runs`: the device of each finished run.
    """
    benchmarks = sorted(_read(folder), key=lambda d: (d.gpu, d.measured), reverse=True)
    rows = {family(device.name): device.rows for device in reversed(benchmarks)}
    used = [name for name, _ in Counter(runs).most_common()]
    sheets = [card.name for part in DEFAULT for card in CARDS if card.part == part]
    gpus, cpus = ([d.name for d in benchmarks if d.gpu is gpu] for gpu in (True, False))
    known: dict[str, Device] = {}
    for name in (*used, *gpus, *sheets, *cpus):
        key = family(name)
        known.setdefault(key, Device(name, rows.get(key, ()), card_of(name)))
    return list(known.values())


def chosen(known: Sequence[Device], name: str | None) -> Device:
    """Return the first device, or the one that `name`, or a part of its name, fits.

    Measured ones go before those of which only the data sheet is known. Raises `PlanError` with the
    names of all where none fits, or several do.
    """
    if name is None:
        return known[0]
    exact = [device for device in known if slug(device.name) == slug(name)]
    fitting = exact or [device for device in known if slug(name) in slug(device.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(device.name for device in known)
    found = "several devices" if fitting else "no device"
    raise PlanError(f"--gpu {name}: found {found} of that name, expected one of {names}")


def family(name: str) -> str:
    """Return a key of devices that are as fast: runs and benchmarks name CPUs differently."""
    return "cpu" if slug(name).startswith("cpu") else slug(name)


def slug(name: str) -> str:
    """Return `cpu-2-cores` for `cpu-2-cores (x86_64)`, as benchmarks name their files."""
    plain = name.partition(" (")[0] if name.startswith("cpu") else name
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _read(folder: Path) -> Iterator[Device]:
    for path in sorted(folder.glob("*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            yield Device(str(rows[0]["device"]), rows)
        except (OSError, ValueError, LookupError, TypeError):
            raise PlanError(
                f"{path}: found no rows of benchmarks, expected a file of {HOW}: measure again, or"
                " remove the file"
            ) from None
