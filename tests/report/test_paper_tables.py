"""The tables of a paper: their numbers, intervals and methods, over studies that went wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pytest

from etrm.evaluation.statistics import clopper_pearson, difference_interval, t_quantile
from etrm.report.ablations import ablations
from etrm.report.collapse import collapse, zone
from etrm.report.compute import compute
from etrm.report.estimates import over_seeds, twins, validation_difference, validation_of
from etrm.report.formats import NONE, to_html, to_latex, to_markdown
from etrm.report.main_tables import etrm, trm
from etrm.report.mechanisms import mechanisms
from etrm.report.registry import TABLES, load
from etrm.report.run_view import RunView, StudyView
from etrm.report.setup_tables import design_space, hyperparameters, splits

BASELINE = "etrm_standard"


def row_of(table: pd.DataFrame, name: str, column: str = "experiment") -> pd.Series:
    rows = table[table[column] == name]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_made_of_a_study_that_went_wrong_and_of_none(
    name: str, synthetic_study: StudyView
) -> None:
    for views in (synthetic_study.runs, []):
        table = load({name: TABLES[name]})[name](views, BASELINE)
        assert table.text.map(lambda cell: isinstance(cell, str)).all(axis=None)
        assert not any("nan" in str(cell) for cell in table.text.to_numpy().ravel())
        if name not in ("published", "claims") and not len(views):
            assert len(table.numbers) in (0, 3)  # of `collapse`, the published ones
        for render in (to_markdown, to_latex, to_html):
            assert render(table)


def test_brackets_are_explained_in_the_notes(synthetic_study: StudyView) -> None:
    for name, tabulate in load(TABLES).items():
        table = tabulate(synthetic_study.runs, BASELINE)
        shown = table.text.to_numpy().ravel()
        if any(" [" in cell and cell.endswith(("]", ")")) for cell in shown):
            assert any("interval" in note for note in table.notes), name


def test_collapse_has_variance_train_accuracy_and_the_published_rows(
    synthetic_study: StudyView,
) -> None:
    table = collapse(synthetic_study.runs)
    mine = [v for v in synthetic_study.runs if v.experiment == BASELINE and v.stage == "full"]
    values = np.array([v.final("train/encoder_cross_sample_var") for v in mine])
    row = row_of(table.numbers, BASELINE)
    assert row["variance"] == pytest.approx(values.mean())
    half = t_quantile(2) * values.std(ddof=1) / np.sqrt(3)
    assert row["variance_high"] - row["variance"] == pytest.approx(half)
    control = row_of(table.text, "etrm_cached_control", "Model")
    assert control["By the guide"] == "collapsed"
    assert control["Stage"] == "overfit"
    published = table.numbers[table.numbers["stage"] == "published"]
    assert published["variance"].tolist() == [0.357, 3.33, 0.146]
    assert published["train_exact"].tolist() == [0.7891, 0.4062, 0.5117]
    assert published["pass@1_high"].tolist() == pytest.approx([clopper_pearson(0, 32)[1]] * 3)
    assert [zone(v) for v in (0.05, 0.2, 0.31)] == ["collapsed", "limited", "diverse"]


def ladder(folder: Path) -> list[RunView]:
    model = {"L_cycles": 4, "H_cycles": 3}
    settings: dict[str, dict[str, Any]] = {
        "trm": {"model": {**model, "L_cycles": 6}, "episodes": {"canvas": [6, 30]}},
        "published": {"model": model, "episodes": {"canvas": [30]}, "train": {"grad_clip": None}},
        "lanes": {"model": model, "episodes": {"canvas": [6, 30]}, "train": {"grad_clip": None}},
        "clipping": {"model": model, "episodes": {"canvas": [6, 30]}, "train": {"grad_clip": 1.0}},
    }
    common: dict[str, Any] = {"kind": "trm", "stage": "pretrain", "split": "transductive"}
    settings["trm"]["train"] = {"grad_clip": 1.0}
    return [
        fake.run(
            folder,
            experiment=name,
            steps=100,
            config=config,
            scored=fake.score(solved=solved, tasks=20, seen=20),
            **common,
        )
        for (name, config), solved in zip(settings.items(), (9, 8, 5, 7), strict=True)
    ]


def test_a_rung_is_compared_with_the_one_that_it_changes_least(tmp_path: Path) -> None:
    table = trm(ladder(tmp_path))
    runs = table.numbers.set_index("experiment")
    assert pd.isna(runs.loc["trm", "compared_with"])
    assert runs.loc["lanes", "compared_with"] == "published"
    assert runs.loc["clipping", "compared_with"] == "lanes"  # as near as trm, and later
    assert "episodes.canvas [30] → [6, 30]" in runs.loc["lanes", "change"]
    low = difference_interval(*(np.arange(20)[None] < n for n in (5, 8)))[0]
    assert runs.loc["lanes", "difference_low"] == pytest.approx(low)
    text = table.text["Experiment"].tolist()
    assert text[:4] == list(runs.index)
    elsewhere = fake.run(tmp_path, experiment="w", kind="trm", stage="pretrain", steps=100)
    elsewhere.run["config"]["context"]["unseen"] = "mean"  # strict, but asked: of other tasks
    with_it = trm([*ladder(tmp_path / "again"), elsewhere]).numbers.set_index("experiment")
    assert pd.isna(with_it.loc["w", "compared_with"])
    assert all("published, " in name for name in text[4:])
    assert "45 % [40.1, 50.0] (of 400)" in table.text["pass@2"].tolist()


def test_results_of_encoders_are_those_of_the_results_table(synthetic_study: StudyView) -> None:
    table = etrm(synthetic_study.runs, BASELINE)
    assert not set(table.numbers["experiment"]) & {"trm", "trm_strict"}
    row = table.text[table.text["Experiment"] == BASELINE].iloc[0]
    assert row["Status"] == "evaluated; baseline"
    assert row["pass@1"].endswith(" of 20)")
    assert table.text["Experiment"].tolist().count("etrm_lpn") == 2  # passed, and stopped


def test_mechanisms_say_what_guides_them(synthetic_study: StudyView) -> None:
    table = mechanisms(synthetic_study.runs, BASELINE).numbers
    guides = dict(zip(table["mechanism"], table["guided_by"], strict=True))
    assert guides["latent search"] == guides["test-time training"] == "demos, when asked"
    assert guides["random directions"] == guides["more ACT steps"] == "none"
    search = table[(table["mechanism"] == "latent search") & (table["experiment"] == BASELINE)]
    assert search["steps"].tolist() == [100]
    assert search["gain"].tolist() == pytest.approx([0.1])
    assert search["gain_low"].iloc[0] < search["gain"].iloc[0] < search["gain_high"].iloc[0]
    shown = set(table.loc[table["mechanism"] == "one pass of the encoder", "experiment"])
    assert shown == {BASELINE, "etrm_cross_attention"}  # the baseline, and those refined


def test_ablations_name_the_changed_keys_and_pair_what_they_can(synthetic_study: StudyView) -> None:
    numbers = ablations(synthetic_study.runs, BASELINE).numbers
    assert row_of(numbers, "etrm_cached_control")["changed"] == "train.cache_context"
    assert row_of(numbers, "etrm_hybrid")["changed"] == "context.source"
    two = row_of(numbers, "etrm_standard_steps8_explore70")
    assert two["changed"].split() == ["halting.max_steps", "halting.exploration_prob"]
    assert (numbers["changed"].str.count(" ").diff().dropna() >= 0).all()  # fewest keys first
    assert BASELINE not in set(numbers["experiment"])
    in_context = row_of(numbers, "etrm_in_context")
    assert (in_context["tasks"], in_context["validation_tasks"]) == (20, 100)
    views = {
        name: [v for v in synthetic_study.runs if v.experiment == name and v.stage == "full"]
        for name in ("etrm_in_context", BASELINE)
    }
    found = validation_difference(*views.values())
    assert found is not None
    assert in_context["validation_low"] == pytest.approx(found.low)
    assert ablations(synthetic_study.runs, None).numbers.empty


def test_an_interval_of_validation_holds_its_mean_and_is_of_its_tasks(
    synthetic_study: StudyView,
) -> None:
    mine = [v for v in synthetic_study.runs if v.experiment == BASELINE and v.stage == "full"]
    found = validation_of(mine)
    assert found is not None
    assert found.low < found.value < found.high
    assert (found.tasks, found.seeds) == (100, 3)


def test_student_s_interval_over_seeds_stays_within_a_share() -> None:
    row = over_seeds([0.9, None, 0.99], "x", share=True)
    assert row["x"] == pytest.approx(0.945)
    assert row["x_high"] == 1.0
    low, half = row["x_low"], t_quantile(1) * 0.045
    assert low is not None
    assert low == pytest.approx(max(0.0, 0.945 - half))
    assert over_seeds([0.4])["value_low"] is None
    assert over_seeds([])["value"] is None


def test_compute_sums_the_hours_of_all_ranks(tmp_path: Path) -> None:
    view = fake.run(tmp_path, steps=100)
    two = dataclasses.replace(view, run={**view.run, "ranks": 4, "seed": 1})
    table = compute([view, two])
    assert table.numbers["device_hours"].tolist() == pytest.approx([150 * 5 / 3600])
    assert table.numbers["hours"].tolist() == pytest.approx([150 / 3600])
    assert table.text["Device"].tolist() == ["4 × cpu"]
    assert any("In all 2 runs" in note for note in table.notes)


def test_splits_count_what_each_kind_of_run_has_seen(tmp_path: Path) -> None:
    view = fake.run(tmp_path, stage="full", steps=100, scored=fake.score(solved=1, tasks=20))
    view.run.update(tasks=["a", "b"], puzzles=16, lanes={"3": 5, "6": 12})
    overfit = fake.run(tmp_path, steps=100)
    table = splits([view, overfit])
    assert table.numbers["stage"].tolist() == ["overfit", "full"]
    row = table.numbers.iloc[1]
    assert (row["training_tasks"], row["puzzles"], row["questions"]) == (2, 16, 17)
    assert (row["held_out_tasks"], row["test_outputs"], row["not_fitting"]) == (20, 20, 1)
    assert table.text["Seen"].tolist() == [NONE, "0 (proven)"]


def test_the_design_space_is_of_keys_that_vary(synthetic_study: StudyView) -> None:
    table = design_space(synthetic_study.runs, BASELINE)
    assert table.numbers["key"].tolist() == [
        *("context.source", "halting.max_steps", "halting.exploration_prob"),
        "train.cache_context",
    ]
    steps = row_of(table.numbers, "halting.max_steps", "key")
    assert (steps["explored"], steps["baseline"]) == ("16 (13), 8 (2), 32 (2)", "16")


def test_hyperparameters_stand_side_by_side(synthetic_study: StudyView) -> None:
    text = hyperparameters(synthetic_study.runs).text.set_index("Setting")
    assert text.loc["context.source", "TRM"] == "embedding"
    assert text.loc["halting.max_steps", "ETRM, full"] == "16; 8; 32"
    assert text.loc["train.batch_size"].tolist() == ["32"] * 3


def test_twins_differ_in_the_named_key_alone(synthetic_study: StudyView) -> None:
    pairs = twins(synthetic_study.runs, ["halting.max_steps"])
    assert ("etrm_standard", "etrm_standard_steps8_explore50") in pairs
    assert ("etrm_standard", "etrm_standard_steps8_explore70") not in pairs
