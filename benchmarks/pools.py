"""Speed of training on pools of many pairs, beside tasks of a few on the same canvas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.clock import seconds_per_call
from benchmarks.mix import Mix
from benchmarks.rows import Row, new_row, rate_beside, set_rates
from benchmarks.setups import LANES, Setting, make_trainer
from benchmarks.training import logged_step
from etrm.arc.augment import draw_variants
from etrm.arc.task import Pair, Task
from etrm.training.trainer import Trainer

CASE, MODEL, DTYPE = "pools/etrm-standard", "etrm-standard", "bf16"
PAIRS = (4, 1000)  # of a task: three demos of four, and three of a pool
TASKS, SIDE, DEMOS = 100, 10, 3
ROUNDS = 3  # in turns, of which the fastest counts: a machine's speed changes from hour to hour


def pools_rows(setting: Setting) -> Iterator[Row]:
    """`pools/etrm-standard`: the same canvas, batch and demos a sample, and 250 times the pairs."""
    trainers = [_trainer(setting, pairs) for pairs in PAIRS]
    seconds = [float("inf")] * len(trainers)
    rates = [rate_beside(setting, DTYPE)]
    for _ in range(ROUNDS):
        for i, step in enumerate(map(logged_step, trainers)):
            taken = seconds_per_call(step, setting.device, setting.seconds / ROUNDS, warm_up=2)
            seconds[i] = min(seconds[i], taken)
    rates.append(rate_beside(setting, DTYPE))
    for trainer, taken, pairs in zip(trainers, seconds, PAIRS, strict=True):
        row = new_row(
            setting,
            case=CASE,
            part=f"{pairs} pairs a task",
            layout=LANES.name,
            dtype=DTYPE,
            batch_size=trainer.train.batch_size,
            seconds_per_step=taken,
            examples_per_second=trainer.train.batch_size / taken,
            speedup=seconds[0] / taken,
            tasks=f"{TASKS} tasks of {SIDE}×{SIDE} cells",
        )
        set_rates(row, setting, rates)
        yield row


def _trainer(setting: Setting, pairs: int) -> Trainer:
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 10, (TASKS, pairs, 2, SIDE, SIDE), dtype=np.uint8)
    tasks = []
    for number, own in enumerate(grids):
        found = tuple(Pair(left, right) for left, right in own)
        tasks.append(Task(f"pool{number}", found[:-1], found[-1:]))
    mix = Mix("pools", tasks, [], {task.id: draw_variants(task, 4, 0) for task in tasks})
    episodes = {"canvas": [SIDE], "max_demos": DEMOS}
    return make_trainer(
        replace(setting, mix=mix, blocks={**setting.blocks, "episodes": episodes}),
        MODEL,
        LANES,
        DTYPE,
    )
