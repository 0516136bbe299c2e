"""The stage: its table and scores, against the evaluation of the same run; its cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_search import settings
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import TrackingConfig
from etrm.config.refinement import METHODS
from etrm.config.study import EvaluationConfig
from etrm.evaluation.run import evaluate_run
from etrm.refinement.run import refine_run
from etrm.refinement.scores import ranks_of, score_rows
from etrm.training.run import RunPaths, train_run

Paths = dict[str, RunPaths]
GRID = ["task", "query", "variant", "height", "width", "grid"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A strict run with an encoder, and one with embeddings of which none is a held-out task's."""
    paths = write_study(
        tmp_path_factory.mktemp("study"), make_tasks(3), make_tasks(3, seed=9, prefix="unseen")
    )
    found = {}
    for source, changes in (("in_context", {}), ("embedding", {"unseen": "mean"})):
        found[source] = replace(paths, out=paths.out / source)
        run = make_run(source, context=changes, train={"steps": 3})
        train_run(run, found[source], TrackingConfig(wandb="disabled"), device="cpu")
    return found


def refined(paths: RunPaths, out: Path, **changes: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    config = settings(variants=2, **{"methods": ["search"], **changes})
    tables = paths.tasks, paths.augmentations
    result = refine_run(paths.out, *tables, config, out, "cpu", out.parent / "state")
    return result, pd.read_parquet(out / "refinement.parquet")


@pytest.mark.parametrize("source", ["in_context", "embedding"])
def test_without_a_step_all_methods_answer_as_the_evaluation(
    runs: Paths, tmp_path: Path, source: str
) -> None:
    paths = runs[source]
    methods = METHODS if source == "in_context" else ("search",)
    result, rows = refined(paths, tmp_path / "refined", methods=list(methods))
    config = EvaluationConfig(variants=2, pass_k=(1, 2))
    tables = paths.tasks, paths.augmentations
    score = evaluate_run(paths.out, *tables, config, tmp_path / "evaluated", "cpu")
    expected = pd.read_parquet(tmp_path / "evaluated" / "predictions.parquet")[GRID]
    for method in methods:
        start = rows[(rows["method"] == method) & (rows["steps"] == 0) & (rows["attempt"] == 1)]
        pd.testing.assert_frame_equal(start[GRID].reset_index(drop=True), expected)
        found = result["methods"][method]
        assert list(found) == ["0", "1", "3"]
        assert found["0"]["pass"]["1"] == score["pass"]["1"]
        costs = [each["gflop"] for each in found.values()]
        assert costs == sorted(costs)
        assert costs[0] < costs[-1]
        assert all(each["seconds"] >= 0 for each in found.values())
    first = rows[rows["attempt"] == 1]
    assert (first["likelihood"] >= first["likelihood_start"] - 1e-9).all()
    guided = first[first["method"] == "search"].groupby("steps")["likelihood"].mean()
    assert guided.is_monotonic_increasing
    assert guided[3] > guided[0]
    assert result["methods"]["search"]["3"]["likelihood"] == pytest.approx(guided[3])


def test_a_finished_refinement_is_restored(
    runs: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, rows = refined(runs["in_context"], tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("etrm.refinement.run.refine_questions", fail)
    (tmp_path / "out" / "refinement.parquet").unlink()
    again, restored = refined(runs["in_context"], tmp_path / "out")
    assert again == result
    pd.testing.assert_frame_equal(restored, rows)
    with pytest.raises(AssertionError):  # another setting is another result
        refined(runs["in_context"], tmp_path / "out", lr=0.1)


def votes(*answers: tuple[int, int, str, bool]) -> pd.DataFrame:
    """Answers of one test input: variant, attempt, the one cell of the grid, demos solved."""
    (task,) = make_tasks(1)
    columns = {"task": task.id, "query": 0, "height": 1, "width": 1, "q_halt": 0.0}
    rows = [
        {**columns, "variant": v, "attempt": n, "grid": grid.encode(), "demos_solved": float(s)}
        | {"correct": grid == "t", "likelihood": -1.0, "likelihood_start": -2.0}
        for v, n, grid, s in answers
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("answers", "rank"),
    [
        ([(0, 1, "t", True), (0, 2, "a", True)], 1),
        ([(0, 1, "a", True), (0, 2, "t", True)], 2),
        ([(0, 1, "a", True), (1, 1, "b", True), (0, 2, "t", True), (1, 2, "t", True)], 3),
        ([(0, 1, "a", True), (1, 1, "a", True), (0, 2, "a", True), (1, 2, "t", True)], 2),
        ([(0, 1, "a", True), (0, 2, "a", True)], None),
    ],
)
def test_second_attempts_are_candidates_behind_all_first_ones(
    answers: list[tuple[int, int, str, bool]], rank: int | None, relabel: Callable[..., Any]
) -> None:
    task = relabel("t")
    assert ranks_of(votes(*answers), [task]) == {task.id: [rank]}


def test_solved_demos_are_set_against_solved_tests(relabel: Callable[..., Any]) -> None:
    rows = votes((0, 1, "t", True), (1, 1, "a", True), (2, 1, "b", False), (0, 2, "c", True))
    found = score_rows(pd.concat([rows]), [relabel("t")])
    assert found["right_where_demos_solved"] == {"numerator": 1, "denominator": 2, "value": 0.5}
    assert found["right_elsewhere"] == {"numerator": 0, "denominator": 1, "value": 0.0}
    assert found["answers"] == 3
    assert found["likelihood"] > found["likelihood_start"]
