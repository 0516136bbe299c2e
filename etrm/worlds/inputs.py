"""Grids to draw tasks from: each function returns a sampler `(rng, height, width, *values)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from etrm.worlds.primitive import Grid, below

Sampler = Callable[..., Grid]


def colors(rng: np.random.Generator, height: int, width: int) -> Grid:
    """Draw a colour 1-9 for each cell."""
    return (rng.random((height, width)) * 9 + 1).astype(np.uint8)


def scattered(density: float) -> Sampler:
    """Cells of any colour, `density` of all."""

    def sample(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
        grid = colors(rng, height, width)
        grid[rng.random((height, width)) >= density] = 0
        return grid

    return sample


def with_color(density: float, share: float) -> Sampler:
    """Scattered cells, of which a `share` of all has the (first) colour among the values."""
    scatter = scattered(density)

    def sample(rng: np.random.Generator, height: int, width: int, *values: Any) -> Grid:
        grid = scatter(rng, height, width)
        for color in values:
            grid[rng.random((height, width)) < share] = color
        return grid

    return sample


def of_colors(rng: np.random.Generator, height: int, width: int, used: Any, becomes: Any) -> Grid:
    """Draw each cell from the colours that a map is about."""
    del becomes
    places = (rng.random((height, width)) * len(used)).astype(np.intp)
    return np.array(used, np.uint8)[places]


def in_few_colors(number: int, density: float) -> Sampler:
    """Cells of a few colours, so that colours repeat."""

    def sample(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
        few = rng.permutation(9)[:number].astype(np.uint8) + 1
        grid = few[(rng.random((height, width)) * number).astype(np.intp)]
        grid[rng.random((height, width)) >= density] = 0
        return grid

    return sample


def ends(rng: np.random.Generator, height: int, width: int, *values: Any) -> Grid:
    """Two cells of the colour among the values, in one row or, of several, in about half."""
    grid = np.zeros((height, width), np.uint8)
    for row in range(height):
        if height == 1 or rng.random() < 0.5:
            first = below(rng, width)
            second = (first + 1 + below(rng, width - 1)) % width
            grid[row, [first, second]] = values[0]
    return grid


def marks(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
    """Two cells of one colour in a row (of several, in about half), a colour for each row."""
    own = colors(rng, height, 1)
    return np.where(ends(rng, height, width, 1) > 0, own, 0).astype(np.uint8)


def runs(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
    """Rectangles of any colour, two to four of them, which may touch; of one row: runs."""
    grid = np.zeros((height, width), np.uint8)
    for _i in range(2 + below(rng, 3)):
        h, w = 1 + below(rng, max(1, height - 1)), 1 + below(rng, max(1, width // 2))
        top, left = below(rng, height - h + 1), below(rng, width - w + 1)
        grid[top : top + h, left : left + w] = 1 + below(rng, 9)
    return grid


def few_of_color(rng: np.random.Generator, height: int, width: int, *values: Any) -> Grid:
    """Scattered cells, of which one to nine have the colour given."""
    grid = scattered(0.3)(rng, height, width)
    grid[grid == values[0]] = 0
    number = 1 + below(rng, min(9, grid.size))
    grid.flat[rng.permutation(grid.size)[:number]] = values[0]
    return grid


def with_gaps(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
    """Scattered cells in about half of the columns."""
    grid = scattered(0.7)(rng, height, width)
    grid[:, rng.random(width) < 0.5] = 0
    return grid


def in_part(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
    """Scattered cells in a random part of the grid."""
    h, w = 1 + below(rng, max(1, height - 1)), 2 + below(rng, max(1, width - 2))
    h, w = min(h, height), min(w, width)
    top, left = below(rng, height - h + 1), below(rng, width - w + 1)
    grid = np.zeros((height, width), np.uint8)
    grid[top : top + h, left : left + w] = scattered(0.7)(rng, h, w)
    return grid


def rings(rng: np.random.Generator, height: int, width: int, *_: Any) -> Grid:
    """One or two hollow rectangles over a few scattered cells."""
    grid = scattered(0.1)(rng, height, width)
    for _i in range(1 + below(rng, 2)):
        h, w = 3 + below(rng, height - 2), 3 + below(rng, width - 2)
        top, left = below(rng, height - h + 1), below(rng, width - w + 1)
        room = grid[top : top + h, left : left + w]
        room[[0, -1]] = room[:, [0, -1]] = 1 + below(rng, 9)
        room[1:-1, 1:-1] = 0
    return grid


def pattern_and_marks(rng: np.random.Generator, height: int, width: int, *values: Any) -> Grid:
    """Draw a pattern of two or three columns on the left, and marks of the colour given."""
    grid, color = np.zeros((height, width), np.uint8), values[0]
    h, w = min(height, 2), 2 if width < 7 else 2 + below(rng, 2)
    others = colors(rng, h, w)
    grid[:h, :w] = np.where(others == color, others % 9 + 1, others)
    for _i in range(1 + below(rng, 2)):
        grid[below(rng, height), w + below(rng, width - w)] = color
    return grid
