"""The figures of answers: pass@k with intervals, votes, halting options, and sizes of encoders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from readable import legend_of, words_of

from etrm.report.answer_figure import answer
from etrm.report.encoders_figure import encoders, size_of
from etrm.report.estimates import Estimate, by_experiment, score_of
from etrm.report.halting_figure import halting, halting_grid
from etrm.report.run_view import StudyView
from etrm.report.style import INK
from etrm.report.voting_figure import pass_curve, voting


@pytest.fixture(scope="module")
def figure(synthetic_study: StudyView) -> Figure:
    return answer(synthetic_study)


def rows_of(fig: Figure) -> list[str]:
    return [tick.get_text().replace("\n", "") for tick in fig.axes[0].get_yticklabels()]


def estimates(study: StudyView, k: int) -> dict[str, Estimate]:
    scored = by_experiment(view for view in study.runs if view.score is not None)
    found = {name: score_of(views, k) for name, views in scored.items()}
    return {name: one for name, one in found.items() if one is not None}


def test_the_answer_has_trm_then_etrm_from_the_best_then_published(
    figure: Figure, synthetic_study: StudyView
) -> None:
    rows, found = rows_of(figure), estimates(synthetic_study, 1)
    assert rows[0] == "trm"
    assert "trm_strict" not in rows  # it only initialises decoders
    ours = [found[row].value for row in rows[1:] if row in found]
    assert ours == sorted(ours, reverse=True)
    assert len(ours) == len(found) - 2  # without trm, and the one that is named partial
    assert "etrm_lpn_deep (partial)" in rows
    assert rows.index("etrm_cached_control") > rows.index("etrm_hybrid")
    assert rows.index("LPN, latent search") > rows.index("etrm_cached_control")
    assert words_of(figure).count("stopped") == 2  # once a panel


def test_marks_of_the_answer_are_hollow_where_demos_were_seen(
    figure: Figure, synthetic_study: StudyView
) -> None:
    found = estimates(synthetic_study, 1)
    lines = [m for m in figure.axes[0].lines if m.get_marker() not in ("None", "")]
    marks = {m.get_xdata()[0]: m for m in lines}
    trm, best = marks[found["trm"].value], marks[found["etrm_cross_attention"].value]
    assert trm.get_markerfacecolor() == "white"
    assert trm.get_markeredgecolor() == INK
    assert best.get_markerfacecolor() != "white"


def test_published_results_are_not_beside_another_benchmark(synthetic_study: StudyView) -> None:
    source = {"revision": None, "origin": "a world", "tasks": 9, "skipped": {}, "content": "0" * 16}
    runs = [
        dataclasses.replace(view, run=view.run | {"sources": {"world": source}})
        for view in synthetic_study.runs
    ]
    rows = rows_of(answer(dataclasses.replace(synthetic_study, runs=runs)))
    assert not [row for row in rows if "LPN" in row]


def test_experiments_that_were_asked_other_tasks_stand_apart(synthetic_study: StudyView) -> None:
    """And only those of the same tasks are beside each other in the figure of encoders."""
    runs = []
    for each in synthetic_study.runs:
        view = each
        if view.score is not None and view.experiment in ("trm", "etrm_lpn", "etrm_in_context"):
            ranks = {f"other_{name}": rank for name, rank in view.score["ranks"].items()}
            view = dataclasses.replace(view, score=view.score | {"ranks": ranks})
        runs.append(view)
    mixed = dataclasses.replace(synthetic_study, runs=runs)
    rows = rows_of(answer(mixed))
    assert rows[:3] == ["trm", "etrm_in_context", "etrm_lpn"]
    names = legend_of(encoders(mixed))
    assert "etrm_standard" in names
    assert not {"etrm_lpn", "etrm_in_context"} & set(names)


def test_where_one_variant_is_asked_there_is_no_vote(synthetic_study: StudyView) -> None:
    scored = [view for view in synthetic_study.runs if view.score is not None]
    runs = [dataclasses.replace(v, score={**(v.score or {}), "variants": 1}) for v in scored]
    fig = voting(dataclasses.replace(synthetic_study, runs=runs))
    assert "one variant" in words_of(fig)


def test_pass_curves_rise_and_begin_with_the_scores(synthetic_study: StudyView) -> None:
    one = estimates(synthetic_study, 2)["etrm_in_context"]
    curve = pass_curve([v for v in synthetic_study.runs if v.experiment == "etrm_in_context"])
    assert curve is not None
    ks, values = curve
    assert ks == [1, 2, 5]  # six variants vote
    assert values[1] == pytest.approx(one.value)
    assert (np.diff(values) >= 0).all()
    left, right = voting(synthetic_study).axes
    assert any(np.allclose(line.get_ydata(), values) for line in left.lines)
    partial = [v for v in synthetic_study.runs if v.score and v.score["partial"]]
    whole = [v for v in synthetic_study.runs if v.score and not v.score["partial"]]
    assert partial
    assert len(right.lines) == len(whole) + 1  # and the diagonal


def test_the_halting_grid_has_a_cell_for_each_pair_of_options(synthetic_study: StudyView) -> None:
    overfit, full, curves = halting_grid(synthetic_study).axes
    cells = [text.get_text() for text in overfit.texts]
    assert cells == ["–", "97", "94", "93", "95", "96", "91", "92", "–"]  # steps down, as planned
    assert len(full.texts) == 9
    middle = curves.lines[1]
    assert list(middle.get_xdata()) == [0.0, 0.5, 0.7]
    assert list(middle.get_ydata()) == pytest.approx([0.93, 0.95, 0.96])
    alone = [v for v in synthetic_study.runs if v.experiment in ("etrm_standard", "etrm_lpn")]
    few = halting_grid(dataclasses.replace(synthetic_study, runs=alone))
    assert "no two experiments differ" in words_of(few)


def test_accuracy_by_act_step_is_the_mean_over_seeds(synthetic_study: StudyView) -> None:
    fig = halting(synthetic_study)
    mine = [v.score for v in synthetic_study.runs if v.experiment == "trm"]
    expected = np.mean([score["by_step"]["accuracy"] for score in mine if score], axis=0)
    assert any(np.allclose(line.get_ydata(), expected) for line in fig.axes[5].lines[:1])
    assert "Full runs" in words_of(fig)


def test_encoders_stand_at_their_parameters(synthetic_study: StudyView) -> None:
    first = {view.experiment: view for view in reversed(synthetic_study.runs)}
    small, large = (size_of(first[n]) for n in ("etrm_in_context", "etrm_set_transformer"))
    assert small is not None
    assert large is not None
    assert 0 < small.parameters < large.parameters
    unknown = dataclasses.replace(first["etrm_lpn"], run={"config": {"context": {"source": "x"}}})
    assert size_of(unknown) is None
    left, _ = encoders(synthetic_study).axes
    assert any(line.get_xdata()[0] == pytest.approx(large.parameters) for line in left.lines)
