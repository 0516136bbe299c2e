"""Lanes in a study file: squares as numbers, rectangles as rows and columns."""

from __future__ import annotations

from typing import Any

import pytest
from documents import document, problems
from jsonschema import Draft202012Validator

from etrm.config.data import EpisodesConfig
from etrm.config.json_schema import schema
from etrm.config.lanes import Lane
from etrm.config.load import load_study, plain
from etrm.config.schema import parse


def test_a_study_reads_and_writes_lanes_in_one_form() -> None:
    """Numbers stay numbers, so the keys of results on square lanes are as they were."""
    study = load_study(document(defaults__episodes__canvas=[5, [1, 30], [6, 6]]))
    config = study.experiments["etrm"].episodes
    assert config.canvas == (Lane(5, 5), Lane(1, 30), Lane(6, 6))
    assert plain(config)["canvas"] == [5, [1, 30], 6]
    assert plain(EpisodesConfig())["canvas"] == [*range(6, 31, 2)]
    assert parse(EpisodesConfig, plain(config)) == config


def test_lanes_are_ordered_by_area() -> None:
    ordered = [Lane(1, 12), Lane(12, 1), Lane(4, 4), Lane(2, 9)]
    assert sorted([ordered[2], ordered[1], ordered[3], ordered[0]]) == ordered
    assert [str(lane) for lane in ordered] == ["1x12", "12x1", "4", "2x9"]
    assert [lane.cells for lane in ordered] == [12, 12, 16, 18]
    assert Lane(2, 9).holds(2, 9)
    assert not Lane(2, 9).holds(9, 2)
    assert not Lane(2, 9).holds(2, 10)


SIDES = "rows and columns from 1 to 30"
WRONG: list[tuple[Any, str, str]] = [
    ([[0, 12]], "[0]", f"found [0, 12], expected {SIDES}"),
    ([[1, 31]], "[0]", f"found [1, 31], expected {SIDES}"),
    ([6, [1, 2, 3]], "[1]", f"found [1, 2, 3], expected {SIDES}"),
    ([[True, 2]], "[0]", f"found [True, 2], expected {SIDES}"),
    ([0], "[0]", "found 0, expected a side from 1 to 30, or [rows, columns]"),
    (["6"], "[0]", "found '6', expected a side from 1 to 30, or [rows, columns]"),
]


@pytest.mark.parametrize(("canvas", "place", "message"), WRONG, ids=str)
def test_a_bad_lane_is_named_with_what_was_expected(canvas: Any, place: str, message: str) -> None:
    content = document(defaults__episodes__canvas=canvas)
    path = f"defaults.episodes.canvas{place}"
    assert problems(content) == {path: f"{path}: {message}"}
    assert list(Draft202012Validator(schema()).iter_errors(content))


def test_lanes_ascend_by_area_and_none_stands_twice() -> None:
    for canvas in ([3, [1, 6]], [6, [6, 6]], [[2, 2], 2]):
        (found,) = problems(document(defaults__episodes__canvas=canvas)).values()
        assert "areas" in found
    good = document(defaults__episodes__canvas=[[12, 1], [1, 12], 4])
    assert problems(good) == {}
    assert not list(Draft202012Validator(schema()).iter_errors(good))


def test_one_rectangle_may_be_filled_in_epochs() -> None:
    changes = {"order": "epochs", "canvas": [[1, 10]]}
    assert problems(document(defaults__episodes=changes)) == {}
