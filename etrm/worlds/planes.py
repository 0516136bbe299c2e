"""Primitives that turn, repeat and paint whole grids; most work on one row as well."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from etrm.worlds.inputs import in_few_colors, scattered, with_color
from etrm.worlds.lines import along, back, half, sides, thin
from etrm.worlds.primitive import COLORS, Grid, Values, moved, painted, primitive

TIMES = (2, 3)


# --- turned and moved ---


@primitive(half, moved, least=(2, 1))
def flip(grid: Grid) -> Grid:
    """Exchange top and bottom."""
    return grid[::-1]


@primitive(half, moved, least=(2, 2), turns=(1, 2, 3))
def rotate(grid: Grid, turns: int) -> Grid:
    """Turn the grid counter-clockwise, by quarters."""
    return np.rot90(grid, turns)


@primitive(half, moved, least=(2, 2))
def transpose(grid: Grid) -> Grid:
    """Exchange rows and columns."""
    return grid.T


@primitive(half, moved, least=(2, 1), by=lambda height, width: tuple(range(1, height)))
def roll(grid: Grid, by: int) -> Grid:
    """Move all rows down, and from the bottom to the top."""
    return np.roll(grid, by, axis=0)


@primitive(half, side=sides)
def complete(grid: Grid, side: str) -> Grid:
    """Make the grid symmetric: the half on one side is mirrored on the other."""
    view = along(grid, side)
    middle = view.shape[1] // 2
    return back(np.concatenate((view[:, :-middle], view[:, middle - 1 :: -1]), axis=1), side)


# --- of another size ---


@primitive(half, times=TIMES)
def tile(grid: Grid, times: int) -> Grid:
    """Repeat the grid from left to right."""
    return np.tile(grid, (1, times))


@primitive(half, times=TIMES)
def zoom(grid: Grid, times: int) -> Grid:
    """Make each cell larger; the cells of one row only wider."""
    wide = np.repeat(grid, times, axis=1)
    return wide if grid.shape[0] == 1 else np.repeat(wide, times, axis=0)


@primitive(half)
def unfold(grid: Grid) -> Grid:
    """Add the mirror image on the right."""
    return np.concatenate((grid, grid[:, ::-1]), axis=1)


@primitive(half, least=(1, 4), side=sides)
def halve(grid: Grid, side: str) -> Grid:
    """Keep the half on one side, without a middle."""
    view = along(grid, side)
    return back(view[:, : max(1, view.shape[1] // 2)], side)


# --- painted ---


@primitive(scattered(0.2), painted, color=COLORS)
def outline(grid: Grid, color: int) -> Grid:
    """Paint the background next to coloured cells, in the four directions."""
    on = np.pad(grid > 0, 1)
    near = on[:-2, 1:-1] | on[2:, 1:-1] | on[1:-1, :-2] | on[1:-1, 2:]
    return np.where(near & (grid == 0), np.uint8(color), grid)


@primitive(half, painted, color=COLORS)
def border(grid: Grid, color: int) -> Grid:
    """Paint the outermost cells; of one row the first and the last."""
    output = grid.copy()
    output[:, [0, -1]] = color
    if grid.shape[0] > 1:
        output[[0, -1]] = color
    return output


@primitive(thin, every=(2, 3, 4), color=COLORS, least=(1, 4))
def stripe(grid: Grid, every: int, color: int) -> Grid:
    """Paint the background of the first column, and of every so many after it."""
    output = grid.copy()
    output[:, ::every] = np.where(grid[:, ::every] == 0, np.uint8(color), grid[:, ::every])
    return output


def _swapped(grid: Grid, output: Grid) -> Iterable[Values]:
    """Return the colours that changed places."""
    if grid.shape != output.shape:
        return ()
    changed = grid != output
    if not changed.any():
        return swap.space(*grid.shape)
    found = {*grid[changed].tolist(), *output[changed].tolist()}
    return (tuple(sorted(found)),) if len(found) == 2 and 0 not in found else ()


@primitive(
    with_color(0.5, 0.25),
    _swapped,
    follows=False,
    only=lambda color, other: color < other,
    color=COLORS,
    other=COLORS,
)
def swap(grid: Grid, color: int, other: int) -> Grid:
    """Exchange two colours."""
    return np.where(grid == color, np.uint8(other), np.where(grid == other, np.uint8(color), grid))


@primitive(in_few_colors(3, 0.6), follows=False, leads=False)
def majority(grid: Grid) -> Grid:
    """Paint all cells in the most frequent colour."""
    return np.full_like(grid, most_frequent(grid))


@primitive(in_few_colors(3, 0.6), follows=False)
def unify(grid: Grid) -> Grid:
    """Paint the coloured cells in the most frequent colour."""
    return np.where(grid > 0, most_frequent(grid), np.uint8(0))


def most_frequent(grid: Grid) -> np.uint8:
    """Return the most frequent colour, the lowest of several; 0 where there is none."""
    times = np.bincount(grid.ravel(), minlength=10)
    times[0] = 0
    return np.uint8(times.argmax())


PLANES = (
    *(flip, rotate, transpose, roll, complete, tile, zoom, unfold, halve),
    *(outline, border, stripe, swap, majority, unify),
)
