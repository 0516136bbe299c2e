"""A primitive: a parameterised map of grids, with all that tasks of it are made and checked by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

Grid = np.ndarray  # uint8 [height, width], colours 0-9
Values = tuple[Any, ...]  # of the parameters, in their order
Pairs = Sequence[tuple[Grid, Grid]]  # inputs and their outputs
Space = tuple[Values, ...]

COLORS = tuple(range(1, 10))  # 0 is the background


@dataclass(frozen=True, eq=False)
class Primitive:
    """A rule with parameters: `apply(grid, *values)` is the output.

    `axes` are the values of each parameter by its name, all combinations of which are its space;
    a function of height and width where they depend on the size.
    """

    name: str
    meaning: str
    apply: Callable[..., Grid]
    axes: dict[str, Any]
    inputs: Callable[..., Grid]  # (rng, height, width, *values): a grid on which the values show
    # The values that may explain (input, output): all that do, and perhaps others; None: any.
    infer: Callable[[Grid, Grid], Iterable[Values] | None]
    # Primitives that a composition may have behind this one, and that may follow others: their
    # parameters show on grids that were not drawn for them.
    follows: bool = True
    leads: bool = True
    only: Callable[..., bool] | None = None  # the combinations of values that are in the space
    least: tuple[int, int] = (1, 2)  # the smallest grids that it does something on

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(self.axes)

    @cache  # noqa: B019  primitives live as long as the process
    def space(self, height: int, width: int) -> Space:
        """Return all values for grids of a size, in their order; none where they are drawn."""
        if not self.enumerable or height < self.least[0] or width < self.least[1]:
            return ()
        axes = (a(height, width) if callable(a) else a for a in self.axes.values())
        return tuple(v for v in product(*axes) if self.only is None or self.only(*v))

    def draw(self, rng: np.random.Generator, space: Space) -> Values:
        """Draw one of the values of `space`."""
        return space[below(rng, len(space))]

    def answers(self, pairs: Pairs, queries: Sequence[Grid]) -> Iterator[list[Grid] | None]:
        """Yield the outputs for `queries` by all values that explain `pairs`; None: not determined.

        Values are compared by their outputs, one by one.
        """
        first, output = pairs[0]
        found = self.infer(first, output)
        for values in self.space(*first.shape) if found is None else found:
            if all(same(self.apply(x, *values), y) for x, y in pairs):
                yield [self.apply(query, *values) for query in queries]

    @property
    def enumerable(self) -> bool:
        """Whether `space` has all values; else they are drawn and inferred."""
        return True


class ColorMap(Primitive):
    """A map of the colours of a task, one to one, too many to enumerate: they are inferred.

    Values are the colours in use, ascending, and the new colour of each. Others do not occur.
    """

    USED = 4  # so that demos show them all

    def draw(self, rng: np.random.Generator, space: Space) -> Values:
        """Draw colours, and other ones for them (some may stay)."""
        used = sorted(rng.permutation(10)[: self.USED].tolist())
        return tuple(used), tuple(rng.permutation(10)[: self.USED].tolist())

    def answers(self, pairs: Pairs, queries: Sequence[Grid]) -> Iterator[list[Grid] | None]:
        """Yield the one map that explains `pairs`; None where a query has a colour without one."""
        if any(x.shape != y.shape for x, y in pairs):
            return
        cells = np.concatenate([x.ravel() for x, _ in pairs]).astype(np.intp)
        becomes = np.concatenate([y.ravel() for _, y in pairs])
        table = np.full(10, 255, np.uint8)
        table[cells] = becomes
        known = table[table < 255]
        if not np.array_equal(table[cells], becomes) or len(set(known.tolist())) < len(known):
            return
        found = [table[query] for query in queries]
        yield None if any((each == 255).any() for each in found) else found

    @property
    def enumerable(self) -> bool:
        """There are a million maps of four colours."""
        return False


def primitive(
    inputs: Callable[..., Grid],
    infer: Callable[[Grid, Grid], Iterable[Values] | None] = lambda grid, output: None,
    *,
    kind: type[Primitive] = Primitive,
    follows: bool = True,
    leads: bool = True,
    only: Callable[..., bool] | None = None,
    least: tuple[int, int] = (1, 2),
    **axes: Any,
) -> Callable[[Callable[..., Grid]], Primitive]:
    """Make a primitive of a function: its name and docstring, its parameters by `axes`."""

    def make(apply: Callable[..., Grid]) -> Primitive:
        name, meaning = apply.__name__.rstrip("_"), (apply.__doc__ or "").strip()
        return kind(name, meaning, apply, axes, inputs, infer, follows, leads, only, least)

    return make


def same(first: Grid, second: Grid) -> bool:
    """Return whether two grids are equal (several times faster than NumPy's comparison)."""
    return first.shape == second.shape and first.tobytes() == second.tobytes()


def below(rng: np.random.Generator, bound: int) -> int:
    """Draw an integer in [0, bound)."""
    return int(rng.random() * bound)


def painted(grid: Grid, output: Grid) -> Iterable[Values]:
    """Return the colours that a primitive may have which paints cells in its colour only."""
    if grid.shape != output.shape:
        return ()
    changed = output[grid != output]
    if not changed.size:
        return ((color,) for color in COLORS)
    color = int(changed[0])
    return ((color,),) if color and (changed == color).all() else ()


def moved(grid: Grid, output: Grid) -> Iterable[Values] | None:
    """Return no values where cells are not those of the input in another order."""
    return None if sorted(grid.tobytes()) == sorted(output.tobytes()) else ()


def shown(grid: Grid, output: Grid) -> Iterable[Values]:
    """Return the colours that a primitive may have whose outputs have its colour only."""
    del grid
    colors = output[output > 0]
    if not colors.size:
        return ((color,) for color in COLORS)
    return ((int(colors[0]),),) if (colors == colors[0]).all() else ()
