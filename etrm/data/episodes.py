"""The questions that a run is trained on and evaluated on, by canvas lane.

Shapes: B batch, K demos, E questions of a lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from etrm.arc.grid import choose_lane, decisive_pairs, demo_grids
from etrm.arc.task import Pair, Task
from etrm.config.data import EpisodesConfig
from etrm.config.lanes import Lane
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.epochs import EpochOrder
from etrm.data.packing import pair_token_bounds
from etrm.data.pools import Pools
from etrm.errors import UserError
from etrm.storage.digests import digest


class CanvasError(UserError):
    """Grids that no canvas lane holds."""


@dataclass(frozen=True)
class Question:
    """One episode before it is put on a lane: pair indices in the corpus."""

    task: int
    query: int
    pool: tuple[int, ...]  # the query may be in it
    weight: float = 1.0  # in the draws of training

    @property
    def demos(self) -> tuple[int, ...]:
        """Return the pairs that may be shown."""
        return tuple(pair for pair in self.pool if pair != self.query)


def training_questions(
    corpus: Corpus, held_out: Iterable[str], config: EpisodesConfig, needs_demos: bool
) -> list[Question]:
    """Return the questions of training: test pairs of held-out tasks are never among them.

    `leave_one_out`: every visible pair is the query once, all the others are its demos.
    `test_pairs`: the test pairs are the queries, the demo pairs the demos. Questions without any
    demo are left out where the context source `needs_demos`. Where tasks are drawn alike, those of
    a task have the weight 1 together.
    """
    hidden = set(held_out)
    questions = []
    for index, task in enumerate(corpus.tasks):
        demos = [*corpus.demo_pairs[index]]
        tests = [] if task.id in hidden else [*corpus.query_pairs[index]]
        tests = [pair for pair in tests if corpus.pairs[pair].output is not None]
        if config.queries == "test_pairs":
            queries, pool, others = tests, tuple(demos), len(demos)
        else:
            queries, pool, others = [*demos, *tests], (*demos, *tests), len(demos + tests) - 1
        if others > 0 or not needs_demos:
            weight = 1.0 / max(1, len(queries)) if config.draw == "task" else 1.0
            questions += [Question(index, query, pool, weight) for query in queries]
    return questions


def demo_numbers(config: EpisodesConfig, evaluation: Iterable[Task]) -> tuple[int, ...]:
    """Return the numbers of demos that training draws from; none where it shows all that it may.

    Those of the `evaluation` tasks are visible to whoever is evaluated on them: no pair is used.
    """
    if config.shown == "evaluation":
        return tuple(sorted(len(task.demos) for task in evaluation))
    if config.shown == "uniform":
        return tuple(range(config.min_demos, config.max_demos + 1))
    return ()


def held_out_questions(corpus: Corpus) -> list[Question]:
    """Return the questions of evaluation: each test input with its task's demos."""
    return [
        Question(task, query, tuple(corpus.demo_pairs[task]))
        for task, queries in enumerate(corpus.query_pairs)
        for query in queries
    ]


def shuffle_demos(corpus: Corpus, questions: Sequence[Question]) -> list[Question]:
    """Return the questions with the demos of other tasks: each task has those of the next.

    The order of tasks is a fixed one that is unrelated to their names. A control: a right
    answer was not read from demos.
    """
    tasks = sorted({q.task for q in questions}, key=lambda t: digest(["demos", corpus.tasks[t].id]))
    following = dict(zip(tasks, [*tasks[1:], *tasks[:1]], strict=True))
    pools = {task: tuple(corpus.demo_pairs[after]) for task, after in following.items()}
    return [replace(question, pool=pools[question.task]) for question in questions]


