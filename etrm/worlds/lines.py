"""Primitives that work along rows, on lines of cells as on grids of several rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from etrm.worlds.inputs import (
    ends,
    marks,
    of_colors,
    scattered,
    with_color,
)
from etrm.worlds.primitive import COLORS, ColorMap, Grid, Values, moved, painted, primitive, shown

half, thin = scattered(0.5), scattered(0.35)


def _steps(height: int, width: int) -> tuple[int, ...]:
    del height
    return tuple(range(1, width))


def sides(height: int, width: int) -> tuple[str, ...]:
    """Return the sides that differ on a size."""
    del width
    return ("left", "right") if height == 1 else ("left", "right", "up", "down")


def along(grid: Grid, side: str) -> Grid:
    """Return a view in which `side` is the left one; the same call turns it back."""
    view = grid.T if side in ("up", "down") else grid
    return view[:, ::-1] if side in ("right", "down") else view


def back(view: Grid, side: str) -> Grid:
    """Undo `along`."""
    turned = view[:, ::-1] if side in ("right", "down") else view
    return turned.T if side in ("up", "down") else turned


# --- the ten rules ---


@primitive(of_colors, kind=ColorMap, leads=False, follows=False, used=None, becomes=None)
def recolour(grid: Grid, used: Any, becomes: Any) -> Grid:
    """Map each colour to another one."""
    table = np.arange(10, dtype=np.uint8)
    table[list(used)] = becomes
    return table[grid]


@primitive(half, moved, by=_steps)
def shift(grid: Grid, by: int) -> Grid:
    """Move all cells to the right, and from the end to the beginning."""
    by %= grid.shape[1]
    return np.concatenate((grid[:, -by:], grid[:, :-by]), axis=1) if by else grid


@primitive(half, moved)
def mirror(grid: Grid) -> Grid:
    """Exchange left and right."""
    return grid[:, ::-1]


@primitive(half, moved, side=sides)
def gravity(grid: Grid, side: str) -> Grid:
    """Let coloured cells fall to one side, in their order."""
    view = along(grid, side)
    order = (view == 0).argsort(axis=1, kind="stable")
    return back(np.take_along_axis(view, order, axis=1), side)


@primitive(half, painted, color=COLORS)
def fill(grid: Grid, color: int) -> Grid:
    """Paint the background."""
    return np.where(grid == 0, np.uint8(color), grid)


@primitive(with_color(0.6, 0.3), shown, color=COLORS, follows=False)
def keep(grid: Grid, color: int) -> Grid:
    """Keep the cells of one colour."""
    return np.where(grid == color, grid, np.uint8(0))


@primitive(ends, shown, color=COLORS, follows=False)
def between(grid: Grid, color: int) -> Grid:
    """Paint each row from its first to its last coloured cell."""
    on = grid > 0
    inside = np.logical_or.accumulate(on, axis=1)
    inside &= np.logical_or.accumulate(on[:, ::-1], axis=1)[:, ::-1]
    return np.where(inside, np.uint8(color), np.uint8(0))


@primitive(scattered(0.4), painted, color=COLORS)
def last(grid: Grid, color: int) -> Grid:
    """Paint the last coloured cell, in reading order."""
    output = grid.copy()
    on = grid.ravel().nonzero()[0]
    if on.size:
        output.flat[on[-1]] = color
    return output


@primitive(scattered(0.6), moved)
def sort(grid: Grid) -> Grid:
    """Sort the cells of each row by colour, the background first."""
    return np.sort(grid, axis=1)


@primitive(thin)
def dup(grid: Grid) -> Grid:
    """Give each empty cell its left neighbour's colour."""
    output = grid.copy()
    np.copyto(output[:, 1:], grid[:, :-1], where=grid[:, 1:] == 0)
    return output


# --- more of the same kind ---


@primitive(scattered(0.4), painted, color=COLORS)
def first(grid: Grid, color: int) -> Grid:
    """Paint the first coloured cell, in reading order."""
    output = grid.copy()
    on = grid.ravel().nonzero()[0]
    if on.size:
        output.flat[on[0]] = color
    return output


@primitive(with_color(0.5, 0.25), color=COLORS, follows=False)
def remove(grid: Grid, color: int) -> Grid:
    """Remove the cells of one colour."""
    return np.where(grid == color, np.uint8(0), grid)


def _replaced(grid: Grid, output: Grid) -> Iterable[Values]:
    """Return the colours of the changed cells, before and after."""
    if grid.shape != output.shape:
        return ()
    changed = (grid != output).ravel().nonzero()[0]
    if not changed.size:
        return replace.space(*grid.shape)
    values = int(grid.flat[changed[0]]), int(output.flat[changed[0]])
    return (values,) if 0 not in values else ()


@primitive(
    with_color(0.5, 0.2),
    _replaced,
    follows=False,
    only=lambda color, by: color != by,
    color=COLORS,
    by=COLORS,
)
def replace(grid: Grid, color: int, by: int) -> Grid:
    """Paint the cells of one colour in another one."""
    return np.where(grid == color, np.uint8(by), grid)


@primitive(half, by=lambda height, width: tuple(range(1, min(width, 5))))
def move(grid: Grid, by: int) -> Grid:
    """Move all cells to the right; those that leave the grid are lost."""
    output = np.zeros_like(grid)
    output[:, by:] = grid[:, : max(0, grid.shape[1] - by)]
    return output


@primitive(scattered(0.2), side=sides)
def ray(grid: Grid, side: str) -> Grid:
    """Extend each coloured cell to one side, up to the next."""
    view = along(grid, side)[:, ::-1]  # colours run from left to right
    places = np.where(view > 0, np.arange(view.shape[1]), 0)
    np.maximum.accumulate(places, axis=1, out=places)
    return back(np.take_along_axis(view, places, axis=1)[:, ::-1], side)


@primitive(marks, painted, color=COLORS, follows=False)
def join(grid: Grid, color: int) -> Grid:
    """Paint the empty cells between coloured ones of a row."""
    on = grid > 0
    inside = np.logical_or.accumulate(on, axis=1)
    inside &= np.logical_or.accumulate(on[:, ::-1], axis=1)[:, ::-1]
    return np.where(inside & ~on, np.uint8(color), grid)


LINES = (
    *(recolour, shift, mirror, gravity, fill, keep, between, last, sort, dup),
    *(first, remove, replace, move, ray, join),
)
