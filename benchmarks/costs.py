"""Costs around training: building the data set, saving a checkpoint and resuming from it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.clock import PeakMemory, now
from benchmarks.rows import Row, new_row
from benchmarks.setups import LANES, Setting, make_trainer
from etrm.storage.checkpoint import load_state, save_state

ROOT = Path(__file__).resolve().parents[1]
MODEL, DTYPE = "etrm-standard", "bf16"


def dataset_rows(setting: Setting) -> Iterator[Row]:
    """`dataset/tasks` and `dataset/augment`, in a process whose peak memory is theirs alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "dataset.json")
        command = [sys.executable, "-m", "benchmarks.dataset", "--out", str(out)]
        command += ["--variants", str(setting.variants)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
        if not out.exists():  # over its budget, it exits with 1 as well
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        cost = json.loads(out.read_text(encoding="utf-8"))
    for stage in ("tasks", "augment"):
        yield new_row(
            setting,
            case=f"dataset/{stage}",
            part=f"{setting.variants} variants" if stage == "augment" else None,
            seconds=cost[f"{stage}_seconds"],
            bytes=cost[f"{stage}_bytes"],
            peak_memory_bytes=cost["peak_bytes"],
            tasks="all of the paper's sources at hand",
        )


def state_rows(setting: Setting) -> Iterator[Row]:
    """`state/save` and `state/resume` of a paper-size ETRM that trains."""
    trainer, device = make_trainer(setting, MODEL, LANES, DTYPE), setting.device
    trainer.updater.optimizer.step()  # with zero gradients: its moments exist from step one on
    head = {"layout": LANES.name, "dtype": DTYPE, "batch_size": trainer.train.batch_size}
    with tempfile.TemporaryDirectory() as name:
        folder, memory, start = Path(name), PeakMemory(device), now(device)
        state = trainer.state_dict()
        assert state is not None
        path = save_state(folder, 1, state)
        seconds, size = now(device) - start, path.stat().st_size
        del state
        peak = memory.bytes()
        yield new_row(
            setting, case="state/save", seconds=seconds, bytes=size, peak_memory_bytes=peak, **head
        )
        other, memory = make_trainer(setting, MODEL, LANES, DTYPE), PeakMemory(device)
        start = now(device)
        loaded = load_state(folder)
        assert loaded is not None
        other.load_state_dict(loaded)
        seconds, peak = now(device) - start, memory.bytes()
        yield new_row(
            setting,
            case="state/resume",
            seconds=seconds,
            bytes=size,
            peak_memory_bytes=peak,
            **head,
        )
