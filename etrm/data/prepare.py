"""The stages `tasks` and `augment`: from sources to `tasks.parquet` and `augmentations.parquet`."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from etrm.arc.augment import draw_variants
from etrm.arc.grid import MAX_SIDE, demo_grids
from etrm.arc.overlap import SeenContent
from etrm.arc.sources import load_sources
from etrm.config.text import first_few
from etrm.data.tables import SPLITS, TaskRecord, read_tasks, write_augmentations, write_tasks
from etrm.errors import UserError

if TYPE_CHECKING:
    from etrm.config.study import DataConfig

MAX_NAMED = 10  # tasks named in a summary
UP_TO = "up to rotation, reflection and colours"


def prepare_tasks(data: DataConfig, out: Path) -> str:
    """Write tasks.parquet from the sources named in `data`; return a summary for the log.

    Raises SourceError for bad sources and UserError for an empty split; nothing is written then.
    """
    records, summary = select_tasks(data)
    records, overlaps = mark_overlaps(records)
    write_tasks(out, records)
    return "\n".join([*summary, *overlaps])


def select_tasks(data: DataConfig) -> tuple[list[TaskRecord], list[str]]:
    """Return the tasks of a study, and a line on each split.

    Of each split, tasks are kept whose demo grids and query inputs have sides up to `max_side`
    (answers are not looked at), and of those as many as asked for, in the order of the sources.
    The selection depends on `seed` and the task ids alone, and a larger number keeps the tasks of
    a smaller one. Raises as `prepare_tasks`.
    """
    named = [*data.training, *data.evaluation]
    twice = sorted(name for name, times in Counter(named).items() if times > 1)
    if twice or not named:
        found = f"{twice[0]!r} twice" if twice else "no source"
        raise UserError(
            f"data.training and data.evaluation name {found}, expected each source once"
        )
    max_side = MAX_SIDE if data.max_side is None else data.max_side
    tasks = load_sources({name: data.sources[name] for name in named})
    records: list[TaskRecord] = []
    summary = []
    for split in SPLITS:
        names, limit = getattr(data, split), getattr(data, f"{split}_tasks")
        if not names:
            continue
        # From all that the sources hold to those small enough, to as many as asked for.
        loaded = [TaskRecord(task, name, split) for name in names for task in tasks[name]]
        small = [record for record in loaded if _visible_side(record) <= max_side]
        kept = _draw(small, limit, data.seed)
        if not kept:
            raise UserError(
                f"no {split} task left: {len(small)} of {len(loaded)} tasks have demos and query"
                f" inputs with sides up to data.max_side = {max_side} (the smallest task has"
                f" {min(map(_visible_side, loaded))}), and data.{split}_tasks keeps none of them;"
                " raise these limits"
            )
        records += kept
        demos = sum(len(record.task.demos) for record in kept)
        queries = [query for record in kept for query in record.task.queries]
        counts = [f"{demos} demos", f"{len(queries)} queries"]
        if unlabelled := sum(query.output is None for query in queries):
            counts.append(f"{unlabelled} unlabelled")
        found = f"{len(kept)} tasks kept of {len(small)} small enough of {len(loaded)}"
        summary.append(f"{split}: {found}; {', '.join(counts)}")
    return records, summary


def _visible_side(record: TaskRecord) -> int:
    """Return the largest side of any grid of a task but the answers."""
    grids = demo_grids(record.task.demos) + [query.input for query in record.task.queries]
    return max(max(grid.shape) for grid in grids)


def _draw(records: list[TaskRecord], count: int | None, seed: int) -> list[TaskRecord]:
    """Draw `count` of `records`, in their order; all of them where `count` is None or larger."""

    def rank(record: TaskRecord) -> bytes:
        return hashlib.sha256(f"tasks/{seed}/{record.task.id}".encode()).digest()

    # By a hash of each id, so that the draw of a task does not depend on the other tasks.
    chosen = {record.task.id for record in sorted(records, key=rank)[:count]}
    return [record for record in records if record.task.id in chosen]


def prepare_augmentations(tasks_path: Path, out: Path, variants: int, seed: int) -> str:
    """Write augmentations.parquet for the tasks in `tasks_path`; return a summary for the log.

    Each task gets up to `variants` variants, the identity among them (see `draw_variants`).
    """
    tasks = [record.task for record in read_tasks(tasks_path)]
    drawn = {task.id: draw_variants(task, variants, seed) for task in tasks}
    write_augmentations(out, drawn)
    total = sum(len(each) for each in drawn.values())
    summary = f"{total:,} augmented puzzles of {len(drawn)} tasks"
    # Tasks with few colours have fewer variants than asked for: those are named.
    short = sorted((len(each), task_id) for task_id, each in drawn.items() if len(each) < variants)
    if short:
        named = first_few((f"{task_id} ({count})" for count, task_id in short), MAX_NAMED)
        found = f"{len(short)} tasks have fewer than {variants:,} distinct"
        summary += f"\n{found}: {', '.join(named)}"
    return summary


def mark_overlaps(records: list[TaskRecord]) -> tuple[list[TaskRecord], list[str]]:
    """Return the records with training tasks marked that touch a held-out task, and a line on each.

    `etrm.arc.overlap` defines it; the columns of tasks.parquet say the consequences.
    """
    training, held_out = ([r.task for r in records if r.split == split] for split in SPLITS)
    duplicate_of: dict[str, str] = {}
    answer_of: dict[str, str] = {}
    lines = []
    for hidden, overlap in SeenContent.of(training).find_touched(held_out).items():
        duplicate_of = dict.fromkeys(overlap.tasks, hidden) | duplicate_of  # the first one stays
        answer_of = dict.fromkeys(overlap.answers, hidden) | answer_of
        for name in overlap.alone:
            answer = name in overlap.answers
            shares = "holds a test pair of" if answer else "shares pairs with"
            left_out = f"left out of {'all' if answer else 'strict'} training"
            lines.append(
                f"training task {name} {shares} held-out task {hidden}, {UP_TO}: {left_out}"
            )
        if not set(overlap.together) <= set(overlap.alone):  # else the lines above say more
            lines.append(
                f"training tasks {', '.join(overlap.together)} hold all demos of held-out task"
                f" {hidden} between them, {UP_TO}: left out of strict training"
            )
    marked = [
        replace(r, duplicate_of=duplicate_of.get(r.task.id), answer_of=answer_of.get(r.task.id))
        if r.split == "training"
        else r
        for r in records
    ]
    return marked, lines
