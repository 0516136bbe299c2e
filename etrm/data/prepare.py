"""The stages `tasks` and `augment`: from sources to `tasks.parquet` and `augmentations.parquet`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etrm.arc.augment import draw_variants
from etrm.arc.canonical import Seen, Touch
from etrm.arc.grid import MAX_SIDE, demo_grids, fits
from etrm.arc.sources import load_sources
from etrm.arc.task import Task
from etrm.config.text import first_few
from etrm.data.tables import SPLITS, TaskRecord, read_tasks, write_augmentations, write_tasks

if TYPE_CHECKING:
    from etrm.config.study import DataConfig
from etrm.errors import UserError

MAX_NAMED = 10  # tasks named in a summary
UP_TO = "up to rotation, reflection and colours"


def prepare_tasks(data: DataConfig, out: Path) -> str:
    """Write tasks.parquet from the sources named in `data`; return a summary for the log.

    Raises SourceError for bad sources and UserError for an empty split; nothing is written then.
    """
    records, summary = choose_tasks(data)
    records, found = mark_leaks(records)
    write_tasks(out, records)
    return "\n".join([*summary, *found])


def choose_tasks(data: DataConfig) -> tuple[list[TaskRecord], list[str]]:
    """The tasks of a study, and a line on each split.

    Of each split, tasks are kept whose demo grids and query inputs have sides up to `max_side`
    (answers are not looked at), and of those as many as asked for, in the order of the sources.
    Which ones depends on `seed` and the task ids alone, and a larger number keeps those of a
    smaller one. Raises as `prepare_tasks`.
    """
    names = dict(zip(SPLITS, (data.training, data.evaluation), strict=True))
    limits = dict(zip(SPLITS, (data.training_tasks, data.evaluation_tasks), strict=True))
    _check_names(data, [name for split in SPLITS for name in names[split]])
    used = {name: data.sources[name] for split in SPLITS for name in names[split]}
    max_side = MAX_SIDE if data.max_side is None else data.max_side
    tasks = load_sources(used)
    records: list[TaskRecord] = []
    summary = []
    for split in SPLITS:
        if not names[split]:
            continue
        loaded = [TaskRecord(task, name, split) for name in names[split] for task in tasks[name]]
        small = [record for record in loaded if fits(max_side, *_visible_grids(record.task))]
        kept = _draw(small, limits[split], data.seed)
        if not kept:
            raise UserError(_nothing_left(split, loaded, small, max_side))
        records += kept
        summary.append(_summarise(split, loaded, small, kept))
    if not records:
        raise UserError("data.training and data.evaluation name no source: nothing to prepare")
    return records, summary


def prepare_augmentations(tasks_path: Path, out: Path, variants: int, seed: int) -> str:
    """Write augmentations.parquet for the tasks in `tasks_path`; return a summary for the log.

    Each task gets up to `variants` variants, the identity among them (see `draw_variants`).
    """
    tasks = [record.task for record in read_tasks(tasks_path)]
    drawn = {task.id: draw_variants(task, variants, seed) for task in tasks}
    write_augmentations(out, drawn)
    total = sum(len(each) for each in drawn.values())
    summary = f"{total:,} augmented puzzles of {len(drawn)} tasks"
    short = sorted((len(each), task_id) for task_id, each in drawn.items() if len(each) < variants)
    if short:
        named = first_few((f"{task_id} ({count})" for count, task_id in short), MAX_NAMED)
        found = f"{len(short)} tasks have fewer than {variants:,} distinct"
        summary += f"\n{found}: {', '.join(named)}"
    return summary


def mark_leaks(records: list[TaskRecord]) -> tuple[list[TaskRecord], list[str]]:
    """The records with training tasks marked that touch a held-out task, and what was found."""
    training, held_out = ([r.task for r in records if r.split == split] for split in SPLITS)
    duplicate_of: dict[str, str] = {}
    answer_of: dict[str, str] = {}
    lines = []
    for hidden, touch in Seen.of(training).touching(held_out).items():
        for name in touch.tasks:
            duplicate_of.setdefault(name, hidden)
        for name in touch.answers:
            answer_of.setdefault(name, hidden)
        lines += _leak_lines(hidden, touch)
    marked = [
        replace(r, duplicate_of=duplicate_of.get(r.task.id), answer_of=answer_of.get(r.task.id))
        if r.split == "training"
        else r
        for r in records
    ]
    return marked, lines


def _leak_lines(hidden: str, touch: Touch) -> list[str]:
    """How training tasks touch one held-out task, in words."""
    lines = [
        f"training task {name} holds a test pair of held-out task {hidden}, {UP_TO}: left out of"
        " all training"
        if name in touch.answers
        else f"training task {name} shares pairs with held-out task {hidden}, {UP_TO}: left out of"
        " strict training"
        for name in touch.alone
    ]
    if not set(touch.together) <= set(touch.alone):
        lines.append(
            f"training tasks {', '.join(touch.together)} hold all demos of held-out task {hidden}"
            f" between them, {UP_TO}: left out of strict training"
        )
    return lines


def _check_names(data: DataConfig, names: Sequence[str]) -> None:
    for name in names:
        if name not in data.sources:
            known = ", ".join(data.sources) or "none"
            raise UserError(f"data.sources has no source {name!r}; it has {known}")
        if names.count(name) > 1:
            raise UserError(f"source {name!r} is named twice in data.training and data.evaluation")


def _visible_grids(task: Task) -> list[np.ndarray]:
    return demo_grids(task.demos) + [query.input for query in task.queries]


def _draw(records: list[TaskRecord], count: int | None, seed: int) -> list[TaskRecord]:
    """`count` of `records`, in their order; all of them where `count` is None or larger."""

    def rank(record: TaskRecord) -> bytes:
        return hashlib.sha256(f"tasks/{seed}/{record.task.id}".encode()).digest()

    chosen = {record.task.id for record in sorted(records, key=rank)[:count]}
    return [record for record in records if record.task.id in chosen]


def _nothing_left(
    split: str, loaded: list[TaskRecord], small: list[TaskRecord], max_side: int
) -> str:
    smallest = min(max(max(grid.shape) for grid in _visible_grids(r.task)) for r in loaded)
    return (
        f"no {split} task left: {len(small)} of {len(loaded)} tasks have demos and query inputs "
        f"with sides up to data.max_side = {max_side} (the smallest task has {smallest}), and "
        f"data.{split}_tasks keeps none of them; raise these limits"
    )


def _summarise(
    split: str, loaded: list[TaskRecord], small: list[TaskRecord], kept: list[TaskRecord]
) -> str:
    demos = sum(len(record.task.demos) for record in kept)
    queries = [query for record in kept for query in record.task.queries]
    unlabelled = sum(query.output is None for query in queries)
    return (
        f"{split}: {len(kept)} tasks kept of {len(small)} small enough of {len(loaded)}; "
        f"{demos} demos, {len(queries)} queries" + (f", {unlabelled} unlabelled" * bool(unlabelled))
    )
