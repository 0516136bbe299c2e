"""The stages `tasks` and `augment`: from sources to `tasks.parquet` and `augmentations.parquet`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from etrm.arc.augment import draw_variants
from etrm.arc.grid import visible_side
from etrm.arc.overlap import SeenContent, find_distinct
from etrm.arc.sources import Loaded, load_sources
from etrm.config.lanes import MAX_SIDE
from etrm.config.text import first_few
from etrm.data.duplicates import drop_duplicates, drop_held_out
from etrm.data.tables import TaskRecord, read_tasks, write_augmentations, write_tasks
from etrm.errors import UserError

if TYPE_CHECKING:
    from etrm.config.data import DataConfig

MAX_NAMED = 10  # tasks named in a summary
MAX_LINES = 50  # on tasks that touch held-out ones; the table has them all
UP_TO = "up to rotation, reflection and colours"


def prepare_tasks(data: DataConfig, out: Path) -> str:
    """Write tasks.parquet from the sources named in `data`; return a summary for the log.

    Raises SourceError for bad sources, DuplicateError for tasks in two of them, and UserError for
    an empty split; nothing is written then.
    """
    records, sources, summary = select_tasks(data)
    records, overlaps = mark_overlaps(records)
    write_tasks(out, records, {name: source.identity for name, source in sources.items()})
    return "\n".join([*summary, *overlaps])


def select_tasks(data: DataConfig) -> tuple[list[TaskRecord], dict[str, Loaded], list[str]]:
    """Return the tasks of a study, their sources, and lines on those kept and left out.

    Of each split, tasks are kept whose demo grids and query inputs have sides up to `max_side`
    (answers are not looked at), and of those as many as asked for, in the order of the sources.
    Tasks of several sources are kept once (`data.duplicates`), tasks that are held out not at all.
    Validation tasks are set apart before training tasks are drawn (`draw_validation`). A draw
    depends on `seed` and the task ids alone, and a larger number keeps the tasks of a smaller one.
    Raises as `prepare_tasks`.
    """
    named = [*data.training, *data.evaluation]
    twice = sorted(name for name, times in Counter(named).items() if times > 1)
    if twice or not named:
        found = f"{twice[0]!r} twice" if twice else "no source"
        raise UserError(
            f"data.training and data.evaluation name {found}, expected each source once"
        )
    max_side = MAX_SIDE if data.max_side is None else data.max_side
    sources = load_sources({name: data.sources[name] for name in named}, data.max_side)
    summary = [line for name in named for line in _summary_of_source(name, sources[name])]
    # From all that the sources hold to those small enough, to as many as asked for.
    loaded = {
        split: [TaskRecord(task, name, split) for name in names for task in sources[name].tasks]
        for split, names in (("training", data.training), ("evaluation", data.evaluation))
    }
    small = {s: [r for r in of if visible_side(r.task) <= max_side] for s, of in loaded.items()}
    once = {}
    for split, of in small.items():
        once[split], lines = drop_duplicates(of, split, data.duplicates)
        summary += lines
    evaluation = _draw(once["evaluation"], data.evaluation_tasks, data)
    training, lines = drop_held_out(once["training"], evaluation)
    summary += lines
    validation = draw_validation(training, evaluation, data)
    apart = {record.task.id for record in validation}
    rest = [record for record in training if record.task.id not in apart]
    kept = {"training": _draw(rest, data.training_tasks, data), "evaluation": evaluation}
    both = len(once["training"]) - len(training)
    gone = {"training": f", {both} of them held out, {len(apart)} of them for validation"}
    for split, of in loaded.items():
        if getattr(data, split) and not kept[split]:
            raise _none_left(split, of, len(small[split]), max_side, gone.get(split, ""))
    among = {s: f"{len(small[s])} small enough of {len(of)}" for s, of in loaded.items()}
    among["validation"] = f"{_wanted(_candidates(training, data), data)} asked for"
    splits = {"training": kept["training"], "validation": validation, "evaluation": evaluation}
    summary += [_summary(split, of, among[split]) for split, of in splits.items() if of]
    return [record for of in splits.values() for record in of], sources, summary


def _none_left(
    split: str, of: Sequence[TaskRecord], small: int, max_side: int, gone: str
) -> UserError:
    smallest = min(visible_side(record.task) for record in of)
    return UserError(
        f"no {split} task left: {small} of {len(of)} tasks have demos and query inputs with sides"
        f" up to data.max_side = {max_side}{gone} (the smallest task has {smallest}), and"
        f" data.{split}_tasks keeps none of the rest; change these limits"
    )


def _summary_of_source(name: str, source: Loaded) -> list[str]:
    """Return a line on a source, and one on each reason for which it left tasks out."""
    what, identity = f"{len(source.tasks)} tasks, read from {source.origin}", source.identity
    revision = identity["revision"] or f"no known revision, content {identity['content'][:16]}"
    lines = [f"{name}: {what}: {revision}"]
    for expected, count in identity["skipped"].items():
        first = next(problem for problem in source.skipped if problem.expected == expected)
        lines.append(f"{name}: {count} left out, expected {expected}; the first: {first}")
    return lines


def _summary(split: str, kept: Sequence[TaskRecord], among: str) -> str:
    demos = sum(len(record.task.demos) for record in kept)
    queries = [query for record in kept for query in record.task.queries]
    counts = [f"{demos} demos", f"{len(queries)} queries"]
    if unlabelled := sum(query.output is None for query in queries):
        counts.append(f"{unlabelled} unlabelled")
    return f"{split}: {len(kept)} tasks kept of {among}; {', '.join(counts)}"


def draw_validation(
    training: Sequence[TaskRecord], held_out: Sequence[TaskRecord], data: DataConfig
) -> list[TaskRecord]:
    """Return the training tasks that are held out as validation, marked so, in their order.

    Eligible are those that share no pair with any other task, trained on or held out, up to
    dihedral and colours. Each stratum (source, size, number of pairs) gives its share of them
    within one task: the end of the seeded order whose beginning `training_tasks` keeps.
    """
    training = _candidates(training, data)
    wanted = _wanted(training, data)
    distinct = find_distinct(r.task for r in (*training, *held_out)) if wanted else set()
    strata: dict[tuple[str, int, int], list[str]] = {}  # ids in the seeded order
    for record in sorted(training, key=lambda record: _rank(record, data.seed)):
        if record.task.id in distinct:
            strata.setdefault(_stratum(record), []).append(record.task.id)
    # Every nth place of all eligible tasks, stratum by stratum, starting in the middle of a step.
    places = [stratum for stratum in sorted(strata) for _ in strata[stratum]]
    count = min(wanted, len(places))
    shares = Counter(places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count))
    chosen = {name for stratum, share in shares.items() for name in strata[stratum][-share:]}
    return [replace(r, split="validation") for r in training if r.task.id in chosen]


def _candidates(training: Sequence[TaskRecord], data: DataConfig) -> list[TaskRecord]:
    """Return the tasks that validation tasks are drawn from: generated ones only if all are.

    There are as many generated tasks as one likes: they would crowd out all others. Those that were
    generated by the rule of another task go where that one goes: `mark_overlaps` finds them.
    """
    ids = {record.task.id for record in training}
    drawn = (r for r in training if r.task.original is None or r.task.original.id not in ids)
    return [r for r in drawn if not _is_counted(r, data)] or list(training)


def _wanted(training: Sequence[TaskRecord], data: DataConfig) -> int:
    return len(training) // 10 if data.validation_tasks is None else data.validation_tasks


def _stratum(record: TaskRecord) -> tuple[str, int, int]:
    """Return source, size (sides up to 10, 20 or 30 cells) and number of pairs of a task."""
    task = record.task
    return record.source, (visible_side(task) + 9) // 10, len(task.demos) + len(task.queries)


def _draw(records: list[TaskRecord], count: int | None, data: DataConfig) -> list[TaskRecord]:
    """Draw `count` of `records`, in their order; all of them where `count` is None or larger.

    Tasks of a source that says itself how many it generates stay.
    """
    drawn = [record for record in records if not _is_counted(record, data)]
    ordered = sorted(drawn, key=lambda record: _rank(record, data.seed))
    left_out = {record.task.id for record in ordered[len(ordered) if count is None else count :]}
    return [record for record in records if record.task.id not in left_out]


def _is_counted(record: TaskRecord, data: DataConfig) -> bool:
    """Return whether the number of tasks of its source is an option of the source."""
    return hasattr(data.sources[record.source], "tasks")


def _rank(record: TaskRecord, seed: int) -> bytes:
    """Return a task's place in the seeded order: a hash of its id, whatever other tasks there are.

    So the draw of a task does not depend on the others.
    """
    return hashlib.sha256(f"tasks/{seed}/{record.task.id}".encode()).digest()


def prepare_augmentations(tasks_path: Path, out: Path, variants: int, seed: int) -> str:
    """Write augmentations.parquet for the tasks in `tasks_path`; return a summary for the log.

    Each task gets up to `variants` variants, the identity among them (see `draw_variants`).
    """
    tasks = [record.task for record in read_tasks(tasks_path)]
    drawn = {task.id: draw_variants(task, variants, seed) for task in tasks}
    write_augmentations(out, drawn)
    total = sum(len(each) for each in drawn.values())
    summary = f"{total:,} augmented puzzles of {len(drawn)} tasks"
    # Tasks with few colours have fewer variants than asked for: those are named. Exact tasks, as
    # all of a world, have none.
    found = ((len(drawn[task.id]), task.id) for task in tasks if not task.exact)
    short = sorted((number, task_id) for number, task_id in found if number < variants)
    if short:
        named = first_few((f"{task_id} ({count})" for count, task_id in short), MAX_NAMED)
        fewer = f"{len(short)} tasks have fewer than {variants:,} distinct"
        summary += f"\n{fewer}: {', '.join(named)}"
    return summary


def mark_overlaps(records: list[TaskRecord]) -> tuple[list[TaskRecord], list[str]]:
    """Return the records with training tasks marked that touch a held-out task, and a line on each.

    `etrm.arc.overlap` defines it; the columns of tasks.parquet say the consequences.
    """
    training = [r.task for r in records if r.split == "training"]
    # Validation tasks share no pair with any other, but pairs by their rules may be there.
    held_out = [r.task for r in records if r.split != "training"]
    duplicate_of: dict[str, str] = {}
    answer_of: dict[str, str] = {}
    lines = []
    rule_of = {
        t.id: f" (as {t.original.id}, whose rule it follows)" for t in training if t.original
    }
    for hidden, overlap in SeenContent.of(training).find_touched(held_out).items():
        duplicate_of = dict.fromkeys(overlap.tasks, hidden) | duplicate_of  # the first one stays
        answer_of = dict.fromkeys(overlap.answers, hidden) | answer_of
        for name in overlap.alone:
            answer = name in overlap.answers
            shares = "holds a test pair of" if answer else "shares pairs with"
            left_out = f"left out of {'all' if answer else 'strict'} training"
            lines.append(
                f"training task {name}{rule_of.get(name, '')} {shares} held-out task {hidden},"
                f" {UP_TO}: {left_out}"
            )
        if not set(overlap.together) <= set(overlap.alone):  # else the lines above say more
            lines.append(
                f"training tasks {', '.join(overlap.together)} hold all demos of held-out task"
                f" {hidden} between them, {UP_TO}: left out of strict training"
            )
    lines = first_few(lines, MAX_LINES)
    if duplicate_of:  # which `answer_of` is a part of
        counts = f"{len(duplicate_of)}, {len(answer_of)} of them of all training"
        lines.insert(0, f"training tasks left out of strict training by content: {counts}")
    marked = [
        replace(r, duplicate_of=duplicate_of.get(r.task.id), answer_of=answer_of.get(r.task.id))
        if r.split == "training"
        else r
        for r in records
    ]
    return marked, lines
