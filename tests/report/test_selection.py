"""The table of selection: validated experiments, the best first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fake
import pytest

from etrm.report.collect import collect
from etrm.report.run_view import RunView
from etrm.report.selection import selection
from etrm.report.tables import outcome


def validated(folder: Path, name: str, seed: int, exact: float) -> RunView:
    view = fake.run(folder, experiment=name, seed=seed, stage="full", reached=0.9, steps=200)
    metrics = view.metrics.copy()
    last = metrics.index[-1:]
    metrics["validation.exact_accuracy"] = float("nan")
    metrics.loc[metrics.index[5], "validation.exact_accuracy"] = 1.0  # an earlier evaluation
    metrics.loc[last, "validation.exact_accuracy"] = exact
    metrics.loc[last, "validation.count"] = 40.0
    return dataclasses.replace(view, metrics=metrics)


def test_experiments_are_ranked_by_their_last_validation(tmp_path: Path) -> None:
    exact = {("one", 0): 0.1, ("one", 1): 0.2, ("two", 0): 0.5}
    views = [validated(tmp_path, name, seed, share) for (name, seed), share in exact.items()]
    views[0] = dataclasses.replace(views[0], finalist=False)
    views += [fake.run(tmp_path, experiment="unknown", stage="full", steps=200)]
    table = selection(views)
    assert list(table.numbers["experiment"]) == ["two", "one"]
    assert list(table.numbers["numerators"]) == ["20", "4 8"]
    assert list(table.numbers["finalist"]) == [True, False]
    one = table.numbers.iloc[1]
    assert one["validation_exact"] == pytest.approx(0.15)
    assert one["gap"] == pytest.approx(one["train_exact"] - 0.15)
    assert table.text.iloc[1]["Validation exact match"] == "15.0 % ± 7.1"
    assert table.text.iloc[0]["Right answers"] == "20 of 40"
    assert len(selection(views[3:]).numbers) == 0


def test_a_run_without_an_evaluation_over_its_episodes_has_the_last_samples(tmp_path: Path) -> None:
    view = validated(tmp_path, "one", 0, 0.5)
    metrics = view.metrics.drop(columns="all.exact_accuracy")
    sampled = dataclasses.replace(view, metrics=metrics)
    numbers = selection([sampled]).numbers
    assert numbers.iloc[0]["train_exact"] == sampled.final("train/exact_accuracy") > 0.5
    neither = metrics.drop(columns="train/exact_accuracy")
    (row,) = selection([dataclasses.replace(view, metrics=neither)]).text.to_dict("records")
    assert (row["Train exact match"], row["Gap"]) == ("–", "–")


def test_who_is_no_finalist_is_not_evaluated(tmp_path: Path) -> None:
    """But by its score, where it has one."""
    scored = fake.score(solved=1, tasks=20)
    for name, score in (("one", None), ("two", None), ("three", scored)):
        fake.run(tmp_path, experiment=name, stage="full", steps=200, scored=score)
    files = [path for path in sorted(tmp_path.rglob("*.json")) if path.is_file()]
    found = {view.experiment: outcome(view) for view in collect(files, ["one"])}
    assert found == {
        "one": "not evaluated",
        "two": "not a finalist: not evaluated on test",
        "three": "evaluated",
    }
    assert {outcome(view) for view in collect(files)} == {"not evaluated", "evaluated"}
