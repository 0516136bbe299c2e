"""Which questions a run is trained on and evaluated on, by canvas lane."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from etrm.arc.grid import canvas_side
from etrm.config.study import EpisodesConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.packing import Room, pair_room
from etrm.errors import UserError


class CanvasError(UserError):
    """Grids that no canvas lane holds."""


@dataclass(frozen=True)
class Question:
    """One episode before it is put on a lane: pair indices in the corpus."""

    task: int
    query: int
    demos: tuple[int, ...]


def training_questions(
    corpus: Corpus, held_out: Iterable[str], config: EpisodesConfig, needs_demos: bool
) -> list[Question]:
    """The questions of training: test pairs of held-out tasks are never among them.

    `leave_one_out`: every visible pair is the query once, all the others are its demos.
    `test_pairs`: the test pairs are the queries, the demo pairs the demos. Questions without any
    demo are left out where the context source `needs_demos`.
    """
    hidden = set(held_out)
    questions = []
    for task, (demos, queries) in enumerate(
        zip(corpus.demo_pairs, corpus.query_pairs, strict=True)
    ):
        tests = [] if corpus.tasks[task].id in hidden else [*queries]
        tests = [pair for pair in tests if corpus.pairs[pair].output is not None]
        asked = tests if config.queries == "test_pairs" else [*demos, *tests]
        shown = [*demos] if config.queries == "test_pairs" else [*demos, *tests]
        for query in asked:
            others = tuple(pair for pair in shown if pair != query)
            if others or not needs_demos:
                questions.append(Question(task, query, others))
    return questions


def held_out_questions(corpus: Corpus) -> list[Question]:
    """The questions of evaluation: each test input with its task's demos."""
    return [
        Question(task, query, tuple(corpus.demo_pairs[task]))
        for task, queries in enumerate(corpus.query_pairs)
        for query in queries
    ]


def on_lanes(
    corpus: Corpus,
    questions: Sequence[Question],
    lanes: Sequence[int],
    max_demos: int | None = None,
    see_answers: bool = False,
) -> list[Episodes]:
    """Questions grouped by lane, smallest first, in order within a lane.

    The lane never depends on the answer in evaluation; `see_answers` (training) also makes room
    for the output. `max_demos` keeps the first demos of each question. Raises `CanvasError` with
    the tasks whose grids are larger than the largest lane.
    """
    groups: dict[int, list[Question]] = defaultdict(list)
    fits: dict[int, list[bool]] = defaultdict(list)
    too_large = []
    for question in questions:
        query = corpus.pairs[question.query]
        demos = [corpus.pairs[i] for i in question.demos]
        side = canvas_side(demos, query.input, lanes)
        seen = [query.input, *(grid for demo in demos for grid in (demo.input, demo.output))]
        answer = 0 if query.output is None else max(query.output.shape)
        if see_answers:
            side = min([lane for lane in lanes if lane >= max(side, answer)], default=side)
            seen.append(query.output)
        largest = max(max(grid.shape) for grid in seen if grid is not None)
        if largest > side:
            too_large.append(f"{corpus.tasks[question.task].id} ({largest} cells)")
            continue
        groups[side].append(question)
        fits[side].append(answer <= side)
    if too_large:
        names = ", ".join(dict.fromkeys(too_large))
        raise CanvasError(
            f"episodes.canvas: found lanes {list(lanes)}, expected a lane that holds every grid of"
            f" {names}; add a larger lane or lower data.max_side"
        )
    return [_episodes(corpus, side, groups[side], fits[side], max_demos) for side in sorted(groups)]


