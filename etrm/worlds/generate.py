"""Tasks of a world: a function of the source's options and of the tasks' numbers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from etrm.worlds.identify import is_identified
from etrm.worlds.primitive import Grid, below, same
from etrm.worlds.world import Rule, World, WorldError

if TYPE_CHECKING:
    from etrm.config.sources import WorldSource

GRIDS = 20  # drawings of a task's grids before another rule is drawn
RULES = 100  # rules that are drawn before a world is given up
MAX_SIDE = 30  # cells, of outputs


@dataclass(frozen=True, eq=False)
class Generated:
    """One task, and its ground truth."""

    id: str  # readable, as in `fill-3f2a91c0-17`: rule, world and part, number
    rule: str
    parameters: str  # JSON
    novelty: str | None  # the part of a held-out task that no training task has; None: of training
    pairs: tuple[tuple[Grid, Grid], ...]  # the demos, then the queries
    demos: int
    redrawn: int  # drawings whose demos did not identify the answers, or left them as they were


def generate(source: WorldSource, start: int, count: int) -> Iterator[Generated]:
    """Yield the tasks with the numbers `start`, ..., `start + count - 1`, without an end to them.

    `source.tasks` does not matter: task i is the same whatever number of tasks is asked for. Raises
    `WorldError` for a world without tasks.
    """
    world, prefix, stream = _world(source)
    for number in range(start, start + count):
        yield _draw(world, prefix, np.random.default_rng([*stream, number]), number)


@lru_cache(maxsize=64)
def _world(source: WorldSource) -> tuple[World, str, list[int]]:
    """Return the world of a source, the mark of its tasks' ids, and the seed of their numbers."""
    options = [
        *(source.rules, source.size, source.smallest, source.depth, source.demos, source.tests),
        *(source.part, source.unseen, source.share, source.seed),
        source.split_from,
    ]
    mark = hashlib.blake2b(json.dumps(options).encode(), digest_size=8).hexdigest()
    return World(source), mark[:8], [int(mark[:8], 16), int(mark[8:], 16)]


def _draw(world: World, mark: str, rng: np.random.Generator, number: int) -> Generated:
    """Draw rules and grids until the demos identify the answers."""
    source, redrawn = world.source, 0
    compositions = world.compositions if source.depth > 1 else ()
    for _ in range(RULES):
        size = world.sizes[below(rng, len(world.sizes))]
        rule = world.draw_rule(rng, size)
        if rule is None:
            continue
        for _ in range(GRIDS):
            pairs = _draw_pairs(world, rng, rule, size)
            if pairs is None:
                break
            demos, queries = pairs[: source.demos], pairs[source.demos :]
            acts = not any(same(x, y) for x, y in queries)  # a copy is no answer that shows a rule
            if acts and is_identified(world.primitives, compositions, demos, queries):
                name, novelty = rule.name, world.novelty([p for p, _ in rule.parts])
                task = f"{name}-{mark}-{number}"
                return Generated(task, name, rule.parameters, novelty, pairs, source.demos, redrawn)
            redrawn += 1
    raise WorldError(
        f"a world of the rules {', '.join(source.rules)}: found no task {number} in {redrawn}"
        f" drawings whose {source.demos} demos identify its answers among the rules, expected one:"
        " give it more demos, larger grids, or rules that differ more"
    )


def _draw_pairs(
    world: World, rng: np.random.Generator, rule: Rule, size: tuple[int, int]
) -> tuple[tuple[Grid, Grid], ...] | None:
    """Draw all pairs of a task; None where no grids are found, or an output is too large."""
    pairs = []
    for _ in range(world.source.demos + world.source.tests):
        grid = world.draw_grid(rng, rule, size)
        if grid is None:
            return None
        output = rule.apply(grid)
        if max(output.shape) > MAX_SIDE:
            return None
        pairs.append((grid, np.ascontiguousarray(output)))
    return tuple(pairs)
