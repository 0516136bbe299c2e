"""Rows of like length go together; bounds hold for every demo, wherever it is put."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_run, make_tasks, make_variants, questions_of

from etrm.data.corpus import Corpus
from etrm.data.episodes import Sampler
from etrm.data.packing import GROUP_COST, groups_of, pair_token_bounds


def cheapest(lengths: list[int]) -> int:
    """The least padded tokens and groups of sorted lengths, by trying all ways to cut them."""
    inner, costs = range(1, len(lengths)), []
    for mask in range(0, 1 << len(lengths), 2):
        places = [0, *(i for i in inner if mask >> i & 1), len(lengths)]
        costs.append(sum(lengths[b - 1] * (b - a) + GROUP_COST for a, b in pairwise(places)))
    return min(costs)


@given(st.lists(st.integers(0, 1800), max_size=8))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_groups_hold_every_row_once_at_the_least_cost(lengths: list[int]) -> None:
    groups = groups_of(lengths)
    rows = [int(row) for group in groups for row in group.rows]
    assert sorted(rows) == [i for i, n in enumerate(lengths) if n > 0]
    for group in groups:
        assert group.length == max(lengths[i] for i in group.rows)
    if any(lengths):
        found = sum(g.length * len(g.rows) + GROUP_COST for g in groups)
        assert found == cheapest(sorted(n for n in lengths if n > 0))


def test_equal_lengths_are_one_group_and_far_ones_are_apart() -> None:
    assert [len(g.rows) for g in groups_of([40] * 9)] == [9]
    far = groups_of([1800, 20, 20, 20, 1790, 0])
    assert [(g.rows.tolist(), g.length) for g in far] == [([1, 2, 3], 20), ([0, 4], 1800)]
    assert groups_of([0, 0]) == []


@pytest.mark.parametrize("translate", [False, True])
@pytest.mark.parametrize("side", [5, 6, 9, [5, 8], [7, 5]], ids=str)
def test_no_pair_has_more_tokens_than_its_bound_and_one_place_reaches_it(
    side: int | list[int], translate: bool
) -> None:
    """Whatever dihedral, colours and offset, on a canvas with and without room for EOS."""
    tasks = make_tasks(6, side=5)
    corpus = Corpus(tasks, make_variants(tasks, 8))
    run = make_run(episodes={"canvas": [side], "translate": translate, "max_demos": 3})
    (lane,) = questions_of(run, corpus)
    sampler, reached = Sampler(corpus, lane, torch.arange(7), 0, run.episodes), False
    for step in range(60):
        batch = sampler.batch(step)
        bounds = sampler.episodes.token_bounds(sampler.members(step))
        inputs, outputs = batch.demo_inputs > 0, batch.demo_outputs > 0
        concat = (inputs.sum(dim=-1) + outputs.sum(dim=-1)).numpy()
        aligned = (inputs | outputs).sum(dim=-1).numpy()
        assert (concat <= bounds.concat).all()
        assert (aligned <= bounds.aligned).all()
        assert not batch.demo_mask.numpy()[bounds.concat == 0].any()
        reached |= bool((concat == bounds.concat).any() and (aligned == bounds.aligned).any())
    # Without room for EOS the bound of all places is not reached.
    assert reached or 5 in np.atleast_1d(side)


def test_the_bound_of_a_pair_is_its_cells_and_end_marks() -> None:
    def bounds(left: tuple[int, int], right: tuple[int, int], side: int) -> tuple[int, int]:
        found = pair_token_bounds(np.array([[left, right]]), side**2)
        return int(found.concat[0]), int(found.aligned[0])

    assert bounds((2, 3), (4, 1), 30) == ((6 + 2 + 3) + (4 + 4 + 1), 11 + 9 - 6)
    assert bounds((3, 3), (3, 3), 3) == (9 + 9, 9)
    assert bounds((3, 3), (3, 3), 4) == (15 + 15, 15)
    assert bounds((2, 3), (0, 0), 30) == (11, 11)


@given(st.lists(st.integers(1, 6), min_size=4, max_size=4), st.integers(6, 8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bounds_count_the_cells_that_masks_have(sizes: list[int], side: int) -> None:
    found, masks = np.array(sizes).reshape(1, 2, 2), []
    for height, width in found[0]:
        mask = np.zeros((side + 1, side + 1), dtype=bool)
        mask[: height + 1, : width + 1] = True
        mask[height, width] = False
        masks.append(mask)
    bounds, most = pair_token_bounds(found, side**2), side**2
    assert bounds.concat[0] == sum(min(int(mask.sum()), most) for mask in masks)
    assert bounds.aligned[0] == min(int((masks[0] | masks[1]).sum()), most)
