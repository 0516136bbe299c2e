"""Comparisons with the baseline: paired over tasks, corrected, and who is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pytest

from etrm.evaluation.statistics import difference_interval, difference_p_value, holm
from etrm.report.comparisons import OVER_SEEDS, OVER_TASKS, TEXT, comparisons
from etrm.report.formats import Table, write_table
from etrm.report.run_view import RunView


def runs(
    folder: Path, name: str, counts: Sequence[int], tasks: int = 400, first: int = 0, **more: Any
) -> list[RunView]:
    """Full runs, a seed each, that have solved so many tasks from task `first` on."""
    options: dict[str, Any] = {"experiment": name, "stage": "full", "steps": 100, **more}
    return [
        fake.run(
            folder, seed=seed, scored=fake.score(solved=count, tasks=tasks, first=first), **options
        )
        for seed, count in enumerate(counts)
    ]


def row_of(table: Table, name: str, k: int = 2) -> pd.Series:
    numbers = table.numbers
    [row] = numbers[(numbers["experiment"] == name) & (numbers["attempts"] == k)].iterrows()
    return row[1]


def credits(*counts: int, tasks: int = 400) -> np.ndarray:
    return np.array([np.arange(tasks) < count for count in counts], dtype=float)


def test_a_difference_is_that_of_credits_by_task(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (4, 6, 5)) + runs(tmp_path, "better", (30, 33, 27))
    views += runs(tmp_path, "same", (4, 6, 5)) + runs(tmp_path, "elsewhere", (5,), first=200)
    table = comparisons(views, "base")
    assert "base" not in set(table.numbers["experiment"])
    better, ours, base = row_of(table, "better"), credits(30, 33, 27), credits(4, 6, 5)
    assert better["difference"] == pytest.approx(25 / 400)
    interval = better[["difference_low", "difference_high"]].tolist()
    assert interval == pytest.approx(difference_interval(ours, base))
    assert interval[0] > 0
    assert better["p"] == pytest.approx(difference_p_value(ours, base))
    assert row_of(table, "same")["p"] == 1.0
    assert row_of(table, "better")["method"] == OVER_SEEDS
    assert row_of(table, "elsewhere")["method"] == OVER_TASKS  # one seed
    assert row_of(table, "elsewhere")["p"] == pytest.approx(1.0)  # as many, other tasks


def test_tasks_are_paired_by_name_not_by_order(tmp_path: Path) -> None:
    [base], [other] = runs(tmp_path, "base", (40,)), runs(tmp_path, "other", (40,))
    assert other.score is not None
    other.score["ranks"] = dict(reversed(other.score["ranks"].items()))
    row = row_of(comparisons([base, other], "base"), "other")
    assert row["p"] == 1.0
    assert row["difference_high"] < 0.02  # 0.05 if tasks were taken for others


def test_p_values_are_corrected_over_the_experiments_of_each_k(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (5,))
    for name, count in (("a", 15), ("b", 13), ("c", 6)):
        views += runs(tmp_path, name, (count,))
    found = comparisons(views, "base").numbers
    for k in (1, 2):
        of_k = found[found["attempts"] == k]
        assert of_k["p_holm"].tolist() == pytest.approx(holm(of_k["p"].tolist()))
        assert of_k["family"].tolist() == [3, 3, 3]
    words = found[found["attempts"] == 2]["status"].tolist()
    assert words == ["better than the baseline", "better than the baseline", "no difference shown"]


def test_a_row_without_a_difference_says_why(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (5,)) + runs(tmp_path, "fewer", (5,), tasks=32)
    views += [fake.run(tmp_path, experiment="stopped", steps=100, reached=0.5)]
    views += [fake.run(tmp_path, experiment="running", steps=100, stage="full")]
    views += runs(tmp_path, "trm", (150,), kind="trm", split="transductive")
    views += [fake.run(tmp_path, experiment="strict", stage="pretrain", kind="trm", steps=100)]
    table = comparisons(views, "base")
    assert set(table.numbers["experiment"]) == {"fewer", "stopped", "running"}
    assert row_of(table, "fewer")["status"] == "not the same tasks as the baseline's"
    assert row_of(table, "stopped")["status"].startswith("stopped: exact match 50.0 %")
    assert row_of(table, "running")["status"] == "not evaluated"
    assert any("trm" in note for note in table.notes)
    assert table.numbers["p_holm"].isna().all()


def test_a_baseline_without_a_score_says_why(tmp_path: Path) -> None:
    views = runs(tmp_path, "other", (5,))
    views += [fake.run(tmp_path, experiment="base", steps=100, reached=0.5)]
    row = row_of(comparisons(views, "base"), "other")
    assert row["status"].startswith("the baseline is stopped: exact match 50.0 %")


def test_a_partial_score_says_so_where_it_is_compared(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (5,)) + runs(tmp_path, "whole", (5,))
    partial = fake.score(solved=5, tasks=400, evaluated=399)
    views += [fake.run(tmp_path, experiment="part", stage="full", steps=100, scored=partial)]
    table = comparisons(views, "base")
    assert row_of(table, "part")["status"] == "no difference shown; partial"
    assert row_of(table, "whole")["status"] == "no difference shown"


def test_seeds_that_the_gate_has_stopped_are_told(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (5, 6, 4)) + runs(tmp_path, "some", (9, 8))
    views += [
        fake.run(tmp_path, experiment="some", seed=seed, steps=100, reached=reached)
        for seed, reached in enumerate((0.95, 0.95, 0.5))
    ]
    table = comparisons(views, "base")
    assert row_of(table, "some")[["gate_passed", "gate_seeds"]].tolist() == [2, 3]
    text = table.text[table.text["Experiment"] == "some"].iloc[0]
    assert text["Seeds"] == "2 of 3 against 3"
    assert text["Score"] == "2.1 %†"
    assert any(note.startswith("†") for note in table.notes)


@pytest.mark.parametrize("baseline", [None, "absent"])
def test_without_a_baseline_there_are_no_comparisons(baseline: str | None, tmp_path: Path) -> None:
    table = comparisons(runs(tmp_path, "one", (5,)), baseline)
    assert table.numbers.empty
    assert len(table.notes) == 1
    csv, *_ = write_table(table, tmp_path / "comparisons")
    assert pd.read_csv(csv).columns.tolist() == table.numbers.columns.tolist()


def test_the_files_say_the_same(tmp_path: Path) -> None:
    views = runs(tmp_path, "base", (25, 26)) + runs(tmp_path, "worse", (3, 2))
    table = comparisons(views, "base")
    csv, markdown, latex, page = write_table(table, tmp_path / "comparisons")
    pd.testing.assert_frame_equal(Table.of(pd.read_csv(csv), TEXT).text, table.text)
    difference = table.text["Difference, points"][0]
    assert re.fullmatch(r"−5\.8 \[−\d\.\d, −\d\.\d\]", difference)
    assert difference in markdown.read_text()
    assert difference in page.read_text()
    assert difference.replace("−", "$-$") in latex.read_text()
    assert table.text["p"][0] == "< 0.001"
