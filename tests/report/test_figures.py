"""The figures: their lines and words, and that no text lies over other text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from readable import assert_readable, legend_of, texts, words_of

from etrm.arc.task import Pair, Task
from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig, guide_rules
from etrm.report.curves import over_seeds, smoothed
from etrm.report.figures import (
    encoder_probe,
    encoder_statistics,
    gradient_flow,
    overfit_dynamics,
    training_curves,
)
from etrm.report.qualitative import choose, draw_answers
from etrm.report.run_view import RunView, StudyView

STYLE = FigureStyle()
ENDS = ("end of a stopped run", "all episodes, averaged weights")
ETRM = ("etrm_standard_h16", "etrm_standard_h8", "etrm_cached_control")


def study(views: list[RunView], style: FigureStyle = STYLE) -> StudyView:
    return StudyView(views, style, HealthConfig())


def test_text_over_text_would_be_found(views: list[RunView]) -> None:
    fig = training_curves(study(views))
    fig.axes[0].text(0.5, 1.08, "in the way", transform=fig.axes[0].transAxes, ha="center")
    with pytest.raises(AssertionError, match="lies over"):
        assert_readable(fig)


def labelled(axes: Axes) -> dict[str, Any]:
    """The lines that carry an experiment's name."""
    return {str(line.get_label()): line for line in axes.lines if str(line.get_label())[0] != "_"}


@pytest.fixture(scope="module")
def curves(views: list[RunView]) -> Figure:
    return training_curves(study(views))


def test_training_curves_show_each_stage_with_trm_dashed(curves: Figure) -> None:
    pretrain, overfit, full = curves.axes
    assert set(labelled(pretrain)) == {"trm", "trm_strict"}
    assert set(labelled(overfit)) == set(ETRM)
    assert set(labelled(full)) == set(ETRM[:2])
    assert {line.get_linestyle() for line in labelled(pretrain).values()} == {"--"}
    assert {line.get_linestyle() for line in labelled(overfit).values()} == {"-"}
    assert legend_of(curves) == ["trm", "trm_strict", *ETRM, "gate: 90 %", *ENDS]
    assert_readable(curves)


def test_training_curves_mark_the_gate_and_where_a_run_stopped(
    curves: Figure, views: list[RunView]
) -> None:
    pretrain, overfit, full = curves.axes
    gates = [line for line in overfit.lines if np.array_equal(line.get_ydata(), [0.9, 0.9])]
    assert len(gates) == 1
    crosses = [line for line in overfit.lines if line.get_marker() == "X"]
    assert [line.get_xdata()[0] for line in crosses] == [
        views[-1].series("train/exact_accuracy").index[-1]
    ]
    assert crosses[0].get_color() == labelled(overfit)["etrm_cached_control"].get_color()
    for axes in (pretrain, full):
        assert not [line for line in axes.lines if line.get_marker() == "X"]


def test_several_seeds_become_a_mean_and_a_band(seeded: list[RunView]) -> None:
    fig = training_curves(study(seeded))
    assert len(labelled(fig.axes[1])) == len(ETRM)
    assert len(fig.axes[1].collections) == len(ETRM)
    assert_readable(fig)


def test_over_seeds_is_their_mean_low_and_high(seeded: list[RunView]) -> None:
    curves = [smoothed(view, "train/exact_accuracy") for view in seeded if view.experiment == "trm"]
    band = over_seeds([*curves, curves[0].iloc[:5]])
    assert (band["low"] <= band["mean"] + 1e-12).all()
    assert (band["mean"] <= band["high"] + 1e-12).all()
    last = band.iloc[-1]
    ends = [curve.iloc[-1] for curve in curves if curve.index[-1] == band.index[-1]]
    assert last["mean"] == pytest.approx(np.mean(ends))  # the short curve no longer counts


def test_steps_without_halted_samples_do_not_count(views: list[RunView]) -> None:
    view = views[0]
    count = view.metrics.set_index("step")["train/halted"]
    shown = view.series("train/exact_accuracy")
    assert (count == 0).any()
    assert set(shown.index) == set(count.index[count > 0])
    curve = smoothed(view, "train/exact_accuracy")
    window = len(curve) // 20
    first = np.average(shown.iloc[:window], weights=count.loc[shown.index].iloc[:window])
    assert curve.iloc[0] == pytest.approx(first)


