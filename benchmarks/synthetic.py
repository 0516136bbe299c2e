"""Tasks with simple rules, of the sizes of ARC's: for a machine that has no ARC tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.mix import Mix, make_mix
from etrm.arc.task import Pair, Task

# Tasks of ARC-AGI-1's training set and of ConceptARC (560) by the side of their largest grid, from
# 0 cells, and by their number of demos, from 0.
TASKS_BY_SIDE = (
    *(0, 0, 0, 15, 0, 10, 27, 14, 12, 37, 102, 23, 45, 23, 27, 39),
    *(25, 20, 15, 26, 26, 17, 7, 8, 5, 7, 4, 6, 3, 5, 12),
)
TASKS_BY_DEMOS = (0, 1, 131, 298, 100, 19, 5, 3, 2, 0, 1)
SMALLEST = 0.4  # sides of other grids, of the largest: demos have as many cells as ARC's

Rule = Callable[[np.ndarray], np.ndarray]


def synthetic_mix(training: int, held_out: int, largest: int = 30, seed: int = 0) -> Mix:
    """Return tasks whose grids have up to `largest` cells a side, by ARC's spread below that."""
    rng = np.random.default_rng(seed)
    tasks = [_task(f"synthetic{i}", rng, largest) for i in range(training + held_out)]
    name = f"{training} synthetic tasks of ARC's sizes"
    return make_mix(name, tasks[:training], tasks[training:])


def _task(name: str, rng: np.random.Generator, largest: int) -> Task:
    side = _draw(rng, TASKS_BY_SIDE[: largest + 1])
    rule, pairs = _rule(rng), list[Pair]()
    for number in range(_draw(rng, TASKS_BY_DEMOS) + 1):
        low = side if number == 0 else max(1, round(SMALLEST * side))
        grid = rng.integers(0, 10, rng.integers(low, side + 1, 2)).astype(np.uint8)
        pairs.append(Pair(grid, np.ascontiguousarray(rule(grid))))
    return Task(name, tuple(pairs[:-1]), (pairs[-1],))


def _draw(rng: np.random.Generator, counts: tuple[int, ...]) -> int:
    return int(rng.choice(len(counts), p=np.array(counts) / sum(counts)))


def _rule(rng: np.random.Generator) -> Rule:
    """Return colours exchanged, or the grid mirrored."""
    colors = rng.permutation(10).astype(np.uint8)
    rules: tuple[Rule, ...] = (lambda grid: colors[grid], np.fliplr, np.flipud)
    return rules[rng.integers(len(rules))]
