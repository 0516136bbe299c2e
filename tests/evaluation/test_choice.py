"""The rule of a selection: the best, near ties by their paired difference, and a bound."""

from __future__ import annotations

import numpy as np
import pytest

from etrm.config.selection import SelectionConfig
from etrm.evaluation.selection import Choice, choose


def chosen(shares: dict[str, list[float]], **rule: object) -> list[str]:
    return [each.experiment for each in places(shares, **rule) if each.chosen]


def places(shares: dict[str, list[float]], **rule: object) -> list[Choice]:
    of = {name: np.array([row]) for name, row in shares.items()}
    return choose(of, SelectionConfig(of=("g",), **rule))  # type: ignore[arg-type]


def test_differences_are_paired_over_tasks() -> None:
    """`steady` loses a little on every task: far behind. `noisy` loses as much, but unevenly."""
    shares = {
        "first": [0.5, 0.5, 0.5, 0.5],
        "steady": [0.4, 0.4, 0.4, 0.4],
        "noisy": [1.0, 0.0, 0.5, 0.1],
    }
    first, *others = places(shares, best=1)
    assert (first.why, first.exact, first.behind) == ("best", 0.5, 0.0)
    of = {each.experiment: each for each in others}
    assert of["steady"].error == pytest.approx(0, abs=1e-12)
    assert (of["steady"].why, of["steady"].chosen) == ("behind", False)
    # Differences -0.5, 0.5, 0, 0.4: their mean is 0.1, their standard deviation 0.4546.
    assert of["noisy"].behind == pytest.approx(0.1)
    assert of["noisy"].error == pytest.approx(0.454606 / 2, abs=1e-5)
    assert (of["noisy"].why, of["noisy"].chosen) == ("near tie", True)
    assert chosen(shares, best=1, near=0.4) == ["first"]


def test_equal_ones_are_kept_up_to_the_bound() -> None:
    shares = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 0.0], "d": [0.0, 0.0]}
    assert chosen(shares, best=2, near=0) == ["b", "a", "c", "d"]
    found = places(shares, best=2, near=0, at_most=3)
    assert [each.why for each in found] == ["best", "best", "tie", "over at_most"]
    assert [each.rank for each in found] == [1, 2, 3, 4]


def test_seeds_are_averaged_and_fewer_candidates_than_places_are_all_chosen() -> None:
    of = {"a": np.array([[1.0, 0.0], [0.0, 0.0]]), "b": np.array([[0.5, 0.5], [0.5, 0.0]])}
    found = choose(of, SelectionConfig(of=("g",), best=5))
    assert [(each.experiment, each.exact) for each in found] == [("b", 0.375), ("a", 0.25)]
    assert all(each.chosen for each in found)
    assert choose({}, SelectionConfig(of=("g",), best=1)) == []
