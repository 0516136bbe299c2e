"""Demos drawn from pools of many pairs: which, how many, and what a pool costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import demos_of, grid, lanes_of, make_corpus, make_task, make_tasks, recolour

from etrm.arc.grid import choose_lane, decisive_pairs
from etrm.arc.task import Pair
from etrm.config.data import EpisodesConfig
from etrm.config.schema import parse
from etrm.data import counter_random as random
from etrm.data.corpus import Episodes
from etrm.data.episodes import Sampler, demo_numbers, group_by_lane, training_questions
from etrm.errors import UserError

MANY = 40  # pairs of the pool


def sampler(pairs: int = MANY, slots: int = 64, **config: Any) -> Sampler:
    rng = np.random.default_rng(0)
    tasks = [make_task("pool", recolour(rng), rng, demos=pairs - 1), *make_tasks(2)]
    corpus, settings_ = make_corpus(tasks, variants=2), EpisodesConfig(canvas=lanes_of(4), **config)
    numbers = demo_numbers(settings_, make_tasks(4))
    questions = training_questions(corpus, (), settings_, needs_demos=True)
    (lane,) = group_by_lane(corpus, questions, lanes_of(4), see_answers=True, numbers=numbers)
    return Sampler(corpus, lane, torch.arange(slots), 0, settings_)


def numbers_held(lane: Episodes) -> int:
    """How many numbers a lane stores."""
    assert lane.tokens is not None
    tensors = [lane.task, lane.query, lane.fits, lane.tokens.concat, lane.tokens.aligned]
    tensors += [getattr(lane.pools, field.name) for field in fields(lane.pools)]
    return sum(
        tensor.size if isinstance(tensor, np.ndarray) else tensor.numel() for tensor in tensors
    )


def test_memory_is_proportional_to_pairs() -> None:
    held = [numbers_held(sampler(pairs).episodes) for pairs in (100, 200, 400)]
    assert held[2] - held[1] == 2 * (held[1] - held[0])
    assert held[2] < 10 * 420


def test_demos_are_drawn_from_the_whole_pool_and_never_hold_the_query() -> None:
    drawn, seen = sampler(max_demos=3), Counter[int]()
    pairs = len(drawn.corpus.pairs)
    for step in range(60):
        question = drawn._choose(step, drawn.slots)[0]
        demos = drawn.episodes.pairs(drawn.members(step))
        query, task = drawn.episodes.query[question], drawn.episodes.task[question]
        assert not bool((demos == query[:, None]).any())
        assert bool(((demos.diff(dim=1) > 0) | (demos[:, 1:] < 0)).all())  # different, in order
        for number, shown in zip(task.tolist(), demos.tolist(), strict=True):
            known = {*drawn.corpus.demo_pairs[number], *drawn.corpus.query_pairs[number]}
            assert {*shown} <= {*known, -1}
            seen.update(shown if number == 0 else ())
    assert set(seen) == set(range(MANY)) < set(range(pairs))
    mean = seen.total() / MANY
    assert all(abs(count - mean) < 6 * mean**0.5 for count in seen.values())


def test_a_batch_shows_the_demos_that_the_host_knows() -> None:
    drawn = sampler(max_demos=5, shown="uniform", min_demos=2, translate=False)
    for step in range(4):
        members, batch = drawn.members(step), drawn.batch(step)
        assert torch.equal(members >= 0, batch.demo_mask)
        bounds = drawn.episodes.token_bounds(members)
        cells = (batch.demo_inputs > 0).sum(dim=-1) + (batch.demo_outputs > 0).sum(dim=-1)
        assert bounds is not None
        assert (cells.numpy() <= bounds.concat).all()
        most = drawn.most_cells
        assert most is not None
        assert bounds.most_cells()["concat"] <= most["concat"]


def shown(drawn: Sampler, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """The task of each sample, and the number of its demos."""
    batches = [drawn.batch(step) for step in range(steps)]
    tasks, masks = ([getattr(b, n) for b in batches] for n in ("task", "demo_mask"))
    return torch.cat(tasks).numpy(), torch.cat(masks).sum(dim=1).numpy()


def test_as_many_demos_are_shown_as_configured() -> None:
    task, count = shown(sampler(max_demos=6))
    assert (count[task == 0] == 6).all()
    corpus = sampler().corpus
    others = {t: len(corpus.tasks[t].demos) + len(corpus.tasks[t].queries) - 1 for t in (1, 2)}
    assert all((count[task == t] == min(n, 6)).all() for t, n in others.items())
    task, count = shown(sampler(max_demos=6, shown="uniform", min_demos=3))
    found = Counter(count[task == 0].tolist())
    assert sorted(found) == [3, 4, 5, 6]
    assert max(found.values()) - min(found.values()) < 6 * (found.total() / 4) ** 0.5
    assert all(count[task == t].max() <= n for t, n in others.items())


def test_the_number_of_demos_is_that_of_the_evaluation_tasks() -> None:
    task, count = shown(sampler(shown="evaluation"))
    expected = Counter(len(t.demos) for t in make_tasks(4))
    found, total = Counter(count[task == 0].tolist()), int((task == 0).sum())
    assert set(found) == set(expected)
    for number, n in expected.items():
        mean = total * n / expected.total()
        assert abs(found[number] - mean) < 6 * mean**0.5


def test_numbers_do_not_depend_on_how_slots_are_split() -> None:
    drawn = sampler(shown="uniform", max_demos=4)
    whole = drawn.members(3)
    for part in (drawn.slots[::2], drawn.slots[1::2]):
        assert torch.equal(drawn.members(3, part), whole[part])


def test_a_range_of_demos_needs_a_number_in_it() -> None:
    with pytest.raises(UserError):
        parse(EpisodesConfig, {"shown": "uniform", "min_demos": 5, "max_demos": 4})
    parse(EpisodesConfig, {"shown": "uniform", "min_demos": 4, "max_demos": 4})


def test_every_subset_is_as_likely() -> None:
    rows = 40_000
    for bound, size in ((5, 2), (6, 3), (4, 4), (1, 1)):
        u = random.uniform(0, 0, random.DEMOS, torch.arange(rows), 4)
        of = torch.full((rows,), size), torch.full((rows,), bound)
        found = Counter(map(tuple, random.subsets(u, *of).tolist()))
        every = [(*each, *[-1] * (4 - size)) for each in combinations(range(bound), size)]
        assert set(found) == set(every)
        mean = rows / len(every)
        assert all(abs(n - mean) < 6 * mean**0.5 for n in found.values())


@given(st.lists(st.lists(st.integers(1, 30), min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_decisive_pairs_give_the_canvas_of_all(sizes: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(grid(rng, a, b), grid(rng, c, d)) for a, b, c, d in sizes]
    shapes = lanes_of(*range(1, 200), *((a, b) for a in range(1, 40, 2) for b in range(1, 40, 3)))
    for height, width in ((1, 1), (3, 7), (10, 2)):
        query = grid(rng, height, width)
        few, all_of_them = (choose_lane(p, query, shapes) for p in (decisive_pairs(pairs), pairs))
        assert few == all_of_them


def test_the_first_demos_leave_the_query_out() -> None:
    lane = sampler(pairs=4).episodes
    first = demos_of(lane)[:4]  # of the pool
    assert first[:, :3].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert bool((first[:, 3:] == -1).all())
