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
    """Rectangles of any colour, one to three of them, which may touch; of one row: runs."""
    grid = np.zeros((height, width), np.uint8)
    for _i in range(1 + below(rng, 3)):
        h, w = 1 + below(rng, max(1, height - 1)), 1 + below(rng, max(1, width // 2))
        top, left = below(rng, height - h + 1), below(rng, width - w + 1)
        grid[top : top + h, left : left + w] = 1 + below(rng, 9)
    return grid