def group_by_lane(
    corpus: Corpus,
    questions: Sequence[Question],
    lanes: Sequence[Lane],
    max_demos: int | None = None,
    see_answers: bool = False,
    numbers: tuple[int, ...] = (),
) -> list[Episodes]:
    """Return questions grouped by lane, smallest first, in order within a lane.

    A lane holds all that any sample of a question can show. In evaluation it never depends on the
    answer; `see_answers` (training, where the query may be in its own pool) chooses one that holds
    the output too. `max_demos` keeps the first demos of each question; `numbers` are those of
    demos that training draws from. Raises `CanvasError` with the tasks whose grids are larger than
    the largest lane.
    """
    groups: dict[Lane, list[Question]] = defaultdict(list)
    fits: dict[Lane, list[bool]] = defaultdict(list)
    decisive: dict[int, list[Pair]] = {}  # by the identity of a pool: many questions share it
    too_large = []
    for question in questions:
        query, pool = corpus.pairs[question.query], question.pool
        if id(pool) not in decisive:
            decisive[id(pool)] = decisive_pairs([corpus.pairs[i] for i in pool])
        shown = decisive[id(pool)]
        answer = query.output if see_answers else None  # else from the visible grids alone
        lane = choose_lane(shown, query.input, lanes, answer)
        grids = [g for g in (query.input, *demo_grids(shown), answer) if g is not None]
        if not all(lane.holds(*grid.shape) for grid in grids):
            height, width = (max(grid.shape[axis] for grid in grids) for axis in (0, 1))
            too_large.append(f"{corpus.tasks[question.task].id} ({height}x{width} cells)")
        else:
            groups[lane].append(question)
            fits[lane].append(query.output is None or lane.holds(*query.output.shape))
    if too_large:
        names = ", ".join(dict.fromkeys(too_large))
        raise CanvasError(
            f"episodes.canvas: found lanes {list(lanes)}, expected a lane that holds every grid of"
            f" {names}; add a larger lane or lower data.max_side"
        )
    return [
        _episodes(corpus, lane, groups[lane], fits[lane], max_demos, numbers)
        for lane in sorted(groups)
    ]


def _episodes(
    corpus: Corpus,
    lane: Lane,
    questions: list[Question],
    fits: list[bool],
    max_demos: int | None,
    numbers: tuple[int, ...],
) -> Episodes:
    distinct = {id(q.pool): q.pool for q in questions}
    place = {name: number for number, name in enumerate(distinct)}
    queries = [q.query for q in questions]
    pools = Pools.of([*distinct.values()], [place[id(q.pool)] for q in questions], queries)
    most = max(1, int(pools.others().max()))
    members = [corpus.pairs[pair] for pair in pools.members.tolist()]
    grids = [(pair.input, pair.output) for pair in members]
    weights = [q.weight for q in questions]
    sizes = np.array([[(0, 0) if g is None else g.shape for g in pair] for pair in grids])
    device = corpus.device
    return Episodes(
        lane=lane,
        task=torch.tensor([q.task for q in questions], device=device),
        query=torch.tensor(queries, device=device),
        pools=pools,
        most=min(most, max_demos or most),
        fits=torch.tensor(fits, device=device),
        tokens=pair_token_bounds(sizes, lane.cells),
        numbers=numbers,
        weight=None if set(weights) == {1.0} else torch.tensor(weights, dtype=torch.float64),
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
        most = self.config.max_demos if self.demos else 0  # a source without demos gathers none
        self.episodes = self.episodes.truncate_demos(most)
        self.noise_size = self.noise(self.episodes.most)
        numbers = torch.tensor(self.episodes.numbers)
        self.numbers = {d: numbers.to(d) for d in self.episodes.on}
        weight = self.episodes.weight
        self.ends = None if weight is None else {d: weight.cumsum(0).to(d) for d in self.numbers}
        self.draws = len(numbers) > 0 or int(self.episodes.pools.others().max()) > most

    def members(self, step: int, slots: Tensor | None = None) -> Tensor:
        """Return the demos [B, K] of a step, members of pools, for all slots or for `slots`."""
        slots = self.slots if slots is None else slots
        return self._members(step, self._choose(step, slots)[0], slots)

    @cached_property
    def most_cells(self) -> dict[str, int] | None:
        """Return the most tokens of demos that any sample of this lane shows, by pairing."""
        return self.episodes.most_cells()

    def batch(self, step: int) -> Batch:
        """Return one new sample for every slot (only those of free slots are used)."""
        episode, u = self._choose(step, self.slots)
        task = self.episodes.task[episode]
        variant = random.integers(u, self.corpus.variant_count[task])
        demos = self.episodes.pairs(self._members(step, episode, self.slots))
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
        if self.ends is not None:
            return random.weighted(u, self.ends[slots.device]), variant
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

    def _members(self, step: int, episode: Tensor, slots: Tensor) -> Tensor:
        """Return the demos [B, K] that are shown: a random subset, in order, where not all are."""
        if not self.draws:
            return self.episodes.members(episode)
        others, most = self.episodes.on[slots.device].others(episode), self.episodes.most
        shown, numbers = others.clamp(max=most), self.numbers[slots.device]
        if len(numbers):
            u = self._draw(step, random.NUMBER, 1, slots)[:, 0]
            shown = shown.minimum(numbers[random.integers(u, len(numbers))])
        places = random.subsets(self._draw(step, random.DEMOS, most, slots), shown, others)
        return self.episodes.members(episode, places)

    def _draw(self, step: int, stream: int, columns: int, slots: Tensor | None = None) -> Tensor:
        slots = self.slots if slots is None else slots
        return random.uniform(self.seed, step, stream, slots, columns)
