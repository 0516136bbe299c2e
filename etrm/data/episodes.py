"""The questions that a run is trained on and evaluated on, by canvas lane.

Shapes: B batch, K demos, E questions of a lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from etrm.arc.grid import canvas_side, demo_grids
from etrm.config.study import EpisodesConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.epochs import EpochOrder
from etrm.data.packing import TokenBounds, pair_token_bounds
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
    """Return the questions of training: test pairs of held-out tasks are never among them.

    `leave_one_out`: every visible pair is the query once, all the others are its demos.
    `test_pairs`: the test pairs are the queries, the demo pairs the demos. Questions without any
    demo are left out where the context source `needs_demos`.
    """
    hidden = set(held_out)
    questions = []
    for index, task in enumerate(corpus.tasks):
        demos = [*corpus.demo_pairs[index]]
        tests = [] if task.id in hidden else [*corpus.query_pairs[index]]
        tests = [pair for pair in tests if corpus.pairs[pair].output is not None]
        visible = [*demos, *tests]
        queries, shown = (tests, demos) if config.queries == "test_pairs" else (visible, visible)
        for query in queries:
            others = tuple(pair for pair in shown if pair != query)
            if others or not needs_demos:
                questions.append(Question(index, query, others))
    return questions


def held_out_questions(corpus: Corpus) -> list[Question]:
    """Return the questions of evaluation: each test input with its task's demos."""
    return [
        Question(task, query, tuple(corpus.demo_pairs[task]))
        for task, queries in enumerate(corpus.query_pairs)
        for query in queries
    ]


def group_by_lane(
    corpus: Corpus,
    questions: Sequence[Question],
    lanes: Sequence[int],
    max_demos: int | None = None,
    see_answers: bool = False,
) -> list[Episodes]:
    """Return questions grouped by lane, smallest first, in order within a lane.

    In evaluation the lane never depends on the answer; `see_answers` (training) chooses one that
    holds the output too. `max_demos` keeps the first demos of each question. Raises `CanvasError`
    with the tasks whose grids are larger than the largest lane.
    """
    groups: dict[int, list[Question]] = defaultdict(list)
    fits: dict[int, list[bool]] = defaultdict(list)
    too_large = []
    for question in questions:
        query = corpus.pairs[question.query]
        demos = [corpus.pairs[i] for i in question.demos]
        side = canvas_side(demos, query.input, lanes)  # from the visible grids alone
        answer = 0 if query.output is None else max(query.output.shape)
        largest = max(max(grid.shape) for grid in (query.input, *demo_grids(demos)))
        if see_answers:
            side = min([lane for lane in lanes if lane >= max(side, answer)], default=side)
            largest = max(largest, answer)
        if largest > side:
            too_large.append(f"{corpus.tasks[question.task].id} ({largest} cells)")
        else:
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
    most = min(most, max_demos or most)  # K of this lane, at least 1
    demos = np.full((len(questions), most), -1, dtype=np.int64)
    bounds = np.zeros((2, len(questions), most), dtype=np.int64)  # concat, aligned
    for i, question in enumerate(questions):
        for k, pair in enumerate(question.demos[:most]):
            demos[i, k] = pair
            bounds[:, i, k] = pair_token_bounds(corpus.pairs[pair], side)
    device = corpus.device
    return Episodes(
        side=side,
        task=torch.tensor([q.task for q in questions], device=device),
        query=torch.tensor([q.query for q in questions], device=device),
        demos=torch.from_numpy(demos).to(device),
        fits=torch.tensor(fits, device=device),
        token_bounds=TokenBounds(bounds[0], bounds[1]),
    )