def test_encoder_statistics_are_two_by_two_for_etrm_only(
    curves: Figure, views: list[RunView]
) -> None:
    """And an experiment has one colour in all figures."""
    fig = encoder_statistics(study(views))
    assert len(fig.axes) == 4
    colours = [
        labelled(axes)[name].get_color() for name in ETRM for axes in (fig.axes[0], curves.axes[1])
    ]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == len(ETRM)
    for axes in fig.axes:
        assert set(labelled(axes)) == set(ETRM)
    levels = [line.get_ydata()[0] for line in fig.axes[0].lines if line.get_linestyle() == ":"]
    assert levels == [0.1, 0.3]
    assert legend_of(fig) == list(ETRM)
    assert_readable(fig)


def test_gradient_flow_shows_the_starved_control(views: list[RunView]) -> None:
    fig = gradient_flow(study(views))
    norm, share, coverage, _ = fig.axes
    for axes, bound in ((norm, 0.05), (share, 0.1), (coverage, 0.5)):
        lines = labelled(axes)
        assert np.median(lines["etrm_cached_control"].get_ydata()) < bound
        assert np.median(lines["etrm_standard_h8"].get_ydata()) > bound
        low, high = axes.get_ylim()
        assert low < 0 < bound < high  # zero and the threshold are in sight
    assert_readable(fig)


def test_the_metric_that_ended_a_run_is_shown_with_its_threshold(tmp_path: Path) -> None:
    good = fake.run(tmp_path, experiment="good")
    ended = {"starved": True, "reached": 0.1, "stopped_early": fake.EVENT["finding"]}
    control = fake.run(tmp_path, experiment="control", steps=500, **ended)
    assert (good.stopped_by, control.stopped_by) == (None, fake.EVENT)
    fig = overfit_dynamics(study([good, control]))
    *usual, last = fig.axes
    metric, bound = fake.EVENT["metric"], fake.EVENT["threshold"]
    assert len(usual) == 3
    assert metric in last.get_title()
    lines = labelled(last)
    assert (lines["control"].get_ydata() < bound).all()
    assert (lines["good"].get_ydata() > bound).all()
    assert [line.get_ydata()[0] for line in last.lines if line.get_linestyle() == ":"] == [bound]
    (cross,) = [line for line in last.lines if line.get_marker() == "X"]
    assert cross.get_xdata()[0] == control.series(metric).index[-1]
    assert not [line for axes in usual for line in axes.lines if line.get_marker() == "X"]
    assert_readable(fig)
    for views in ([good], [control]):  # a panel less, and a threshold far above the curve
        fig = overfit_dynamics(study(views))
        assert_readable(fig)
    assert fig.axes[3].get_ylim()[1] > bound


def test_the_untrained_value_of_a_probe_is_a_dashed_line(tmp_path: Path) -> None:
    seeds = [fake.run(tmp_path, experiment="one", seed=seed, steps=300) for seed in (0, 1)]
    views = []
    for view, first in zip(seeds, (0.2, 0.4), strict=True):
        metrics = view.metrics.assign(**{"encoder/puzzle_knn_accuracy": 0.9})
        start = pd.DataFrame({"step": [0], "encoder/puzzle_knn_accuracy": [first]})
        views.append(RunView(view.run, pd.concat([start, metrics], ignore_index=True)))
    fig = encoder_probe(study(views))
    floors = [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in floors] == [pytest.approx(0.3)]
    assert floors[0].get_color() == labelled(fig.axes[0])["one"].get_color()
    assert_readable(fig)


def test_a_missing_stage_is_said_in_words(views: list[RunView]) -> None:
    fig = training_curves(study([view for view in views if view.stage == "overfit"]))
    for words in ("no pretraining run has", "no full run has", "exact match"):
        assert words in words_of(fig)
    assert_readable(fig)


@pytest.mark.parametrize("bound", [None, 0.05])
def test_thresholds_that_are_off_or_in_one_place(views: list[RunView], bound: float | None) -> None:
    """As studies have them whose runs are too short for the guide's."""
    rules = guide_rules()
    for name in ("gradient_starvation", "collapse"):
        rules[name] = dataclasses.replace(rules[name], warn=bound, fail=bound, stop=None)
    of = dataclasses.replace(study(views), health=HealthConfig(rules=rules))
    for make in (gradient_flow, encoder_statistics):
        fig = make(of)
        assert_readable(fig)
        ends = [text.get_text() for text in fig.axes[0].texts]
        assert len(ends) == (bound is not None)


