"""Tokens, cropping and the canvas rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import lanes_of

from etrm.arc.grid import EOS, PAD, choose_lane, crop, tokenize
from etrm.arc.sources import Loaded
from etrm.arc.task import Pair
from etrm.config.data import EpisodesConfig
from etrm.config.lanes import Lane


def zeros(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), dtype=np.uint8)


def test_tokens_of_a_small_grid_cell_by_cell() -> None:
    tokens = tokenize(np.array([[0, 9]], dtype=np.uint8), Lane(4, 4), offset=(1, 1))
    assert tokens.dtype == np.uint8
    assert tokens.reshape(4, 4).tolist() == [
        [PAD, PAD, PAD, PAD],
        [PAD, 2, 11, EOS],
        [PAD, EOS, EOS, PAD],
        [PAD, PAD, PAD, PAD],
    ]


def test_eos_is_left_out_where_it_does_not_fit() -> None:
    assert (tokenize(zeros(3, 3), Lane(3, 3)) == 2).all()
    at_the_right = tokenize(zeros(1, 2), Lane(3, 3), offset=(0, 1)).reshape(3, 3)
    assert at_the_right.tolist() == [[PAD, 2, 2], [PAD, EOS, EOS], [PAD, PAD, PAD]]


@pytest.mark.parametrize("offset", [(0, 2), (2, 0), (-1, 0), (0, -1)])
def test_content_outside_the_canvas_is_an_error(offset: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"2x2 .* 3x3"):
        tokenize(zeros(2, 2), Lane(3, 3), offset)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_crop_reads_back_the_grid_that_was_written(
    height: int, width: int, free: int, seed: int
) -> None:
    grid = np.random.default_rng(seed).integers(0, 10, (height, width)).astype(np.uint8)
    side = max(height, width) + free
    [read] = crop(tokenize(grid, Lane(side, side)).reshape(1, side, side))
    assert read.dtype == np.uint8
    assert np.array_equal(read, grid)


def largest_rectangle(canvas: np.ndarray) -> np.ndarray:
    """The official evaluator's search, cell by cell.

    For each number of rows, in ascending order, the columns that are free so far; a larger area
    wins, an equal one does not.
    """
    best = (0, 0)
    columns = canvas.shape[1]
    for rows in range(1, canvas.shape[0] + 1):
        for column in range(columns):
            if not 2 <= canvas[rows - 1, column] <= 11:
                columns = column
                break
        if rows * columns > best[0] * best[1]:
            best = (rows, columns)
    return (canvas[: best[0], : best[1]] - 2).astype(np.uint8)


def assert_crops_like_the_reference(canvases: np.ndarray) -> None:
    for canvas, read in zip(canvases, crop(canvases), strict=True):
        reference = largest_rectangle(canvas)
        assert read.shape == reference.shape
        assert np.array_equal(read, reference)


@pytest.mark.parametrize("holes", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("side", [1, 5, 30])
def test_crop_agrees_with_a_slow_reference(side: int, holes: float) -> None:
    rng = np.random.default_rng([side, int(100 * holes)])
    canvases = rng.integers(2, 14, (100, side, side)).astype(np.uint8)  # 12 and 13: no colours
    canvases[canvases > 11] = 5 if holes < 0.1 else 13
    canvases[rng.random(canvases.shape) < holes] = EOS
    canvases[0] = PAD
    assert_crops_like_the_reference(canvases)


def test_of_equal_areas_the_one_with_fewer_rows_is_read() -> None:
    canvas = np.array([[2, 2, 2, 2], [3, 3, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
    assert crop(canvas[None])[0].tolist() == [[0, 0, 0, 0]]


def test_a_canvas_without_content_gives_an_empty_grid() -> None:
    canvases = np.zeros((2, 3, 3), dtype=np.uint8)
    canvases[1, 1, 1] = 5  # colours, but not at the corner
    assert [grid.shape for grid in crop(canvases)] == [(0, 0), (0, 0)]
    assert crop(canvases[:0]) == []


def test_crop_of_recorded_predictions(golden: Path) -> None:
    predictions = np.load(golden / "vote_cases.npz")["preds"].reshape(-1, 30, 30)
    assert len(predictions) > 200
    assert_crops_like_the_reference(predictions)


def demo(input_shape: tuple[int, int], output_shape: tuple[int, int]) -> Pair:
    return Pair(zeros(*input_shape), zeros(*output_shape))


@pytest.mark.parametrize(
    ("demos", "query", "side"),
    [
        ([demo((3, 3), (3, 3))], (3, 3), 5),
        ([demo((3, 3), (3, 3))], (4, 6), 10),  # the query input decides
        ([demo((3, 3), (9, 3)), demo((3, 3), (3, 3))], (2, 2), 10),  # a demo decides
        ([demo((1, 2), (3, 2))], (4, 4), 15),  # 4 rows scaled by 3
        ([demo((1, 2), (3, 2))], (3, 4), 10),
        ([demo((2, 3), (2, 4))], (1, 4), 10),  # 4 * 4/3 = 5.33 is rounded up to 6
        ([demo((2, 5), (2, 4))], (1, 5), 5),
        ([demo((3, 3), (9, 9))], (10, 10), 30),
        ([demo((1, 1), (9, 9))], (10, 10), 30),  # 90: no grid is that large
        ([], (6, 2), 10),  # a query whose only companion is held back
    ],
)
def test_canvas_is_the_smallest_lane_that_holds_the_visible_grids(
    demos: list[Pair], query: tuple[int, int], side: int
) -> None:
    assert choose_lane(demos, zeros(*query), lanes_of(30, 5, 10, 15)) == Lane(side, side)


def test_the_largest_lane_is_returned_where_none_holds() -> None:
    for query in (zeros(9, 9), zeros(12, 1)):
        assert choose_lane([demo((3, 3), (9, 9))], query, lanes_of(5, 10)) == Lane(10, 10)


def test_a_rectangle_holds_grids_by_their_rows_and_columns() -> None:
    shapes = lanes_of((1, 12), (12, 1), 4, (2, 12), 12)
    row, demos = zeros(1, 12), [demo((1, 5), (1, 5))]
    assert choose_lane(demos, row, shapes) == Lane(1, 12)
    assert choose_lane([demo((5, 1), (5, 1))], zeros(12, 1), shapes) == Lane(12, 1)
    assert choose_lane([demo((5, 1), (5, 1))], row, shapes) == Lane(12, 12)  # upright and flat
    assert choose_lane([demo((1, 5), (2, 5))], row, shapes) == Lane(2, 12)  # rows scaled by two
    assert choose_lane(demos, row, shapes, answer=zeros(2, 12)) == Lane(2, 12)
    assert choose_lane(demos, zeros(2, 2), shapes) == Lane(2, 12)
    assert choose_lane([demo((1, 3), (1, 3))], zeros(2, 2), shapes) == Lane(4, 4)


def test_where_no_lane_holds_the_scaled_input_one_holds_the_visible_grids() -> None:
    demos = [demo((1, 2), (1, 6))]  # 12 cells would become 36
    assert choose_lane(demos, zeros(1, 12), lanes_of((1, 12), 6)) == Lane(1, 12)


def test_a_grid_on_a_rectangle_is_read_back() -> None:
    for lane in lanes_of((1, 5), (4, 3), (3, 7)):
        for height in range(1, min(lane.rows, 3) + 1):
            for width in range(1, min(lane.columns, 5) + 1):
                grid = np.arange(height * width, dtype=np.uint8).reshape(height, width) % 10
                tokens = tokenize(grid, lane).reshape(1, lane.rows, lane.columns)
                assert np.array_equal(crop(tokens)[0], grid)
    assert tokenize(zeros(1, 3), Lane(1, 5)).tolist() == [2, 2, 2, EOS, PAD]


COARSE, FINE = lanes_of(10, 15, 20, 25, 30), EpisodesConfig().canvas


@pytest.mark.parametrize(
    ("lanes", "name", "queries", "misfits", "tokens"),
    [
        (COARSE, "training", 416, 3, 275.6),
        (COARSE, "evaluation", 419, 2, 401.1),
        (COARSE, "concept", 480, 0, 253.5),
        (FINE, "training", 416, 3, 234.8),
        (FINE, "evaluation", 419, 3, 360.3),
        (FINE, "concept", 480, 0, 217.1),
    ],
)
def test_true_outputs_that_do_not_fit_their_canvas(
    public_set: Callable[[str], Loaded],
    lanes: tuple[Lane, ...],
    name: str,
    queries: int,
    misfits: int,
    tokens: float,
) -> None:
    """In coarse lanes, without the scaled query input, the misfits would be 4, 4 and 1."""
    chosen, fit = [], []
    for task in public_set(name).tasks:
        for query in task.queries:
            chosen.append(choose_lane(task.demos, query.input, lanes))
            fit.append(chosen[-1].holds(*np.shape(query.output)))
    assert len(fit) == queries
    assert fit.count(False) == misfits
    assert np.mean([lane.cells for lane in chosen]) == pytest.approx(tokens, abs=0.05)
