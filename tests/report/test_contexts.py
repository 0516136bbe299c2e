"""Contexts of tasks: nearest neighbours as a table, and two projections as a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fake
import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from etrm.arc.task import Pair, Rule, Task
from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig
from etrm.data.tables import TaskRecord
from etrm.evaluation.contexts import MOST, choose_records, context_table
from etrm.report.contexts_figure import contexts
from etrm.report.formats import NONE
from etrm.report.neighbours import neighbours
from etrm.report.run_view import RunView, StudyView

CELL = Pair(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))
RULES = ("fill", "sort", "mirror")


def records(count: int, known: bool = True) -> list[TaskRecord]:
    """Every third task is held out; rules alternate in blocks of three."""
    found = []
    for i in range(count):
        rule = Rule(RULES[i // 3 % 3], "{}") if known else None
        split = "evaluation" if i % 3 == 0 else "training"
        found.append(TaskRecord(Task(f"t{i:04}", (CELL,), (CELL,), rule), "made", split))
    return found


def with_contexts(
    folder: Path, name: str, tasks: list[TaskRecord], features: np.ndarray, right: int = 0
) -> RunView:
    path = folder / f"{name}.parquet"
    pq.write_table(context_table(tasks, features), path)
    held_out = [r.task.id for r in tasks if r.split == "evaluation"]
    ranks = {name: [1 if i < right else None] for i, name in enumerate(held_out)}
    view = fake.run(folder, experiment=name, stage="full", steps=200)
    return dataclasses.replace(view, contexts=path, score={"ranks": ranks})


def by_rule(tasks: list[TaskRecord], noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(3, 40))
    rows = [middle[RULES.index(r.task.rule.name) if r.task.rule else 0] for r in tasks]
    return np.stack(rows) + noise * rng.normal(size=(len(tasks), 40))


def drawn(views: list[RunView]) -> Figure:
    fig = contexts(StudyView(views, FigureStyle(), HealthConfig()))
    fig.canvas.draw()
    return fig


def test_the_file_holds_held_out_tasks_first_and_is_bounded() -> None:
    many = records(3 * MOST)
    chosen = choose_records(many)
    assert len(chosen) == MOST
    assert {r.split for r in chosen} == {"evaluation"}  # as many as there is room for
    few = records(30)
    assert choose_records(few) == few
    held_out = [r for r in many[: MOST + 60] if r.split == "evaluation"]
    assert [r for r in choose_records(many[: MOST + 60]) if r.split == "evaluation"] == held_out


def test_neighbours_of_a_run_that_sorts_tasks_by_rule(tmp_path: Path) -> None:
    tasks = records(90)
    sorts = with_contexts(tmp_path, "sorts", tasks, by_rule(tasks, noise=0.05))
    mixes = with_contexts(tmp_path, "mixes", tasks, np.random.default_rng(1).normal(size=(90, 40)))
    table = neighbours([sorts, mixes])
    text = table.text.set_index("Experiment")
    assert list(text["Held-out tasks"]) == ["30", "30"]
    assert text.loc["sorts", "Same rule"] == "100 %"
    assert list(text["By chance"]) == ["33 %", "33 %"]
    assert float(text.loc["mixes", "Same rule"].split()[0]) < 70
    first = table.numbers[table.numbers["task"] == "t0000"].query("experiment == 'sorts'")
    assert list(first["rank"]) == [1, 2, 3]
    assert set(first["neighbour"]) <= {r.task.id for r in tasks if r.split == "training"}
    assert first["cosine"].is_monotonic_decreasing


def test_without_known_rules_neighbours_have_no_share(tmp_path: Path) -> None:
    tasks = records(12, known=False)
    view = with_contexts(tmp_path, "one", tasks, by_rule(tasks, noise=1.0))
    assert neighbours([view]).text.iloc[0]["Same rule"] == NONE
    assert neighbours([fake.run(tmp_path, experiment="none", steps=200)]).text.empty


@pytest.mark.parametrize("known", [True, False])
def test_every_run_has_two_panels(tmp_path: Path, known: bool) -> None:
    tasks = records(60, known)
    views = [
        with_contexts(tmp_path, f"run{i}", tasks, by_rule(tasks, 0.3, seed=i), right=5)
        for i in range(3)
    ]
    fig = drawn(views)
    titles = [axes.get_title() for axes in fig.axes]
    both = ("PCA", "t-SNE")
    assert [t for t in titles if t] == [f"run{i}\n{of}" for i in range(3) for of in both]
    labels = {text.get_text() for text in fig.legends[0].get_texts()}
    assert labels == (
        set(RULES)
        if known
        else {"training or validation task", "held-out task, wrong", "held-out task, right"}
    )
    points = [sum(len(c.get_offsets()) for c in axes.collections) for axes in fig.axes[:6]]
    assert points == [60] * 6


def test_tasks_of_unknown_rules_keep_their_marks_beside_a_world(tmp_path: Path) -> None:
    world, arc = records(30), records(30, known=False)
    views = [
        with_contexts(tmp_path, "world", world, by_rule(world, 0.3)),
        with_contexts(tmp_path, "arc", arc, by_rule(arc, 0.3), right=2),
    ]
    labels = {text.get_text() for text in drawn(views).legends[0].get_texts()}
    assert labels >= {*RULES, "held-out task, right", "held-out task, wrong"}


def test_collapsed_and_damaged_contexts_are_no_error(tmp_path: Path) -> None:
    tasks = records(12)
    one = with_contexts(tmp_path, "collapsed", tasks, np.ones((12, 40)))
    broken = by_rule(tasks, 0.1)
    broken[3:] = np.nan
    fig = drawn([one, with_contexts(tmp_path, "diverged", tasks, broken)])
    words = " ".join(t.get_text() for axes in fig.axes for t in axes.texts)
    assert "differ" in words
    gone = with_contexts(tmp_path, "gone", tasks, np.full((12, 40), np.nan))
    assert sum("differ" in t.get_text() for a in drawn([gone]).axes for t in a.texts) == 2
    assert neighbours([gone]).text.empty
    assert len(neighbours([one]).text) == 1
    assert drawn([]).axes