def test_a_metric_that_no_run_has_is_said_in_words(views: list[RunView]) -> None:
    metric = "train/encoder_token_std"
    frames = [view.metrics.drop(columns=metric, errors="ignore") for view in views]
    without = [RunView(v.run, frame) for v, frame in zip(views, frames, strict=True)]
    fig = encoder_statistics(study(without))
    assert sum(axes.axison for axes in fig.axes) == 3  # and no empty panel
    assert metric in words_of(fig).replace(" ", "")
    assert_readable(fig)


def test_values_that_are_not_finite_are_left_out(views: list[RunView]) -> None:
    view = next(view for view in views if view.experiment == ETRM[0])
    metrics = view.metrics.copy()
    metrics.loc[metrics.index[-3:], "grad/encoder_norm"] = [np.inf, np.nan, -np.inf]
    fig = gradient_flow(study([RunView(view.run, metrics)]))
    assert np.isfinite(fig.axes[0].get_ylim()).all()
    assert_readable(fig)


def test_smaller_text_stays_readable(views: list[RunView]) -> None:
    """Larger text is tried with all figures (`test_all_figures`)."""
    style = FigureStyle(font_scale=0.8)
    for make in (training_curves, encoder_statistics, gradient_flow, overfit_dynamics):
        assert_readable(make(study(views, style)))


def panels(fig: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in fig.axes for image in axes.images]


def test_qualitative_shows_grids_marks_and_votes() -> None:
    tasks = fake.tasks(6, tests=2)
    predictions = {
        "trm": fake.predictions(tasks, right=1.0),
        "etrm": fake.predictions(tasks, right=0.0),
    }
    counts = {"trm": Counter(right=3), "etrm": Counter(nearly=1, size=3)}
    fig = draw_answers(tasks, predictions, FigureStyle(qualitative_tasks=3), counts=counts)
    words = words_of(fig)
    assert words.count("✓ 8/8") == 3
    assert words.count("✗") == 3
    assert "100.0 % right of 3" in words
    assert "0.0 % right of 4" in words
    assert all(task.id in words for task, _ in choose(tasks, predictions, 3, 0))
    task, query = choose(tasks, predictions, 3, 0)[0]
    shown = panels(fig)
    pair, demo = task.queries[query], task.demos[0]
    expected = [demo.input, demo.output, pair.input, pair.output]
    expected.append(pair.output)  # of the one that is always right
    assert all(np.array_equal(*both) for both in zip(shown, expected, strict=False))
    widths = [[bar.get_width() for bar in axes.patches] for axes in fig.axes if axes.patches]
    assert widths == [[1, 0, 0, 0, 0, 0], [0, 0.25, 0, 0, 0.75, 0]]  # in the order of the classes
    assert fig.get_figwidth() <= STYLE.width + 1e-9
    assert_readable(fig)


def test_cells_of_a_column_are_equally_large() -> None:
    small, large = np.ones((2, 2), np.uint8), np.ones((3, 12), np.uint8)
    task = Task("a", (Pair(small, large),), (Pair(large, small),))
    fig = draw_answers([task], {"trm": fake.predictions([task], right=1.0)}, STYLE)
    fig.draw_without_rendering()
    sizes = []
    for axes in fig.axes:
        box, (left, right) = axes.get_window_extent(), axes.get_xlim()
        sizes.append(round(box.width / (right - left), 6))
    assert sizes[0] == sizes[1]  # the demo's, beside each other
    assert len(set(sizes[2:])) == 1


def test_rows_of_flat_grids_have_room_for_their_shares() -> None:
    flat = np.arange(10, dtype=np.uint8)[None]
    tasks = [Task(f"flat{i}", (Pair(flat, flat),), (Pair(flat, flat),)) for i in range(4)]
    predictions = {name: fake.predictions(tasks) for name in ("one", "two", "three")}
    counts = {name: Counter(right=1, structured=2) for name in predictions}
    fig = draw_answers(tasks, predictions, STYLE, counts=counts)
    assert_readable(fig)
    bars = [axes.get_window_extent() for axes in fig.axes if axes.patches]
    words = [box for text, box in texts(fig) if "right" in text and "of 3" in text]
    assert len(bars) == len(words) == 3
    assert not any(bar.overlaps(box) for bar in bars for box in words)


