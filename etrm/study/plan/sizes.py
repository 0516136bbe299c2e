"""Sizes of a study: tasks, queries and puzzles, and the bytes that its results take."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from etrm.config.refinement import RefinementConfig
from etrm.config.study import EvaluationConfig, ModelConfig, RunConfig
from etrm.data.prepare import select_tasks
from etrm.data.tables import TaskRecord, read_tasks
from etrm.models.build import context_of_sizes
from etrm.models.decoder import Decoder
from etrm.study.layout import Layout
from etrm.study.plan.entries import Entry

FLOAT = 4  # bytes
COPIES = 4  # of a parameter in a state: raw, EMA, and the two moments of AdamW
STATES = 3  # of a run at once: the last two, and the next while it is written
ROW = 30  # bytes of a prediction beside its grid (a byte a cell), before compression


@dataclass(frozen=True)
class Sizes:
    """Sizes of training and evaluation; None and 0: not known before the sources are there."""

    training: int = 0  # tasks
    validation: int = 0  # tasks
    held_out: int = 0  # tasks
    questions: int | None = None  # queries of the held-out tasks
    asked: int = 0  # queries of the validation tasks
    cells: float = 0.0  # mean size of their input grids
    records: Sequence[TaskRecord] = field(default=(), repr=False, compare=False)
    missing: tuple[str, ...] = ()  # sources whose files are missing, and where to get them

    def answers(
        self, config: EvaluationConfig | RefinementConfig, variants: int, validation: bool = False
    ) -> int | None:
        """Return the most answers that are asked for, queries × variants; None: not known yet.

        To so many held-out tasks as `config` names, or to the validation tasks.
        """
        asked = self.asked
        if not validation:
            if self.questions is None or not self.held_out:
                return None
            tasks = min(config.tasks or self.held_out, self.held_out)
            asked = round(self.questions * tasks / self.held_out)
        return asked * min(config.variants, variants)

    def puzzles(self, run: RunConfig, variants: int) -> int:
        """Return the most augmented puzzles of a run: rows of its table of embeddings."""
        more = self.held_out + self.validation if run.split == "transductive" else 0
        tasks = self.training + more
        return min(tasks, run.train.tasks or tasks) * min(variants, run.train.variants or variants)


def sizes_of(layout: Layout, again: bool) -> Sizes:
    """Return the sizes of a study; `again`: its tables are made again, so they tell nothing.

    Missing sources are left out, which makes the sizes of training a lower bound.
    """
    data, missing = layout.study.data, {}
    for name, source in layout.sources.items():
        gone = [str(path) for path in layout.source_paths(name) if not path.exists()]
        if gone:
            generated = "its pairs are generated before the stage `tasks`"
            hint = getattr(source, "hint", generated)
            missing[name] = f"{', '.join(gone)} missing (data.sources.{name})"
            missing[name] += f": {hint}" if hint else ""
    try:
        if not again and layout.tasks.is_file():
            records, missing = read_tasks(layout.tasks), {}
        else:
            there = (
                [n for n in names if n not in missing] for names in (data.training, data.evaluation)
            )
            training, evaluation = map(tuple, there)
            records, *_ = select_tasks(replace(data, training=training, evaluation=evaluation))
    except (ValueError, OSError):  # the stage `tasks` reports it
        return Sizes(missing=tuple(missing.values()))
    held_out = [record.task for record in records if record.split == "evaluation"]
    asked = [record.task for record in records if record.split == "validation"]
    of = Counter(record.split for record in records)
    cells = [query.input.size for task in held_out for query in task.queries]
    return Sizes(
        training=of["training"],
        validation=of["validation"],
        held_out=len(held_out),
        questions=None if set(missing) & set(data.evaluation) else len(cells),
        asked=sum(len(task.queries) for task in asked),
        cells=sum(cells) / max(1, len(cells)),
        records=records,
        missing=tuple(missing.values()),
    )


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
        if not entry.job or entry.cached or entry.stage in ("gate", "refine", "validate"):
            continue  # small files, for the most part
        if entry.stage == "evaluate":
            experiment = layout.study.experiments[entry.experiment]
            rows = sizes.answers(experiment.evaluation, layout.study.data.variants) or 0
            steps = FLOAT * experiment.halting.max_steps  # an accuracy for each
            write += round(rows * (sizes.cells + ROW + steps))
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
    source = context_of_sizes(context, model, puzzles)
    with torch.device("meta"):
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
