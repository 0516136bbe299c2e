"""The synthetic study goes wrong in all the ways that it says, as the report reads it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import synthetic

from etrm.report.run_view import RunView, StudyView


@pytest.fixture(scope="module")
def runs(synthetic_study: StudyView) -> dict[tuple[str, str, int], RunView]:
    return {(v.experiment, v.stage, v.seed): v for v in synthetic_study.runs}


def test_it_is_of_twenty_experiments_and_three_seeds(synthetic_study: StudyView) -> None:
    assert len(synthetic.PLANS) == 20
    seeds = Counter(v.experiment for v in synthetic_study.runs if v.stage != "overfit")
    assert Counter(seeds.values()) == {3: 15, 2: 1, 1: 1}
    assert len(synthetic_study.tasks) == synthetic.TASKS


def test_runs_are_missing_stopped_failed_and_of_one_point(
    runs: dict[tuple[str, str, int], RunView],
) -> None:
    names = {name for name, _, _ in runs}
    assert "etrm_perceiver" not in names
    assert ("etrm_recurrent", "full", 0) not in runs
    assert runs["etrm_cached_control", "overfit", 1].stopped_by is not None
    assert runs["etrm_lpn", "overfit", 1].stopped
    assert not runs["etrm_lpn", "overfit", 0].stopped
    failed = runs["etrm_variational", "full", 1]
    assert failed.stopped
    assert failed.series("train/lm_loss").index[-1] < failed.run["steps_done"]
    assert len(runs[synthetic.LONG, "full", 0].series("train/exact_accuracy_all")) == 0
    assert len(runs[synthetic.LONG, "full", 0].series("train/lm_loss")) == 1
    assert len(runs["etrm_hybrid", "full", 2].metrics) == 0
    score = runs["etrm_lpn_deep", "full", 0].score
    assert score is not None
    assert score["partial"]


@pytest.mark.usefixtures("synthetic_study")
def test_its_files_lie_as_a_study_lays_them_out(synthetic_folder: Path) -> None:
    for name in (
        "data/tasks.parquet",
        "runs/etrm_lpn/overfit/seed2/verdict.json",
        "evaluation/trm/seed0/predictions.parquet",
    ):
        assert (synthetic_folder / name).is_file()
