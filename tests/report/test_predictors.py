"""Which measure predicts the outcome: the correlation, the table, and the figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import fake
import numpy as np
import pytest
from readable import assert_readable, words_of
from test_figures import study

from etrm.report.correlation import rank_correlation
from etrm.report.predictors import LEAST, predictors, strata
from etrm.report.predictors_figure import PANELS
from etrm.report.predictors_figure import predictors as figure
from etrm.report.run_view import RunView

KNOWS, NOISE, CONSTANT = (
    *("encoder/puzzle_knn_accuracy", "train/encoder_cross_sample_var"),
    "encoder/effective_rank",
)


def runs(
    folder: Path, experiments: int, seeds: int = 1, sources: list[str] | None = None, first: int = 0
) -> list[RunView]:
    """Full runs whose score rises with one measure; another one is a fixed noise, a third constant.

    The read-out of the rule falls as the score rises, and rises over that of untrained weights.
    """
    found = []
    for number in range(experiments * seeds):
        name, seed = f"etrm_{first + number // seeds}", number % seeds
        scored = fake.score(solved=2 * number, tasks=100) | {
            "readout": {"rule": {"accuracy": 1 - number / 100, "untrained": 0.9 - number / 50}}
        }
        common = {"experiment": name, "seed": seed, "steps": 200, "config": {"sources": sources}}
        view = fake.run(folder, stage="full", scored=scored, **common)
        rows = view.metrics.copy()
        rows[KNOWS] = np.linspace(0.9, 0.1 + number / 100, len(rows))  # the end counts
        rows[NOISE] = np.random.default_rng(number).random()
        rows[CONSTANT] = 3.0
        found.append(dataclasses.replace(view, metrics=rows))
    return found


def test_ranks_and_their_correlation_are_known_by_hand() -> None:
    names = list("abcdef")
    found = rank_correlation([1, 2, 3, 4, 5, 60], [1, 3, 2, 4, 6, 5], names)
    assert found is not None
    assert found.value == pytest.approx(1 - 6 * 4 / (6 * 35))  # differences 0, 1, 1, 0, 1, 1
    tied = rank_correlation([1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1], names)
    assert tied is not None
    x, y = [1.5, 1.5, 3.5, 3.5, 5.5, 5.5], [2, 2, 2, 5, 5, 5]
    assert tied.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert rank_correlation([1, 2, 3], [1, 1, 1], names[:3]) is None


def test_an_order_that_agrees_fully_still_has_an_interval() -> None:
    lows = []
    for n in (5, 10, 20):
        found = rank_correlation(range(n), range(n), [str(i) for i in range(n)])
        assert found is not None
        assert found.low is not None
        assert (found.value, found.high) == (pytest.approx(1.0), pytest.approx(1.0))
        lows.append(found.low)
    assert 0.0 < lows[0] < 0.5 < lows[1] < lows[2] < 1.0


def test_seeds_that_are_alike_count_once_and_others_count_each() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i // 4) for i in range(32)]
    x, y = rng.normal(size=(2, 8))
    alike = rank_correlation(x.repeat(4), y.repeat(4), groups)
    single = rank_correlation(x, y, groups[::4])
    assert alike is not None
    assert single is not None
    assert alike.effective == pytest.approx(8)
    assert alike.value == pytest.approx(single.value)
    assert (alike.low, alike.high) == (pytest.approx(single.low), pytest.approx(single.high))
    free = rank_correlation(*rng.normal(size=(2, 32)), groups)
    assert free is not None
    assert free.effective > 28


@pytest.mark.parametrize(("experiments", "seeds"), [(12, 1), (8, 3)])
@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_intervals_cover_the_true_correlation(experiments: int, seeds: int, rho: float) -> None:
    """Half of the variance of several seeds is their experiment's."""
    rng = np.random.default_rng(experiments)
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of a normal distribution
    groups = [str(i // seeds) for i in range(experiments * seeds)]
    mix, share, covered, times = np.array([[1, 0], [rho, np.sqrt(1 - rho**2)]]), 0.5, 0, 400
    for _ in range(times):
        own = mix @ rng.normal(size=(2, experiments * seeds))
        common = (mix @ rng.normal(size=(2, experiments))).repeat(seeds, axis=1)
        x, y = np.sqrt(share) * common + np.sqrt(1 - share) * own if seeds > 1 else own
        found = rank_correlation(x, y, groups)
        assert found is not None
        covered += found.low is None or found.high is None or found.low <= true <= found.high
    assert covered / times >= 0.92


def test_the_measure_that_predicts_is_first_and_noise_is_none(tmp_path: Path) -> None:
    table = predictors(runs(tmp_path, 12))
    rows = table.numbers.set_index("measure")
    knows, noise, constant = rows.loc[KNOWS], rows.loc[NOISE], rows.loc[CONSTANT]
    assert knows["correlation"] == pytest.approx(1.0)
    assert knows["low"] > 0.9
    assert rows.loc["readout/rule", "correlation"] == pytest.approx(-1.0)
    assert rows.loc["readout/rule_gain", "correlation"] == pytest.approx(1.0)
    assert set(table.numbers["measure"][:3]) == {KNOWS, "readout/rule", "readout/rule_gain"}
    assert noise["low"] < 0.0 < noise["high"]
    assert np.isnan(constant["correlation"])
    assert "same for all runs" in constant["status"]
    assert set(rows["outcome"]) == {"pass@1"}
    assert set(rows["runs"]) == {12}
    text = table.text.set_index("Measure")["Rank correlation"]
    assert text[KNOWS] == f"+1.00 [+{knows['low']:.2f}, +1.00]"
    assert text[CONSTANT] == "–"
    assert "train/encoder_frozen" not in rows.index
    order = table.numbers["correlation"].abs().dropna()
    assert order.is_monotonic_decreasing


def test_only_runs_of_the_same_split_and_sources_are_pooled(tmp_path: Path) -> None:
    """By two orders that contradict each other, neither of which is lost in the other."""
    first = runs(tmp_path, 6, sources=["a", "b"])
    other = runs(tmp_path, 6, sources=["c"], first=6)
    for number, view in enumerate(other):
        view.metrics[KNOWS] = 0.5 - number / 100
    pretrained = fake.run(tmp_path, experiment="trm", kind="trm", stage="pretrain", steps=200)
    table = predictors([*first, *other, pretrained]).numbers
    found = table[table["measure"] == KNOWS].set_index("sources")["correlation"]
    assert found.to_dict() == {"a b": pytest.approx(1.0), "c": pytest.approx(-1.0)}


def test_few_runs_have_no_correlation(tmp_path: Path) -> None:
    table = predictors(runs(tmp_path, LEAST - 1)).numbers
    assert table["correlation"].isna().all()
    assert set(table["status"]) == {f"fewer than {LEAST} runs"}
    assert predictors([]).numbers.empty
    assert predictors([]).notes


def test_validation_is_the_outcome_where_there_are_no_scores(tmp_path: Path) -> None:
    views = runs(tmp_path, 6)
    for number, view in enumerate(views):
        view.metrics["validation.exact_accuracy"] = 0.5 - number / 100
    assert [stratum.outcome for stratum in strata(views)] == ["pass@1"]
    bare = [dataclasses.replace(view, score=None) for view in views[1:]]
    table = predictors([views[0], *bare]).numbers.set_index("measure")
    assert set(table["outcome"]) == {"validation.exact_accuracy"}
    assert table.loc[KNOWS, "correlation"] == pytest.approx(-1.0)


def test_runs_that_were_stopped_at_the_gate_are_told(tmp_path: Path) -> None:
    views = runs(tmp_path, 6)
    stopped = fake.run(tmp_path, experiment="stopped", reached=0.2, steps=200)
    assert len(predictors([*views, stopped]).notes) == len(predictors(views).notes) + 1


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda folder: [], "no full run with an encoder"),
        (lambda folder: runs(folder, 1), "1 run"),
        (lambda folder: runs(folder, 4, seeds=3), "+1.00"),
    ],
    ids=["none", "one", "many"],
)
def test_the_figure_can_be_read(
    make: Callable[[Path], list[RunView]], shown: str, tmp_path: Path
) -> None:
    views = make(tmp_path)
    fig = figure(study(views))
    assert shown in words_of(fig)
    assert_readable(fig)
    if views:
        drawn = {axes.get_title().split("\n")[0]: axes for axes in fig.axes if axes.axison}
        assert set(drawn) <= set(PANELS.values())
        assert PANELS["encoder/between_puzzle_ratio"] not in drawn  # not logged
        axes = drawn[PANELS[KNOWS]]
        assert len(axes.lines) == len(views)
        assert len({line.get_color() for line in axes.lines}) == len({v.experiment for v in views})
        x, y = (np.concatenate([get(line) for line in axes.lines]) for get in GETTERS)
        assert axes.get_xlim()[0] <= x.min()
        assert x.max() <= axes.get_xlim()[1]
        assert y.tolist() == [view.test_metric("ARC/pass@1") for view in views]


GETTERS = (lambda line: line.get_xdata(), lambda line: line.get_ydata())
