"""Scaling: the same batch on one rank and on two, each a process as torchrun starts it.

`python -m benchmarks.scaling SPEC` is one rank: it reads what to measure from a JSON file and the
main one writes what it found beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import PeakMemory, now
from benchmarks.mix import load_mix
from benchmarks.rows import Row, new_row, rate_beside, set_rates
from benchmarks.setups import LANES, Setting, make_trainer
from benchmarks.training import gflop_per_example, logged_step
from etrm.runtime.distributed import ranks_of_this_run
from etrm.storage.files import write_json_atomic

ROOT = Path(__file__).resolve().parents[1]
DTYPE = "bf16"
# On a CPU, tasks of about one size and slots that two ranks share evenly: what is measured is the
# cost of working together, not that of a remainder. On GPUs, the paper's batch has hardly any.
CPU_SIDES, CPU_SLOTS = (11, 15), 8
STEPS, GPU_STEPS = 2, 20
PATIENCE = 600  # seconds


def scaling_rows(setting: Setting, model: str) -> Iterator[Row]:
    """`scaling/<model>`: one row per number of ranks, the total batch the same.

    On a CPU each rank has one thread.
    """
    base: Row | None = None
    for size in _sizes(setting):
        found = _measure(setting, model, size)
        row = new_row(setting, case=f"scaling/{model}", layout=LANES.name, dtype=DTYPE)
        row.part = f"{size} rank{'s' * (size > 1)}"
        row.threads = found.pop("threads")
        rate = found.pop("rate")
        for name, value in found.items():
            setattr(row, name, value)
        row.note = None if setting.gpu else "tasks with grids of 11 to 15 cells a side"
        set_rates(row, setting, [rate], devices=size)
        base = base or row
        assert row.seconds_per_step is not None
        assert base.seconds_per_step is not None
        row.efficiency = base.seconds_per_step / row.seconds_per_step / size
        yield row


def _sizes(setting: Setting) -> list[int]:
    most = torch.cuda.device_count() if setting.gpu else 2
    return [size for size in (1, 2, 4, 8) if size <= most]


def _measure(setting: Setting, model: str, size: int) -> dict[str, Any]:
    """Start the ranks, wait for them, and read what rank 0 wrote."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec.json")
        content = {
            "model": model,
            "device": setting.device.type,
            "tasks": None if setting.tasks is None else str(setting.tasks.resolve()),
            "blocks": setting.blocks,
            "slots": setting.slots,
            "matmul_side": setting.matmul_side,
        }
        write_json_atomic(spec, content)
        common = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(torch.get_num_threads() if setting.gpu else 1),
        }
        command = [sys.executable, "-m", "benchmarks.scaling", str(spec)]
        errors = [Path(folder, f"rank{rank}") for rank in range(size)]
        ranks = []
        for rank, file in enumerate(errors):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with file.open("wb") as out:
                ranks.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=os.environ | common | own, stdout=out, stderr=out
                    )
                )
        _wait(ranks, errors)
        found: dict[str, Any] = json.loads(_result(spec).read_text(encoding="utf-8"))
    return found


def _wait(ranks: list[subprocess.Popen[bytes]], errors: list[Path]) -> None:
    """Wait for all ranks; raise `RuntimeError` with the message of one that failed, and end all."""
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                break  # the others wait for the one that failed
            time.sleep(0.05)
        codes = [rank.poll() for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    for number, (code, file) in enumerate(zip(codes, errors, strict=True)):
        if code:  # None: killed, after another one had failed
            said = file.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"rank {number} of {len(ranks)} failed (exit code {code}):\n{said}")
    if None in codes:
        raise RuntimeError(f"{len(ranks)} ranks were not done after {PATIENCE} s")


def _result(spec: Path) -> Path:
    return spec.with_name("result.json")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(spec: Path) -> None:
    """One rank."""
    content = json.loads(spec.read_text(encoding="utf-8"))
    with ranks_of_this_run(content["device"]) as ranks:
        setting = _setting(content, ranks.device)
        rate = rate_beside(setting, DTYPE)
        trainer = make_trainer(setting, content["model"], LANES, DTYPE, ranks)
        memory, step = PeakMemory(ranks.device), logged_step(trainer)
        for _ in range(4 if setting.gpu else 1):
            step()
        ranks.barrier()
        count, start = GPU_STEPS if setting.gpu else STEPS, now(ranks.device)
        for _ in range(count):
            step()
        ranks.barrier()
        seconds = (now(ranks.device) - start) / count
        found = {
            "seconds_per_step": seconds,
            "examples_per_second": trainer.train.batch_size / seconds,
            "gflop_per_example": gflop_per_example(trainer, LANES),
            "batch_size": trainer.train.batch_size,
            "micro_batches": trainer.micro_batches_per_lane(),
            "peak_memory_bytes": ranks.max_(memory.bytes()),
            "threads": torch.get_num_threads(),
            "rate": rate,  # of this rank
        }
        if ranks.is_rank_zero:
            write_json_atomic(_result(spec), found)
        ranks.barrier()


def _setting(content: dict[str, Any], device: torch.device) -> Setting:
    tasks = None if content["tasks"] is None else Path(content["tasks"])
    setting = Setting(
        device,
        load_mix(tasks),
        tasks,
        blocks=content["blocks"],
        slots=content["slots"],
        matmul_side=content["matmul_side"],
    )
    if setting.gpu or tasks is not None:
        return setting
    return dataclasses.replace(setting, mix=setting.mix.of_sides(*CPU_SIDES), slots=CPU_SLOTS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
