"""Primitives that are about objects: coloured cells that belong together, in one row as in several.

An object is a set of cells of one colour that touch along their edges.
"""

from __future__ import annotations

import numpy as np

from etrm.worlds.inputs import (
    few_of_color,
    in_few_colors,
    in_part,
    pattern_and_marks,
    rings,
    runs,
    with_gaps,
)
from etrm.worlds.primitive import COLORS, Grid, painted, primitive, shown


@primitive(in_part)
def crop(grid: Grid) -> Grid:
    """Cut out the smallest rectangle that holds all coloured cells."""
    rows, columns = (np.flatnonzero((grid > 0).any(axis=axis)) for axis in (1, 0))
    return grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else grid


@primitive(few_of_color, shown, follows=False, leads=False, color=COLORS)
def count(grid: Grid, color: int) -> Grid:
    """Return a row of as many cells of one colour as there are; an empty cell of none."""
    number = int((grid == color).sum())
    return np.full((1, max(1, number)), color if number else 0, np.uint8)


@primitive(with_gaps)
def squeeze(grid: Grid) -> Grid:
    """Remove the columns without a coloured cell."""
    on = (grid > 0).any(axis=0)
    return grid[:, on] if on.any() else grid


@primitive(runs)
def dedupe(grid: Grid) -> Grid:
    """Remove each column that equals the one on its left."""
    differs = (grid[:, 1:] != grid[:, :-1]).any(axis=0)
    return grid[:, np.concatenate(([True], differs))]


@primitive(runs, follows=False)
def largest(grid: Grid) -> Grid:
    """Keep the largest object, the first of several in reading order."""
    label = labels(grid)
    number = np.bincount(label.ravel(), minlength=1)
    number[0] = 0
    return np.where((label == number.argmax()) & (label > 0), grid, np.uint8(0))


@primitive(in_few_colors(2, 0.6), follows=False)
def denoise(grid: Grid) -> Grid:
    """Remove objects of a single cell."""
    padded = np.pad(grid, 1)
    near = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return np.where(np.any([each == grid for each in near], axis=0), grid, np.uint8(0))


@primitive(rings, painted, follows=False, least=(3, 3), color=COLORS)
def enclosed(grid: Grid, color: int) -> Grid:
    """Paint the background that coloured cells separate from the edge."""
    outside = np.pad(grid == 0, 1, constant_values=True)
    label = labels(outside.astype(np.uint8))
    hidden = outside & (label != label[0, 0])
    return np.where(hidden[1:-1, 1:-1], np.uint8(color), grid)


@primitive(pattern_and_marks, follows=False, least=(1, 4), color=COLORS)
def stamp(grid: Grid, color: int) -> Grid:
    """Copy the pattern, which is all that has other colours, to each mark of one colour.

    Its top left cell comes to lie on the mark; cells over the edge are cut off.
    """
    pattern = crop.apply(np.where(grid == color, np.uint8(0), grid))
    output = grid.copy()
    for row, column in zip(*np.nonzero(grid == color), strict=True):
        room = output[row : row + pattern.shape[0], column : column + pattern.shape[1]]
        room[:] = pattern[: room.shape[0], : room.shape[1]]
    return output


def labels(grid: Grid) -> np.ndarray:
    """Return the number of each cell's object, from 1 in reading order; 0 is the background.

    A cell takes the lowest number among itself and those that it touches, until none changes.
    """
    label = np.where(grid > 0, np.arange(1, grid.size + 1).reshape(grid.shape), 0)
    down, right = grid[1:] == grid[:-1], grid[:, 1:] == grid[:, :-1]
    while True:
        before = label.copy()
        for a, b, joined in (
            (label[1:], label[:-1], down),
            (label[:, 1:], label[:, :-1], right),
        ):
            low = np.minimum(a, b)
            np.minimum(a, low, out=a, where=joined)  # a cell may be in both, so the lower one stays
            np.minimum(b, low, out=b, where=joined)
        if np.array_equal(label, before):
            return np.unique(np.append(0, label), return_inverse=True)[1][1:].reshape(grid.shape)


OBJECTS = (crop, count, squeeze, dedupe, largest, denoise, enclosed, stamp)
