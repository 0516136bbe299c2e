"""Every primitive by examples that were written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
    ("flip", (), "12 30", "30 12"),
    ("rotate", (1,), "12 30", "20 13"),
    ("rotate", (2,), "123 000", "000 321"),
    ("rotate", (3,), "12 30", "31 02"),
    ("transpose", (), "123 000", "10 20 30"),
    ("roll", (1,), "12 30 45", "45 12 30"),
    ("complete", ("left",), "12304", "12321"),
    ("complete", ("right",), "1234", "4334"),
    ("complete", ("up",), "12 30 45", "12 30 12"),
    ("complete", ("down",), "12 30 45 60", "60 45 45 60"),
    ("tile", (2,), "120", "120120"),
    ("zoom", (3,), "10", "111000"),
    ("zoom", (2,), "10 02", "1100 1100 0022 0022"),
    ("unfold", (), "120 003", "120021 003300"),
    ("halve", ("left",), "12345", "12"),
    ("halve", ("right",), "12345", "45"),
    ("halve", ("up",), "12 30 45", "12"),
    ("halve", ("down",), "12 30 45 60", "45 60"),
    ("outline", (5,), "00100", "05150"),
    ("outline", (5,), "000 010 000", "050 515 050"),
    ("border", (5,), "12340", "52345"),
    ("border", (5,), "120 341 000", "555 545 555"),
    ("stripe", (2, 5), "10002", "10502"),
    ("stripe", (3, 5), "0000 0120", "5005 5125"),
    ("swap", (1, 3), "01323", "03121"),
    ("majority", (), "01330", "33333"),
    ("majority", (), "000", "000"),
    ("unify", (), "01330", "03330"),
    ("crop", (), "00120", "12"),
    ("crop", (), "0000 0102 0000 0030", "102 000 030"),
    ("crop", (), "000", "000"),
    ("count", (3,), "30133", "333"),
    ("count", (3,), "00120", "0"),
    ("squeeze", (), "10023", "123"),
    ("squeeze", (), "1002 0003", "12 03"),
    ("dedupe", (), "110022", "102"),
    ("dedupe", (), "1100 2200 3330", "100 200 330"),
    ("largest", (), "1102220", "0002220"),
    ("largest", (), "110 012 222", "000 002 222"),
    ("largest", (), "000", "000"),
    ("denoise", (), "1101020", "1100000"),
    ("denoise", (), "120 110 003", "100 110 000"),
    ("enclosed", (5,), "1110 1010 1110 0000", "1110 1510 1110 0000"),
    ("enclosed", (5,), "1110 1010 1010 0000", "1110 1010 1010 0000"),
    ("stamp", (5,), "1205000", "1201200"),
    ("stamp", (5,), "12000 34005 00000 05000", "12000 34001 00003 01200"),
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
            inferred = primitive.infer(x, y)
            assert inferred is None or values in inferred


PAGE = Path(__file__).parents[2] / "docs/worlds.md"


def test_the_page_has_every_primitive_as_it_is() -> None:
    pattern = (
        r"^\| `(\w+)` \| (.+?) \| (.+?), (.+?) \| (.+?) \| (?:`(\[.*?\])`: )?`(.+?)` → `(.+?)` \|$"
    )
    rows = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.M)
    assert [row[0] for row in rows] == list(PRIMITIVES)
    for name, parameters, on_line, on_plane, meaning, values, given, expected in rows:
        primitive = PRIMITIVES[name]
        assert re.findall(r"`(\w+)`", parameters) == list(primitive.parameters)
        for shown, size in ((on_line, (1, 10)), (on_plane, (6, 6))):
            number = len(primitive.space(*size))
            assert shown == ("drawn" if not primitive.enumerable else str(number or "–"))
        assert meaning == primitive.meaning.splitlines()[0]
        output = primitive.apply(grid(given), *json.loads(values or "[]"))
        assert output.tolist() == grid(expected).tolist()
