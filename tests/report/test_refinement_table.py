"""The table and the figure of refinement, from records of fake runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fake
import pytest
from readable import assert_readable
from test_figures import study

from etrm.evaluation.statistics import clopper_pearson
from etrm.report.refinement import refinement
from etrm.report.refinement_figure import refinement as figure
from etrm.report.run_view import RunView

TASKS = 20


def after(solved: int, **changes: Any) -> dict[str, Any]:
    """The scores after some steps, in which the first `solved` tasks are right at once."""
    ranks = {f"t{i}": [1 if i < solved else 2 if i == solved else None] for i in range(TASKS)}
    return {
        "ranks": ranks,
        "likelihood": -0.5 + solved / 100,
        "likelihood_start": -0.5,
        "right_where_demos_solved": {"numerator": solved, "denominator": 10, "value": solved / 10},
        "right_elsewhere": {"numerator": 0, "denominator": 10, "value": 0.0},
        "answers": 20,
        "seconds": 4.0 * (1 + solved),
        "gflop": 2.0 * (1 + solved),
        **changes,
    }


@pytest.fixture
def views(tmp_path: Path) -> list[RunView]:
    """Two seeds of an experiment, with a search and a control; and a run without."""
    found = [fake.run(tmp_path, experiment="etrm_plain", stage="full")]
    for seed in (0, 1):
        methods = {
            "search": {"0": after(4), "50": after(8 + seed)},
            "random": {"0": after(4), "50": after(4)},
        }
        view = fake.run(tmp_path, experiment="etrm_refined", stage="full", seed=seed)
        found.append(dataclasses.replace(view, refinement={"methods": methods}))
    return found


def test_every_method_has_a_row_for_each_number_of_steps(views: list[RunView]) -> None:
    table = refinement(views).numbers.set_index(["method", "steps"])
    assert list(table.index) == [("search", 0), ("search", 50), ("random", 0), ("random", 50)]
    assert set(table["experiment"]) == {"etrm_refined"}
    assert set(table["seeds"]) == {2}
    best = table.loc[("search", 50)]
    assert best["pass@1"] == pytest.approx(8.5 / TASKS)
    assert best["pass@2"] == pytest.approx(9.5 / TASKS)
    assert best["gain"] == pytest.approx(4.5 / TASKS)
    assert best["gain_low"] < best["gain"] < best["gain_high"]
    assert best["pass@1_low"] <= clopper_pearson(8.5, TASKS)[0]
    assert table.loc[("random", 50), "gain"] == 0
    assert (best["solved_right"], best["solved"], best["unsolved"]) == (17, 20, 20)
    assert best["likelihood"] == pytest.approx(-0.415)
    assert best["seconds"] == pytest.approx(4 * 19 / 40)
    assert best["gflop"] == pytest.approx(2 * 19 / 40)


def test_a_study_without_refinement_says_so(views: list[RunView]) -> None:
    assert refinement(views[:1]).numbers.empty
    assert len(refinement(views[:1]).notes) == 1
    assert_readable(figure(study(views[:1])))


def test_the_figure_shows_pass_rates_likelihoods_and_costs(views: list[RunView]) -> None:
    drawn = figure(study(views))
    assert_readable(drawn)
    first, second, likelihood, cost = drawn.axes
    heights = [list(line.get_ydata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert [4 / TASKS, 8.5 / TASKS] in heights
    assert [4 / TASKS, 4 / TASKS] in heights
    assert [pytest.approx(v) for v in (-0.46, -0.415)] == list(likelihood.lines[0].get_ydata())
    assert list(cost.lines[0].get_xdata()) == [pytest.approx(0.5), pytest.approx(0.95)]
    assert list(second.lines[0].get_ydata()) == [5 / TASKS, pytest.approx(9.5 / TASKS)]
