"""What is still to be written, what the study has on disk, and what is free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.registry import context_source
from etrm.config.study import ModelConfig, RunConfig
from etrm.study.layout import Layout
from etrm.study.plan.entries import Entry
from etrm.study.plan.sizes import Sizes

FLOAT = 4  # bytes
# Of a state: weights, their average, and two moments of the optimizer.
COPIES = 4
# States of a run that are there at once: the last two, and the next while it is written.
STATES = 3
# Of a row of predictions beside its grid, which has a byte for each cell, before compression.
ROW = 30


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    write: int  # run folders and predictions that are to be made
    state: int  # the states of one run while it trains, at most: of the largest to be trained
    used: int  # by the study's folder now
    free: int  # where it is


def disk_of(layout: Layout, entries: Iterable[Entry], sizes: Sizes) -> Disk:
    """Estimates from the numbers of parameters; a file with several names counts once."""
    write = state = 0
    for entry in entries:
        if not entry.job or entry.kept or entry.stage == "gate":
            continue
        if entry.stage == "evaluate":
            experiment = layout.study.experiments[entry.experiment]
            rows = sizes.predictions(experiment, layout.study.data.variants) or 0
            write += round(rows * (sizes.cells + ROW))
            continue
        trained, table = parameters(layout.config_of(entry.run), layout, sizes)
        write += FLOAT * (2 * trained + table)
        state = max(state, STATES * FLOAT * (COPIES * trained + table))
    return Disk(write, state, used(layout.root), free(layout.root))


def parameters(run: RunConfig, layout: Layout, sizes: Sizes) -> tuple[int, int]:
    """Trained parameters, and numbers in a table of embeddings (of which there is no average)."""
    puzzles = sizes.puzzles(run, layout.study.data.variants)
    return _count(run.model, run.context, puzzles if run.context.source == "embedding" else 1)


@cache
def _count(model: ModelConfig, context: Any, puzzles: int) -> tuple[int, int]:
    import torch

    from etrm.models.decoder import Decoder

    with torch.device("meta"):
        source = context_source(context.source)(context, model, puzzles)
        trained = [*source.parameters(), *Decoder(model).parameters()]
    table = getattr(source, "weights", None)
    return sum(p.numel() for p in trained), 0 if table is None else int(table.numel())


def used(folder: Path) -> int:
    """Bytes of the files below a folder, each counted once whatever its names."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue  # it was a temporary one
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
