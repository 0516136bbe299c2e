"""Speed on a device: rates, training with and without compilation, kernels, an overfit run."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import GIGA, now, seconds_per_call
from benchmarks.gpu.correctness import COMPILED, EAGER
from benchmarks.rows import Row, new_row, rate_beside
from benchmarks.setups import LANES, Setting, make_trainer
from benchmarks.training import PARTS_DTYPE, logged_step, measure, parts_rows

TOP = 10  # kernels of a profile
NAME = 60  # characters of a kernel's name in a row
COPIED = {"cpu": 2**24, "cuda": 2**30}  # numbers of 4 bytes
GROUPS, SIDES = 32, 10  # of the overfit run: tasks, and cells of the largest grid
OVERFIT = {"warmup_steps": 100, "lr": 3e-4, "log_every": 50}
OVERFIT_SLOTS = 256
SPARE = 3.0  # seconds of the limit that remain for the last step


def device_rows(setting: Setting) -> Iterator[Row]:
    """Measure rates of matrix products and of a copy."""
    for dtype in ("fp32", "bf16"):
        rate = rate_beside(setting, dtype)
        yield new_row(setting, case="matmul", dtype=dtype, matmul_gflops=rate)
    count = COPIED[setting.device.type] if setting.matmul_side is None else 1024
    source = torch.zeros(count, device=setting.device)
    target = torch.empty_like(source)
    seconds = seconds_per_call(lambda: target.copy_(source), setting.device, 0.2, warm_up=2)
    moved = 8 * count / seconds / GIGA
    yield new_row(setting, case="copy", part="GB/s, read and written", found=moved)


def training_rows(setting: Setting, model: str) -> Iterator[Row]:
    """Measure training without compilation, and, as a run does it there, with it.

    The plan of a study reads the row of the case `train/<model>`: the one that is compiled.
    """
    first: Row | None = None
    for case, layout in ((f"eager/{model}", EAGER), (f"train/{model}", COMPILED)):
        begun = now(setting.device)
        trainer = make_trainer(setting, model, layout, PARTS_DTYPE)
        trainer.step()
        started = now(setting.device) - begun  # the first step compiles
        row = measure(setting, trainer, model, layout, PARTS_DTYPE)
        first = first or row
        row.case, row.seconds = case, started
        row.note = "seconds: until the first step is done, compilation included; no ratio to padded"
        if row.examples_per_second and first.examples_per_second:
            row.found = row.examples_per_second / first.examples_per_second
            row.note = "found: speed to eager; seconds: until the first step is done"
        yield row
        del trainer
        gc.collect()
        if setting.gpu:
            torch.cuda.empty_cache()


def part_rows(setting: Setting) -> Iterator[Row]:
    """Measure the parts of an eager step."""
    for model in ("trm", "etrm-standard"):
        trainer = make_trainer(setting, model, EAGER, PARTS_DTYPE)
        trainer.step()
        yield from parts_rows(setting, trainer, model, PARTS_DTYPE)


def kernel_rows(setting: Setting) -> Iterator[Row]:
    """Profile a step: the kernels that take longest, and the share of time that any runs."""
    for model in ("trm", "etrm-standard"):
        trainer = make_trainer(setting, model, LANES, PARTS_DTYPE)
        step = logged_step(trainer)
        for _ in range(3 if setting.gpu else 1):
            step()
        begun = now(setting.device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.gpu else [])]
        with profile(activities=activities) as profiled:
            step()
            whole = now(setting.device) - begun
        kernels = sorted(_kernels(profiled, setting.gpu), key=lambda kernel: -kernel[1])
        busy = sum(seconds for _, seconds, _ in kernels)
        head = {"case": f"kernels/{model}", "dtype": PARTS_DTYPE}
        yield new_row(setting, **head, part="all kernels", seconds=busy, share=busy / whole)
        for name, seconds, count in kernels[:TOP]:
            row = new_row(setting, **head, part=name, seconds=seconds, share=seconds / whole)
            row.note = f"{count} calls in a step; share: of the step's wall time, profiled"
            yield row


def _kernels(profiled: Any, gpu: bool) -> Iterator[tuple[str, float, int]]:
    """Yield name, seconds and calls of what ran: kernels of a GPU, operations of a CPU."""
    for event in profiled.key_averages():
        if getattr(event, "is_user_annotation", False) or event.key.startswith("Optimizer."):
            continue
        if gpu and event.device_type == DeviceType.CUDA:
            yield event.key[:NAME], event.self_device_time_total / 1e6, event.count
        elif not gpu:
            yield event.key[:NAME], event.self_cpu_time_total / 1e6, event.count


def overfit_rows(setting: Setting, limit: float) -> Iterator[Row]:
    """Train the standard encoder on a few tasks at paper width, for as long as is left."""
    begun = time.monotonic()
    mix = setting.mix.of_sides(1, SIDES)
    mix = replace(mix, training=mix.training[:GROUPS])
    train = {**OVERFIT, **setting.blocks.get("train", {})}
    slots, blocks = setting.slots or OVERFIT_SLOTS, {**setting.blocks, "train": train}
    chosen = replace(setting, mix=mix, blocks=blocks, slots=slots)
    trainer = make_trainer(chosen, "etrm-standard", LANES, PARTS_DTYPE)
    end = begun + limit - SPARE
    last = None if setting.gpu else 4 * train["log_every"]
    while time.monotonic() < end and trainer.step_number != last:
        trainer.step()
        if trainer.step_number % train["log_every"] == 0:
            row = trainer.row()
            exact, loss = row.get("train/exact_accuracy", 0.0), row["train/lm_loss"]
            yield new_row(
                setting,
                case="overfit",
                part=f"step {trainer.step_number}",
                layout=LANES.name,
                dtype=PARTS_DTYPE,
                batch_size=slots,
                found=loss,
                ok=math.isfinite(loss),
                seconds=time.monotonic() - begun,
                examples_per_second=row["perf/examples_per_second"],
                tasks=f"{len(mix.training)} tasks",
                note=f"found: train/lm_loss; train/exact_accuracy {exact:.3f}",
            )