def test_the_choice_of_tasks_is_seeded_and_asks_for_all_experiments() -> None:
    tasks = fake.tasks(12)
    full, half = fake.predictions(tasks), fake.predictions(tasks[:6])
    both = {"one": full, "two": half}
    chosen = choose(tasks, both, 4, 0)
    assert chosen == choose(tasks[::-1], both, 4, 0)
    assert {task.id for task, _ in chosen} <= {task.id for task in tasks[:6]}
    assert len(chosen) == 4
    assert len({tuple(t.id for t, _ in choose(tasks, both, 4, seed)) for seed in range(8)}) > 1
    apart = {"one": fake.predictions(tasks[:3]), "two": fake.predictions(tasks[3:6])}
    assert len(choose(tasks, apart, 9, 0)) == 6  # none has all: any will do


def test_unknown_outputs_are_never_chosen() -> None:
    first = fake.tasks(1)[0]
    unlabelled = Task(first.id, first.demos, (Pair(first.queries[0].input, None),))
    predictions = {"trm": fake.predictions([unlabelled])}
    fig = draw_answers([unlabelled], predictions, STYLE)
    assert "no evaluated test query has a known output" in words_of(fig)


def test_an_experiment_without_a_prediction_and_an_empty_one_are_said_in_words() -> None:
    tasks = fake.tasks(2)
    empty = fake.predictions(tasks[:1]).assign(height=0, width=0, grid=b"")
    fig = draw_answers(tasks, {"one": empty, "two": fake.predictions(tasks[1:])}, STYLE)
    assert "empty" in words_of(fig)
    assert words_of(fig).count("not asked") == 2
    assert_readable(fig)


def test_many_experiments_with_long_names_are_rows() -> None:
    tasks = fake.tasks(2)
    long = "etrm_hierarchical_encoder_with_contrastive_loss_and_frozen_decoder"
    predictions = {f"{long}_{i}": fake.predictions(tasks, seed=i) for i in range(7)}
    fig = draw_answers(tasks, predictions, STYLE)
    names = [text.replace("\n", "") for text, _ in texts(fig)]
    assert all(names.count(name) == 1 for name in predictions)
    assert_readable(fig, predictions)


def test_as_many_tasks_are_shown_as_fit() -> None:
    tasks = fake.tasks(12)
    predictions = {"trm": fake.predictions(tasks)}
    chosen = [task.id for task, _ in choose(tasks, predictions, 9, 0)]
    for width, fit in ((7.0, 4), (3.4, 1)):
        style = FigureStyle(width=width, qualitative_tasks=9)
        fig = draw_answers(tasks, predictions, style)
        shown = [text for text, _ in texts(fig) if text in chosen]
        assert shown == chosen[: len(shown)]
        assert len(shown) >= fit
        assert_readable(fig)


def test_no_evaluated_experiment_is_said_in_words() -> None:
    assert "no experiment has been evaluated yet" in words_of(
        draw_answers(fake.tasks(2), {}, STYLE)
    )


def test_a_dot_is_the_last_evaluation_of_a_run_that_was_not_stopped(tmp_path: Path) -> None:
    good = fake.run(tmp_path, experiment="good", stage="overfit", reached=0.95)
    bad = fake.run(tmp_path, experiment="bad", stage="overfit", reached=0.2, starved=True)
    figure = training_curves(study([good, bad], FigureStyle()))
    dots = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    last = good.series("all.exact_accuracy")
    assert [(d.get_xdata()[0], d.get_ydata()[0]) for d in dots] == [(last.index[-1], last.iloc[-1])]
    assert ENDS[1] in legend_of(figure)


def test_the_full_panel_has_a_dotted_curve_of_validation(views: list[RunView]) -> None:
    """Through the values of `validation.exact_accuracy` at their steps, in no other panel."""
    validated = []
    for view in views:
        metrics = view.metrics.copy()
        if view.stage == "full":
            metrics["validation.exact_accuracy"] = metrics["all.exact_accuracy"] / 4
        validated.append(dataclasses.replace(view, metrics=metrics))
    fig = training_curves(study(validated))
    assert_readable(fig)
    assert "validation tasks" in words_of(fig)
    *others, full = fig.axes
    full_runs = [view for view in validated if view.stage == "full"]
    dotted = [line for line in full.lines if line.get_marker() == "."]
    assert not [line for axes in others for line in axes.lines if line.get_marker() == "."]
    assert len(dotted) == len(full_runs) == 2
    for line, view in zip(dotted, full_runs, strict=True):
        assert line.get_ydata() == pytest.approx(view.series("validation.exact_accuracy"))
    assert "validation tasks" not in words_of(training_curves(study(views)))
