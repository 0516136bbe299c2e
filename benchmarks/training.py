"""Training: examples per second, where the time of a step goes, what each optimisation gives."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.clock import PeakMemory, seconds_per_call
from benchmarks.flops import demo_lengths, training_flops
from benchmarks.parts import time_parts
from benchmarks.rows import Row, new_row, rate_beside, set_rates
from benchmarks.setups import LANES, PADDED, Layout, Setting, make_trainer
from etrm.models.flops import GIGA
from etrm.training.trainer import Trainer

DTYPES = ("fp32", "bf16")
PARTS_DTYPE = "bf16"
# Each has what the ones before it have.
INCREMENTS: tuple[tuple[str, Layout], ...] = (
    ("nothing", replace(PADDED, flat=False)),
    ("+ canvas lanes", Layout("lanes", "none", hoist=False, compile="off", flat=False)),
    ("+ real demos, packed", Layout("lanes", "auto", hoist=False, compile="off", flat=False)),
    ("+ casts hoisted", Layout("lanes", "auto", hoist=True, compile="off", flat=False)),
    ("+ flat optimizer", Layout("lanes", "auto", hoist=True, compile="off", flat=True)),
    ("+ compiled", Layout("lanes", "auto", hoist=True, compile="on", flat=True)),
)


def training_rows(setting: Setting, model: str, cases: set[str]) -> Iterator[Row]:
    """`train/<model>` in both layouts and formats, and `parts/<model>` on lanes, as asked for."""
    parts = f"parts/{model}" in cases
    for dtype in DTYPES:
        base: Row | None = None
        for layout in (PADDED, LANES):
            timed, last = f"train/{model}" in cases, parts and _has_parts(layout, dtype)
            if not timed and not last:
                continue
            trainer = make_trainer(setting, model, layout, dtype)
            if timed:
                row = measure(setting, trainer, model, layout, dtype)
                base = base or row
                row.speedup = _ratio(row, base)
                yield row
            if last:
                if not timed:
                    trainer.step()
                yield from parts_rows(setting, trainer, model, dtype)
            del trainer
            gc.collect()  # the next one's peak memory is its own


def ablation_rows(setting: Setting, model: str) -> Iterator[Row]:
    """`ablation/<model>`: optimisations, one after the other, in bf16.

    Compilation comes last, and on a GPU only: on a CPU it takes longer than it gives back.
    """
    first: Row | None = None
    for name, layout in INCREMENTS if setting.gpu else INCREMENTS[:-1]:
        trainer = make_trainer(setting, model, layout, PARTS_DTYPE)
        row = measure(setting, trainer, model, layout, PARTS_DTYPE)
        first = first or row
        row.case, row.part, row.speedup = f"ablation/{model}", name, _ratio(row, first)
        yield row
        del trainer
        gc.collect()


def measure(setting: Setting, trainer: Trainer, model: str, layout: Layout, dtype: str) -> Row:
    """Complete steps, with a row of metrics as often as a run logs one."""
    rates = [rate_beside(setting, dtype)]
    memory = PeakMemory(setting.device)
    warm_up = 4 if setting.gpu else 1
    seconds = seconds_per_call(logged_step(trainer), setting.device, setting.seconds, warm_up)
    peak = memory.bytes()
    rates.append(rate_beside(setting, dtype))
    row = new_row(
        setting,
        case=f"train/{model}",
        layout=layout.name,
        dtype=dtype,
        batch_size=trainer.train.batch_size,
        seconds_per_step=seconds,
        examples_per_second=trainer.train.batch_size / seconds,
        gflop_per_example=gflop_per_example(trainer, layout),
        gflop_of_all=gflop_of_all(trainer, layout),
        micro_batches=trainer.micro_batches_per_lane(),
        peak_memory_bytes=peak,
    )
    set_rates(row, setting, rates)
    return row


def logged_step(trainer: Trainer) -> Any:
    """Return a call that does a step, and fetches a row every `log_every` steps."""

    def step() -> None:
        trainer.step()
        if trainer.step_number % trainer.train.log_every == 0:
            trainer.row()

    return step


def gflop_per_example(trainer: Trainer, layout: Layout) -> float:
    """Of the samples that this rank's slots hold now."""
    padded, total, slots = layout.packing == "none", 0.0, 0
    for lane in trainer.lane_slots:
        batch = lane.carry.batch
        lengths = demo_lengths(batch, padded)
        total += training_flops(trainer.run, batch.lane.cells, lengths)
        slots += len(lane.slots)
    return total / slots / GIGA


def gflop_of_all(trainer: Trainer, layout: Layout, chunk: int = 128) -> float:
    """Return the mean over all questions of the tasks, with the first of their demos."""
    most, total = trainer.run.episodes.max_demos, 0.0
    for lane in (each.truncate_demos(most) for each in trainer.episodes):
        for index in torch.arange(len(lane), device=lane.task.device).split(chunk):
            batch = trainer.corpus.assemble(lane, index, torch.zeros_like(index))
            lengths = demo_lengths(batch, layout.packing == "none")
            total += training_flops(trainer.run, lane.lane.cells, lengths)
    return total / sum(len(lane) for lane in trainer.episodes) / GIGA


def parts_rows(setting: Setting, trainer: Trainer, model: str, dtype: str) -> Iterator[Row]:
    """One row for each part of a step, the longest first."""
    rates = [rate_beside(setting, dtype)]
    parts = time_parts(trainer)
    whole = sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        row = new_row(
            setting,
            case=f"parts/{model}",
            layout=LANES.name,
            dtype=dtype,
            part=name,
            seconds=seconds,
            share=seconds / whole,
            batch_size=trainer.train.batch_size,
        )
        set_rates(row, setting, rates)
        yield row


def _has_parts(layout: Layout, dtype: str) -> bool:
    return layout is LANES and dtype == PARTS_DTYPE


def _ratio(row: Row, base: Row) -> float | None:
    if row.examples_per_second is None or not base.examples_per_second:
        return None
    return row.examples_per_second / base.examples_per_second
