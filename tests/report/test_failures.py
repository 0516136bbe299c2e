"""Classes of wrong answers, and their shares over all answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import fake
import numpy as np
import pytest

from etrm.report.failures import CLASSES, failure, failures, shares, truths_of
from etrm.report.run_view import StudyView

TRUTH = np.arange(20, dtype=np.uint8).reshape(4, 5) % 4


def changed(cells: int) -> np.ndarray:
    grid = TRUTH.copy()
    grid.ravel()[:cells] = 9
    return grid


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (TRUTH, "right"),
        (changed(2), "nearly"),  # 90 % of the cells
        (changed(3), "structured"),
        (TRUTH[::-1], "rearranged"),
        (TRUTH.T, "size"),
        (np.zeros((0, 0), np.uint8), "size"),
        (np.full((4, 5), 7, np.uint8), "collapsed"),
        (np.full((9, 9), 7, np.uint8), "collapsed"),  # of whatever size
        ((TRUTH + 4).astype(np.uint8), "structured"),
    ],
)
def test_an_answer_has_one_class(grid: np.ndarray, expected: str) -> None:
    assert failure(grid, TRUTH) == expected
    assert expected in CLASSES


def test_a_uniform_answer_to_a_uniform_truth_has_not_collapsed() -> None:
    assert failure(np.full((4, 5), 7, np.uint8), np.full((4, 5), 6, np.uint8)) == "structured"


def test_shares_are_over_all_predictions(tmp_path: Path) -> None:
    tasks = fake.tasks(5)
    rows = fake.predictions(tasks, right=0.5)
    rows.to_parquet(tmp_path / "predictions.parquet")
    view = dataclasses.replace(
        fake.run(tmp_path, stage="full", steps=100), predictions=tmp_path / "predictions.parquet"
    )
    found = shares(view, truths_of(tasks))
    assert found.total() == len(rows)
    assert found["right"] == rows["correct"].sum()
    assert found["size"] >= (rows["height"] == 0).sum()
    assert shares(view, truths_of(tasks[:2])).total() < len(rows)  # unknown answers count nowhere


def test_bars_of_the_figure_are_the_shares_of_all_seeds(synthetic_study: StudyView) -> None:
    fig = failures(synthetic_study)
    (axes,) = fig.axes
    truths = truths_of(synthetic_study.tasks)
    of = [view for view in synthetic_study.runs if view.experiment == "trm"]
    expected = sum((shares(view, truths) for view in of), Counter[str]())
    row = [tick.get_text() for tick in axes.get_yticklabels()].index("trm")
    bars = [container.patches[row].get_width() for container in axes.containers]
    assert bars == pytest.approx([expected[name] / expected.total() for name in CLASSES])
