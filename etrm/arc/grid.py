"""Grids and tokens: the canvas a grid is written on, and the grid read back from a canvas.

A token is PAD (0), EOS (1) or a colour + COLOR_OFFSET. Shapes: N canvases of one lane, each of S
tokens; h and w the sides of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from etrm.arc.task import Pair, Task
from etrm.config.lanes import Lane

PAD = 0
EOS = 1
COLOR_OFFSET = 2
VOCAB_SIZE = 12  # V: PAD, EOS and ten colours
# Of the colours 0 to 9, as ARC shows them.
ARC_COLOURS = (
    "#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
    "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip


def tokenize(grid: np.ndarray, lane: Lane, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Write `grid` (uint8 `[h, w]`) on a canvas of `lane`: uint8 `[S]`, row-major.

    `offset` is (row, column) of the content's top-left cell. EOS marks the row under and the
    column right of the content, each where it fits, without their common corner, as in TRM's
    `build_arc_dataset.py`. Raises ValueError where the content leaves the canvas.
    """
    top, left = offset
    bottom, right = top + grid.shape[0], left + grid.shape[1]
    if top < 0 or left < 0 or not lane.holds(bottom, right):
        raise ValueError(
            f"a grid of {grid.shape[0]}x{grid.shape[1]} cells at offset {offset} does not fit "
            f"a canvas of {lane.rows}x{lane.columns} cells"
        )
    canvas = np.full((lane.rows, lane.columns), PAD, dtype=np.uint8)
    canvas[top:bottom, left:right] = grid + COLOR_OFFSET
    canvas[bottom : bottom + 1, left:right] = EOS  # empty slices where it does not fit
    canvas[top:bottom, right : right + 1] = EOS
    return canvas.reshape(-1)


def crop(tokens: np.ndarray) -> list[np.ndarray]:
    """Read the grid on each canvas of `tokens` (`[N, rows, columns]`): N uint8 `[h, w]` of colours.

    A grid is the largest rectangle at the top-left corner that holds colours only; of equal
    areas, the one with fewer rows (`_crop` in TRM's `evaluators/arc.py`). Without any such
    rectangle the grid has shape (0, 0).
    """
    _, height, full = tokens.shape
    is_color = (tokens >= COLOR_OFFSET) & (tokens < VOCAB_SIZE)
    run = np.where(is_color.all(axis=2), full, is_color.argmin(axis=2))  # colours a row begins with
    width = np.minimum.accumulate(run, axis=1)  # [N, rows]: the widest rectangle of rows 0..r
    rows = (width * np.arange(1, height + 1)).argmax(
        axis=1
    )  # [N]: the last row of the largest area
    columns = np.take_along_axis(width, rows[:, None], axis=1)[:, 0]
    heights = np.where(columns > 0, rows + 1, 0)
    return [
        (canvas[:h, :w] - COLOR_OFFSET).astype(np.uint8)
        for canvas, h, w in zip(tokens, heights, columns, strict=True)
    ]


def choose_lane(
    demos: Sequence[Pair],
    query_input: np.ndarray,
    lanes: Sequence[Lane],
    answer: np.ndarray | None = None,
) -> Lane:
    """Return the lane, out of `lanes`, on which a query is answered.

    It is the smallest that holds every demo grid, the query input, and, per axis, the query input
    scaled by the largest output/input ratio of the demos (rounded up). Where none holds the scaled
    input, it is the largest that holds the rest, or the largest of all, which then does not. In
    evaluation the answer is never looked at, so it can be larger than the canvas; `answer` is one
    that the lane must hold too (training).
    """
    shown = [grid for grid in (query_input, *demo_grids(demos), answer) if grid is not None]
    visible = [max(grid.shape[axis] for grid in shown) for axis in (0, 1)]
    needed = list(visible)
    for axis in (0, 1):
        for pair in demos:
            if pair.output is not None:
                scaled = query_input.shape[axis] * pair.output.shape[axis]
                needed[axis] = max(needed[axis], -(-scaled // pair.input.shape[axis]))  # rounded up
    holding = [lane for lane in lanes if lane.holds(*visible)]
    roomy = [lane for lane in holding if lane.holds(*needed)]
    return min(roomy) if roomy else max(holding or lanes)


def visible_side(task: Task) -> int:
    """Return the largest side of any grid of a task but the answers."""
    grids = demo_grids(task.demos) + [query.input for query in task.queries]
    return max(max(grid.shape) for grid in grids)


def decisive_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the few of `pairs` that give every query the same lane as all of them."""

    def growth(axis: int) -> Callable[[Pair], float]:
        return lambda p: 0.0 if p.output is None else p.output.shape[axis] / p.input.shape[axis]

    def largest(axis: int) -> Callable[[Pair], int]:
        return lambda p: max(grid.shape[axis] for grid in demo_grids([p]))

    keys = (largest(0), largest(1), growth(0), growth(1))
    return [max(pairs, key=key) for key in keys] if pairs else []


def demo_grids(demos: Sequence[Pair]) -> list[np.ndarray]:
    """Return all input and output grids of `demos`, pair by pair."""
    return [grid for pair in demos for grid in (pair.input, pair.output) if grid is not None]
