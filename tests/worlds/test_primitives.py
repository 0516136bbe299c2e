"""Every primitive by examples that were written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from etrm.worlds.primitive import Grid, Values, below, same
from etrm.worlds.registry import PRIMITIVES

# Name, values, input and output, rows as texts.
EXAMPLES: list[tuple[str, Values, str, str]] = [
    ("recolour", ((0, 1, 2, 3), (3, 1, 0, 9)), "0123", "3109"),
    ("shift", (3,), "12345", "34512"),
    ("mirror", (), "12340", "04321"),
    ("gravity", ("left",), "01020", "12000"),
    ("gravity", ("right",), "01020", "00012"),
    ("gravity", ("up",), "010 200 030", "210 030 000"),
    ("gravity", ("down",), "010 200 030", "000 010 230"),
    ("fill", (4,), "01020", "41424"),
    ("keep", (2,), "01223", "00220"),
    ("between", (5,), "05005", "05555"),
    ("last", (7,), "01020", "01070"),
    ("last", (7,), "010 200", "010 700"),
    ("sort", (), "30102", "00123"),
    ("dup", (), "01002", "01102"),
    ("first", (7,), "01020", "07020"),
    ("remove", (2,), "01223", "01003"),
    ("replace", (2, 5), "01223", "01553"),
    ("move", (2,), "12340", "00123"),
    ("ray", ("right",), "01020", "01122"),
    ("ray", ("left",), "01020", "11220"),
    ("ray", ("down",), "010 200 000", "010 210 210"),
    ("ray", ("up",), "000 200 010", "210 210 010"),
    ("join", (5,), "03003", "03553"),
]


def grid(rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows.split()], np.uint8)


@pytest.mark.parametrize(("name", "values", "given", "expected"), EXAMPLES)
def test_examples(name: str, values: Values, given: str, expected: str) -> None:
    output = PRIMITIVES[name].apply(grid(given), *values)
    assert output.dtype == np.uint8
    assert output.tolist() == grid(expected).tolist()


def test_every_primitive_has_an_example() -> None:
    assert {name for name, *_ in EXAMPLES} == set(PRIMITIVES)


def cases(name: str, size: tuple[int, int]) -> list[Values]:
    """Return the values of a primitive on a size; of one that draws them, some."""
    primitive, rng = PRIMITIVES[name], np.random.default_rng(0)
    if primitive.enumerable:
        return list(primitive.space(*size))
    return [primitive.draw(rng, ()) for _ in range(20)]


@pytest.mark.parametrize("size", [(1, 10), (1, 5), (4, 4), (6, 5)])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_inputs_show_the_values_and_answers_find_them(name: str, size: tuple[int, int]) -> None:
    """Of all values, on the grids drawn for them: the true ones are among the explanations."""
    primitive, rng = PRIMITIVES[name], np.random.default_rng(1)
    for values in cases(name, size):
        inputs = [primitive.inputs(rng, *size, *values) for _ in range(6)]
        pairs = [(x, primitive.apply(x, *values)) for x in inputs]
        for x, y in pairs:
            assert (x.dtype, x.shape, y.dtype, y.ndim) == (np.uint8, size, np.uint8, 2)
            assert min(y.shape) >= 1
            assert max(x.max(), y.max()) <= 9
        assert any(not same(x, y) for x, y in pairs)
        found = list(primitive.answers(pairs[:5], [pairs[5][0]]))
        assert any(each is not None and same(each[0], pairs[5][1]) for each in found)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_values_are_inferred_from_any_grid(name: str) -> None:
    """Also from grids that a first primitive left: `infer` may find too many, never too few."""
    primitive, rng = PRIMITIVES[name], np.random.default_rng(2)
    for _ in range(100):
        size = (1 + below(rng, 4), 2 + below(rng, 5))
        x = (rng.random(size) * 10 * (rng.random(size) < rng.random())).astype(np.uint8)
        for values in primitive.space(*size):
            y = primitive.apply(x, *values)
            inferred: Any = None if primitive.infer is None else list(primitive.infer(x, y))
            assert inferred is None or values in inferred
