"""Disk space of a study: still to be written, in use, and free."""

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
COPIES = 4  # of a parameter in a state: raw, EMA, and the two moments of AdamW
STATES = 3  # of a run at once: the last two, and the next while it is written
ROW = 30  # bytes of a prediction beside its grid (a byte a cell), before compression


@dataclass(frozen=True)
class Disk:
    """Disk space, in bytes."""

    write: int  # run folders and predictions that are still to be made
    state: int  # the most that the states of one run take while it trains
    used: int  # by the study's folder now
    free: int  # on its disk


def disk_of(layout: Layout, entries: Iterable[Entry], sizes: Sizes) -> Disk:
    """Return an estimate from the numbers of parameters and predictions."""
    write = state = 0
    for entry in entries:
        if not entry.job or entry.cached or entry.stage == "gate":
            continue
        if entry.stage == "evaluate":
            experiment = layout.study.experiments[entry.experiment]
            rows = sizes.predictions(experiment, layout.study.data.variants) or 0
            write += round(rows * (sizes.cells + ROW))
            continue
        trained, table = parameters(layout.config_of(entry.run), layout, sizes)
        write += FLOAT * (2 * trained + table)  # raw and EMA; the table has no EMA
        state = max(state, STATES * FLOAT * (COPIES * trained + table))
    return Disk(write, state, used(layout.root), free(layout.root))


def parameters(run: RunConfig, layout: Layout, sizes: Sizes) -> tuple[int, int]:
    """Return the numbers of trained parameters, and of a table of embeddings (which has no EMA)."""
    puzzles = sizes.puzzles(run, layout.study.data.variants)
    return _count(run.model, run.context, puzzles if run.context.source == "embedding" else 1)


@cache
def _count(model: ModelConfig, context: Any, puzzles: int) -> tuple[int, int]:
    import torch

    from etrm.models.decoder import Decoder

    with torch.device("meta"):  # shapes alone, no memory
        source = context_source(context.source)(context, model, puzzles)
        trained = [*source.parameters(), *Decoder(model).parameters()]
    table = getattr(source, "weights", None)
    return sum(p.numel() for p in trained), 0 if table is None else int(table.numel())


def used(folder: Path) -> int:
    """Return the bytes of the files below a folder; a file with several links counts once."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue  # a temporary file
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def free(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