@dataclass(eq=False)
class Sampler:
    """Training samples of slots of one lane: batch = f(seed, step), one sample per slot."""

    corpus: Corpus
    episodes: Episodes
    slots: Tensor  # [B] int64: their numbers within the whole batch
    seed: int
    config: EpisodesConfig
    demos: bool = True  # false: no question has any
    noise: Callable[[int], int] = lambda demos: 0  # normal numbers for a sample with K demos
    order: EpochOrder | None = None  # None: each slot draws for itself, with replacement

    def __post_init__(self) -> None:
        if not self.demos:  # a context source without demos gathers none
            self.episodes = self.episodes.truncate_demos(0)
        self.noise_size = self.noise(min(self.episodes.demos.shape[1], self.config.max_demos))

    def questions(self, step: int, slots: Tensor | None = None) -> Tensor:
        """Return the numbers [B] of the questions that a step has for all slots, or for `slots`."""
        return self._choose(step, self.slots if slots is None else slots)[0]

    def token_bounds(self, questions: np.ndarray) -> TokenBounds | None:
        """Return bounds for the demos of `questions` [B], whichever are drawn where they are many.

        Of more than `max_demos`, any can be in any place: the largest bound holds for each.
        """
        if self.episodes.token_bounds is None:
            return None
        bounds, most = self.episodes.token_bounds.take(questions), self.config.max_demos
        drawn = []
        for each in (bounds.concat, bounds.aligned):  # [B, K]
            many = (each > 0).sum(axis=1, keepdims=True) > most
            largest = each.max(axis=1, keepdims=True, initial=0)
            drawn.append(np.where(many, largest, each)[:, :most])
        return TokenBounds(*drawn)

    @cached_property
    def most_cells(self) -> dict[str, int] | None:
        """Return the most tokens of demos that any sample of this lane shows, by pairing."""
        bounds = self.token_bounds(np.arange(len(self.episodes)))
        return None if bounds is None else bounds.most_cells()

    def batch(self, step: int) -> Batch:
        """Return one new sample for every slot (only those of free slots are used)."""
        episode, u = self._choose(step, self.slots)
        task = self.episodes.task[episode]
        variant = random.integers(u, self.corpus.variant_count[task])
        demos = self._demos(step, episode)
        shift = None
        if self.config.translate:  # the query and each demo move by themselves
            pairs = torch.cat([self.episodes.query[episode][:, None], demos], dim=1)
            shift = self._shift(step, pairs, task, variant)
        batch = self.corpus.assemble(self.episodes, episode, variant, shift, demos)
        batch.most_cells = self.most_cells
        if self.noise_size:
            batch.noise = random.normal(self.seed, step, random.NOISE, self.slots, self.noise_size)
        return batch

    def _choose(self, step: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the questions [B] of `slots`, and uniform numbers [B] of their variants."""
        if self.order is not None:
            return self.order.draw(step, slots)
        u, variant = (self._draw(step, s, 1, slots)[:, 0] for s in (random.EPISODE, random.VARIANT))
        return random.integers(u, len(self.episodes)), variant

    def _shift(self, step: int, pairs: Tensor, task: Tensor, variant: Tensor) -> Tensor:
        """Return the translations [B, Q, 2] of `pairs` [B, Q], parts of the free cells."""
        rows, width = pairs.shape
        if not self.config.translate_once:
            return self._draw(step, random.OFFSET, 2 * width).reshape(rows, width, 2)
        # As in a data set that was built once: the same for every step and seed.
        puzzle, (place, number) = self.corpus.first_puzzle[task] + variant, self.known_pairs
        counter = (puzzle[:, None] * len(self.corpus.pairs) + pairs).flatten()
        shift = random.uniform(0, 0, random.PLACE, counter, 2).reshape(rows, width, 2)
        unmoved = random.integers(random.uniform(0, 0, random.UNMOVED, puzzle)[:, 0], number[task])
        return shift.masked_fill((place[pairs] == unmoved[:, None])[..., None], 0.0)

    @cached_property
    def known_pairs(self) -> tuple[Tensor, Tensor]:
        """Return the place [pairs] of each pair among those with an output of its task (else -1).

        And the number [tasks] of these: they are all that official TRM has in its training set.
        """
        place, number = torch.full((len(self.corpus.pairs),), -1), []
        for demos, queries in zip(self.corpus.demo_pairs, self.corpus.query_pairs, strict=True):
            known = [i for i in (*demos, *queries) if self.corpus.pairs[i].output is not None]
            place[known] = torch.arange(len(known))
            number.append(len(known))
        device = self.corpus.device
        return place.to(device), torch.tensor(number, device=device)

    def _demos(self, step: int, episode: Tensor) -> Tensor:
        """Draw a random subset of `max_demos` where an episode has more."""
        demos, most = self.episodes.demos[episode], self.config.max_demos
        if demos.shape[1] <= most:
            return demos
        order = self._draw(step, random.DEMOS, demos.shape[1])
        order = torch.where(demos < 0, 2.0, order).argsort(dim=1)[:, :most]  # real demos first
        return demos.gather(1, order.sort(dim=1).values)  # in their order in the episode

    def _draw(self, step: int, stream: int, columns: int, slots: Tensor | None = None) -> Tensor:
        slots = self.slots if slots is None else slots
        return random.uniform(self.seed, step, stream, slots, columns)
