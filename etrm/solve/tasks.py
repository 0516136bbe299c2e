"""Tasks to ask about: from files, folders, standard input, dictionaries and arrays."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etrm.arc import parse
from etrm.arc.parse import Problems
from etrm.arc.places import load_places
from etrm.arc.sources import SourceError
from etrm.arc.task import Task
from etrm.config.lanes import MAX_SIDE
from etrm.config.text import first_few
from etrm.errors import UserError

# A place of tasks (`etrm.arc.places`), or `-`, standard input; {"train": pairs, "test": pairs}, or
# {id: such}; a task.
Item = str | Path | Mapping[str, Any] | Task
Tasks = Item | Iterable[Item]
STDIN = "standard input"
MAX_LISTED = 10  # problems in one message


class TaskError(UserError):
    """Tasks that cannot be asked about; a line for each of `problems`, up to ten."""

    def __init__(self, problems: Sequence[object]) -> None:
        super().__init__("\n".join(first_few(problems, MAX_LISTED)))


def read_tasks(tasks: Tasks) -> list[Task]:
    """Return tasks: of task files, folders, Kaggle challenges files, dictionaries, standard input.

    Test outputs may be missing, grids may be arrays. The id of a task is its file's name, its key,
    or its own `id`; else `task0`, by its place in the list. Raises `TaskError` with file, task and
    pair of every problem.
    """
    items = [tasks] if isinstance(tasks, str | Path | Mapping | Task) else list(tasks)
    problems, found, places = Problems(), [], []
    for number, item in enumerate(items):
        if isinstance(item, Task):
            found.append(item)
        elif isinstance(item, Mapping):
            found += _of_object("task", f"task{number}", _plain(item), problems)
        elif item == "-":
            content = parse.parse_json(STDIN, sys.stdin.buffer.read(), problems)
            found += _of_object(STDIN, f"task{number}", content, problems)
        else:
            places.append(str(item))
    try:
        found += load_places(places)
    except SourceError as error:
        problems += error.problems
    times = Counter(task.id for task in found)
    for name in (name for name, count in times.items() if count > 1):
        problems.add(f"task {name}", f"{times[name]} tasks of this id", "each id once")
    if problems:
        raise TaskError(problems)
    return found


def make_task(demos: Sequence[tuple[Any, Any]], inputs: Sequence[Any], name: str = "task0") -> Task:
    """Return the task of some demos, (input, output) grids, and the inputs that are asked about.

    A grid is an array of integers 0-9 [height, width], or a list of rows. Raises `TaskError`.
    """
    pairs = [{"input": x, "output": y} for x, y in demos]
    return read_tasks({name: {"train": pairs, "test": [{"input": x} for x in inputs]}})[0]


def _of_object(where: str, name: str, content: Any, problems: Problems) -> Iterator[Task]:
    """Yield the task of a JSON object, or the tasks of a Kaggle file of challenges."""
    if content is None:
        return  # reported
    if not isinstance(content, dict) or not content:
        found = "an empty object" if content == {} else parse.describe(content)
        problems.add(where, found, "an object with train and test, or one of tasks by id")
        return
    entries = content
    if "train" in content or "test" in content:
        own = content.get("id")
        entries = {own if isinstance(own, str) else name: content}
    else:
        problems.add_duplicates(where, "task", content)
    for task_id, entry in entries.items():
        place = f"{where}: task {task_id}"
        task = parse.read_task(place, task_id, entry, problems, labelled=False, max_side=MAX_SIDE)
        if task is not None:
            yield task


def _plain(value: Any) -> Any:
    """Return a value as `json.load` would give it: dicts, lists and numbers of Python."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
