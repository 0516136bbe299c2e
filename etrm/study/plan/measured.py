"""Measured speeds: finished runs and evaluations of the study, and benchmarks of devices."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etrm.study.layout import Layout, Run
from etrm.study.plan.jobs import PlanError
from etrm.study.stale import StudyStatus

# Of the project, not of the package: an installed copy has none.
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
HOW = "python -m benchmarks"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """The speed of one finished run or evaluation."""

    run: Run
    stage: str  # of training, or `evaluate`
    kind: str  # equal where a sample costs the same
    per_second: float  # samples (of an evaluation: samples × ACT steps) on one device
    device: str


@dataclass(frozen=True)
class Device:
    """The device whose hours are counted."""

    name: str  # as PyTorch calls it
    rows: Sequence[Row] = field(default=(), repr=False)  # its benchmarks

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


def measured(layout: Layout, status: StudyStatus) -> Iterator[Measured]:
    """Yield the speed of every finished run and evaluation whose record has its duration."""
    scored = set(layout.scored())
    for run in layout.runs():
        record = status.run(run).record
        if record is None:
            continue
        config, seconds = record["config"], record.get("seconds") or 0.0
        done = record["steps_done"] * config["train"]["batch_size"]  # samples
        if done and seconds > 0:
            rate = done / seconds / record.get("ranks", 1)
            yield Measured(run, run.stage, training_kind(config), rate, record["device"])
        score = status.score(run).record if run in scored else None
        if score is not None and (score.get("seconds") or 0.0) > 0:
            done = score["predictions"] * config["halting"]["max_steps"]  # all take every step
            kind = evaluation_kind(config, score["evaluation"])
            yield Measured(run, "evaluate", kind, done / score["seconds"], score["device"])


def training_kind(config: Row) -> str:
    """Return a key that is equal for runs whose steps cost the same for each sample."""
    train = config["train"]
    some = [train[key] for key in ("batch_size", "dtype", "cache_context")]
    return _kind(config, some, config["decoder"]["frozen"])


def evaluation_kind(config: Row, evaluation: Row) -> str:
    """Return a key that is equal for evaluations whose ACT steps cost the same for each sample."""
    return _kind(config, config["train"]["dtype"], evaluation["batch_size"])


def _kind(config: Row, *more: Any) -> str:
    blocks = [config[name] for name in ("context", "model", "episodes")]
    return json.dumps([*blocks, *more], sort_keys=True)


def devices(found: Sequence[Measured], folder: Path = BENCHMARKS) -> list[Device]:
    """Return the devices of finished runs, most used first, then benchmarked ones, GPUs first."""
    benchmarks = sorted(_read(folder), key=lambda d: (d.gpu, d.measured), reverse=True)
    rows = {family(device.name): device.rows for device in reversed(benchmarks)}
    used = [name for name, _ in Counter(m.device for m in found).most_common()]
    of_runs = [Device(name, rows.get(family(name), ())) for name in used]
    known = {family(name) for name in used}  # those have their benchmarks already
    return of_runs + [device for device in benchmarks if family(device.name) not in known]


def chosen(known: Sequence[Device], name: str | None) -> Device | None:
    """Return the first device, or the one that `name`, or a part of its name, fits.

    Raises `PlanError` with the names of all where none fits, or several do.
    """
    if name is None:
        return known[0] if known else None
    exact = [device for device in known if slug(device.name) == slug(name)]
    fitting = exact or [device for device in known if slug(name) in slug(device.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(device.name for device in known) or f"none: {HOW} measures one"
    found = "several devices" if fitting else "no device"
    raise PlanError(f"--gpu {name}: found {found} of that name; measured are {names}")


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
