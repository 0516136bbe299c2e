"""Tasks that several sources have, by id or by content: each is kept once, or they are an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from etrm.arc.overlap import fill_keys, pair_keys
from etrm.arc.task import Task
from etrm.config.text import first_few
from etrm.data.tables import TaskRecord
from etrm.errors import UserError

MAX_NAMED = 10  # tasks in one line

Match = tuple[TaskRecord, TaskRecord]  # a task, and the one that it is a duplicate of


class DuplicateError(UserError):
    """Several sources have the same tasks; `lines` says which."""

    def __init__(self, split: str, lines: Sequence[str]) -> None:
        self.lines = lines
        super().__init__(
            f"data.{split}: found {'; '.join(lines)}; expected each task in one source: set"
            " `data.duplicates: first` to keep those of the source that is named first, and to"
            " leave the others out"
        )


def drop_duplicates(
    records: Sequence[TaskRecord], split: str, policy: str
) -> tuple[list[TaskRecord], list[str]]:
    """Return the tasks that no earlier source has, in their order, and a line on each two sources.

    Tasks are the same by id or by content. Tasks of one source are not compared: their ids differ,
    and a source may hold a task twice. A generated task is no duplicate of its original, which has
    other pairs. Raises `DuplicateError` where `policy` is `error`.
    """
    several = len({record.source for record in records}) > 1  # else no content is needed
    if several:  # of all at once, which takes less time
        fill_keys(record.task for record in records if record.task.original is None)
    first: dict[str | frozenset[str], TaskRecord] = {}  # id or content → the first with it
    kept: list[TaskRecord] = []
    matches: dict[tuple[str, str], list[Match]] = {}
    for record in records:
        names: list[str | frozenset[str]] = [record.task.id]
        if several and record.task.original is None:
            names.append(content_of(record.task))
        found = (first[name] for name in names if name in first)
        earlier = next((each for each in found if each.source != record.source), None)
        if earlier is None:
            kept.append(record)
            for name in names:
                first.setdefault(name, record)
        else:
            between = matches.setdefault((record.source, earlier.source), [])
            between.append((record, earlier))
    lines = [
        f"{_count(between)} of source {source} in source {earlier}, too: {_names(between)}"
        for (source, earlier), between in matches.items()
    ]
    if lines and policy == "error":
        raise DuplicateError(split, lines)
    return kept, [f"{split}: left out {line}" for line in lines]


def drop_held_out(
    training: Sequence[TaskRecord], held_out: Sequence[TaskRecord]
) -> tuple[list[TaskRecord], list[str]]:
    """Return the training tasks without the ids of held-out tasks, and a line on the others.

    Such a task counts as the held-out one whatever its content. Those under another id are marked
    by their content (`etrm.data.prepare.mark_overlaps`).
    """
    ids = {record.task.id: record for record in held_out}
    kept = [record for record in training if record.task.id not in ids]
    both = [(record, ids[record.task.id]) for record in training if record.task.id in ids]
    if not both:
        return kept, []
    return kept, [f"training: left out {_count(both)} held out under the same id: {_names(both)}"]


def content_of(task: Task) -> frozenset[str]:
    """Return the keys of all pairs of a task: equal where two tasks differ by augmentation alone.

    Demos and queries are not told apart: revisions of ARC have moved pairs between them.
    """
    return frozenset(pair_keys((*task.demos, *task.queries), task.exact))


def _count(matches: Sequence[Match]) -> str:
    """Return the number of tasks, and of those with an equal id whose content differs."""
    other = sum(content_of(task.task) != content_of(first.task) for task, first in matches)
    text = f"{len(matches)} task{'' if len(matches) == 1 else 's'}"
    return f"{text} ({other} of other content under the same id)" if other else text


def _names(matches: Iterable[Match]) -> str:
    named = (
        task.task.id if task.task.id == first.task.id else f"{task.task.id} (is {first.task.id})"
        for task, first in matches
    )
    return ", ".join(first_few(named, MAX_NAMED))