def _episodes(
    corpus: Corpus, side: int, questions: list[Question], fits: list[bool], max_demos: int | None
) -> Episodes:
    most = max(1, max(len(q.demos) for q in questions))
    most = min(most, max_demos or most)
    demos = np.full((len(questions), most), -1, dtype=np.int64)
    room = np.zeros((2, len(questions), most), dtype=np.int64)
    for i, question in enumerate(questions):
        shown = question.demos[:most]
        demos[i, : len(shown)] = shown
        if shown:
            room[:, i, : len(shown)] = np.transpose(
                [pair_room(corpus.pairs[p], side) for p in shown]
            )
    device = corpus.device
    return Episodes(
        side=side,
        task=torch.tensor([q.task for q in questions], device=device),
        query=torch.tensor([q.query for q in questions], device=device),
        demos=torch.from_numpy(demos).to(device),
        fits=torch.tensor(fits, device=device),
        room=Room(room[0], room[1]),
    )


class Sampler:
    """Training samples of slots of one lane: batch = f(seed, step), one sample per slot."""

    def __init__(
        self,
        corpus: Corpus,
        episodes: Episodes,
        slots: Tensor,
        seed: int,
        config: EpisodesConfig,
        demos: bool = True,
        noise: Callable[[int], int] = lambda demos: 0,
    ) -> None:
        """`slots` [B]: their numbers within the whole batch. `demos`: show any.

        `noise`: normal numbers that each sample with room for so many demos needs.
        """
        self.corpus, self.slots = corpus, slots
        self.seed, self.config = seed, config
        self.episodes = episodes if demos else episodes.showing(0)
        self.noise = noise(min(self.episodes.demos.shape[1], config.max_demos))

    def questions(self, step: int, slots: Tensor | None = None) -> Tensor:
        """Numbers [B] of the questions that a step has for all slots, or for `slots`."""
        u = self._draw(step, random.EPISODE, slots=slots)[:, 0]
        return random.integers(u, len(self.episodes))

    def room(self, questions: np.ndarray) -> Room | None:
        """Bounds for the demos shown with questions [B], whichever are drawn of many."""
        if self.episodes.room is None:
            return None
        held, most = self.episodes.room.take(questions), self.config.max_demos
        return Room(_shown(held.concat, most), _shown(held.aligned, most))

    @cached_property
    def most_cells(self) -> dict[str, int] | None:
        """The most cells of demos that any sample of this lane shows, by pairing."""
        room = self.room(np.arange(len(self.episodes)))
        return None if room is None else room.most_cells()

    def batch(self, step: int) -> Batch:
        """One new sample for every slot (only those of free slots are used)."""
        episode = self.questions(step)
        count = self.corpus.variant_count[self.episodes.task[episode]]
        variant = random.integers(self._draw(step, random.VARIANT)[:, 0], count)
        demos = self._demos(step, episode)
        shift = None
        if self.config.translate:
            width = 1 + demos.shape[1]
            shift = self._draw(step, random.OFFSET, 2 * width).reshape(-1, width, 2)
        batch = self.corpus.assemble(self.episodes, episode, variant, shift, demos)
        batch.most_cells = self.most_cells
        if self.noise:
            batch.noise = random.normal(self.seed, step, random.NOISE, self.slots, self.noise)
        return batch

    def _demos(self, step: int, episode: Tensor) -> Tensor:
        """A random subset of `max_demos` where an episode has more."""
        demos = self.episodes.demos[episode]
        most = self.config.max_demos
        if demos.shape[1] <= most:
            return demos
        order = self._draw(step, random.DEMOS, demos.shape[1])
        order = torch.where(demos < 0, 2.0, order).argsort(dim=1)[:, :most]
        return demos.gather(1, order.sort(dim=1).values)

    def _draw(
        self, step: int, stream: int, columns: int = 1, slots: Tensor | None = None
    ) -> Tensor:
        slots = self.slots if slots is None else slots
        return random.uniform(self.seed, step, stream, slots, columns)


def _shown(bounds: np.ndarray, most: int) -> np.ndarray:
    """Bounds [B, K] of the demos shown, from those of all: of many, any can be in any place."""
    subset = (bounds > 0).sum(axis=1, keepdims=True) > most
    return np.where(subset, bounds.max(axis=1, keepdims=True, initial=0), bounds)[:, :most]
