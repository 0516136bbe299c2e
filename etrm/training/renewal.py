"""New tasks of worlds in the course of training: a world has as many as one asks for.

Every `train.new_tasks_every` steps the tasks that are trained on give way to as many others, the
next ones of their worlds' sequences. Which they are follows from the step alone, so a killed run
resumes with the same ones. The tasks of the study's tables are the first, and those that training
is evaluated on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from etrm.arc.augment import draw_variants
from etrm.arc.sources import world_tasks
from etrm.config.registry import context_source
from etrm.config.schema import parse
from etrm.config.sources import WorldSource
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, training_questions
from etrm.data.tables import TaskRecord, read_sources
from etrm.errors import UserError

OPTION = "train.new_tasks_every"


class RenewalError(UserError):
    """A run whose tasks cannot be renewed."""


@dataclass(frozen=True)
class Renewal:
    """The worlds of a run's training tasks, and how many tasks of each are trained on at once."""

    run: RunConfig
    worlds: tuple[tuple[WorldSource, int], ...]
    numbers: tuple[int, ...]  # of demos that training draws from; (): all are shown
    device: torch.device
    unproven: tuple[str, ...]  # sources of new tasks that may hold held-out ones

    def period(self, step: int) -> int:
        """Return which tasks `step`, from 1, is trained on; those of the tables are 0."""
        assert self.run.train.new_tasks_every is not None
        return (step - 1) // self.run.train.new_tasks_every

    def draw(self, period: int) -> tuple[Corpus, Episodes]:
        """Return the tasks of a period from 1, and the questions about them."""
        tasks = [
            task
            for world, count in self.worlds
            for task in world_tasks(world, world.tasks + (period - 1) * count, count)
        ]
        variants = {task.id: draw_variants(task, 1, seed=0) for task in tasks}
        corpus = Corpus(tasks, variants, self.device)
        questions = training_questions(corpus, (), self.run.episodes, needs_demos=True)
        canvas, numbers = self.run.episodes.canvas, self.numbers
        [episodes] = group_by_lane(corpus, questions, canvas, see_answers=True, numbers=numbers)
        return corpus, without_bounds(episodes)


def without_bounds(episodes: Episodes) -> Episodes:
    """Return questions without bounds on their tokens, which differ from period to period.

    A slot may hold a sample of an earlier one.
    """
    return replace(episodes, tokens=None)


def make_renewal(
    run: RunConfig,
    tasks: Path,
    used: Sequence[TaskRecord],
    held_out: Sequence[TaskRecord],
    numbers: tuple[int, ...],
    device: torch.device,
) -> Renewal | None:
    """Return the renewal of the training tasks `used`; None for a run that keeps its tasks.

    The parts of one world are apart, however many tasks are drawn; that a new task is none of
    another source is not known. Raises `RenewalError` where tasks are of no world or have variants,
    and where something of the run goes by their numbers.
    """
    if run.train.new_tasks_every is None:
        return None
    options = {name: each.get("options") for name, each in read_sources(tasks).items()}
    counts = Counter(record.source for record in used)
    fixed = [name for name in counts if (options[name] or {"augment": True})["augment"]]
    found = None
    if fixed:
        found = f"tasks of {', '.join(fixed)}, expected worlds alone, of tasks without variants"
    elif not context_source(run.context.source).needs_demos:
        found = f"source {run.context.source}, expected an encoder: no task has an embedding"
    elif len(run.episodes.canvas) > 1 or run.episodes.order == "epochs":
        lanes = ", ".join(map(str, run.episodes.canvas))
        found = f"lanes {lanes} in order {run.episodes.order}, expected one lane, replacement"
    elif getattr(run.context, "contrastive_weight", 0.0):
        found = "a contrastive loss, which knows tasks by their numbers, expected a weight of 0"
    if found is not None:
        raise RenewalError(f"{run.experiment}, {OPTION}: found {found}")
    worlds = tuple((parse(WorldSource, options[name]), count) for name, count in counts.items())
    families = {_family(options[record.source]) for record in (*used, *held_out)}
    unproven = () if len(families) == 1 else tuple(f"new tasks of {name}" for name in counts)
    return Renewal(run, worlds, numbers, device, unproven)


def _family(options: Mapping[str, Any] | None) -> str:
    """Return the settings that the split of a world into its parts depends on."""
    same = {
        k: v for k, v in (options or {}).items() if k not in ("part", "tasks", "demos", "tests")
    }
    return json.dumps(same, sort_keys=True)
