"""The qualitative figure: the answers of each experiment to a few held-out test inputs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from etrm.evaluation.voting import to_array, vote
from etrm.report.failures import CLASSES, failure, shares, truths_of
from etrm.report.run_view import StudyView, by_name, last_stage
from etrm.report.style import (
    GUIDE,
    INK,
    RIGHT,
    WRONG,
    draw_grid,
    empty_figure,
    legend_below,
    letters_across,
    part_of,
    theme,
    wrap,
)
from etrm.storage.records import read_predictions

if TYPE_CHECKING:
    from etrm.arc.task import Task
    from etrm.config.execution import FigureStyle

MOST = 8  # experiments that are shown, in the order of the study
NAMES, BAR, LEAST, LARGEST = 1.15, 0.75, 0.45, 0.8  # inches: names, shares, grids
CLOSE, APART, BETWEEN = 0.05, 0.1, 0.09  # inches: grid and words, columns, rows
ARROW = 0.2  # inches: from the input of a demo to its output
TASK = ("a demo", "test input", "truth")  # rows above those of experiments
LONGEST_LABEL = 12  # letters


@dataclass(frozen=True)
class Attempt:
    """The candidate with most votes, and how many of the predictions voted for it."""

    grid: np.ndarray
    votes: int
    predictions: int


def qualitative(study: StudyView) -> Figure:
    """Draw the answers of the evaluated experiments, of the first seed of each, and their shares.

    The shares of right answers and of each class of failure are over all seeds and variants.
    """
    answers: dict[str, pd.DataFrame] = {}
    counts: dict[str, Counter[str]] = {}
    scored = [view for view in study.runs if view.predictions is not None]
    runs, truths = by_name(scored), truths_of(study.tasks)
    for name, mine in itertools.islice(runs.items(), MOST):
        # Said wherever answers of a partial evaluation are shown.
        partial = any(view.score is not None and view.score["partial"] for view in mine)
        label = name + " (partial)" * partial
        assert mine[0].predictions is not None
        answers[label] = read_predictions(mine[0].predictions).to_pandas()
        counts[label] = sum((shares(view, truths) for view in mine), Counter[str]())
    of = part_of(len(answers), len(runs), "experiments")
    words = last_stage(scored)[1], of
    return draw_answers(study.tasks, answers, study.style, counts=counts, words=words)


def draw_answers(
    tasks: Sequence[Task],
    predictions: Mapping[str, pd.DataFrame],
    style: FigureStyle,
    *,
    seed: int = 0,
    counts: Mapping[str, Counter[str]] | None = None,
    words: Sequence[str] = (),
) -> Figure:
    """Draw a test query a column: a demo, test input and truth, then a row for each experiment.

    `predictions` maps an experiment to its predictions table (see `etrm.evaluation.voting`), and
    `counts` to the classes of all its answers, which are shares at the right. The tasks are drawn
    with `seed` among those that have a known output and, if there are such, that all experiments
    predicted: never by how well they were answered. Beside an attempt: right or wrong, its votes
    out of all predictions, and the class of the failure (`failures.py`). `words`: of the heading.
    """
    page = _Page(style, counts or {}, words)
    chosen = choose(tasks, predictions, style.qualitative_tasks, seed)[: page.most]
    with theme(style):
        if not predictions:
            return empty_figure(style, "no experiment has been evaluated yet")
        if not chosen:
            return empty_figure(style, "no evaluated test query has a known output")
        found = {name: _attempts(frame, chosen) for name, frame in predictions.items()}
        columns = [_Column(task, query, found) for task, query in chosen]
        return page.draw(columns, list(predictions))


def choose(
    tasks: Sequence[Task], predictions: Mapping[str, pd.DataFrame], count: int, seed: int
) -> list[tuple[Task, int]]:
    """Draw up to `count` tasks; return each with its first predicted query of a known output."""
    predicted = [
        set(zip(frame["task"].tolist(), frame["query"].tolist(), strict=True))
        for frame in predictions.values()
    ]
    if not predicted:
        return []
    # Of tasks that all experiments predicted; else, where experiments have sources of their own, of
    # those of each set of sources in turn.
    common = set.intersection(*predicted)
    groups = [common] if common else list(dict.fromkeys(map(frozenset, predicted)))
    chosen: dict[str, tuple[Task, int]] = {}
    rng = np.random.default_rng(seed)
    for number, group in enumerate(groups):
        candidates: dict[str, tuple[Task, int]] = {}
        for task in sorted(tasks, key=lambda task: task.id):
            for query, pair in enumerate(task.queries):
                if pair.output is not None and (task.id, query) in group and task.id not in chosen:
                    candidates.setdefault(task.id, (task, query))
        share = (count - len(chosen)) // (len(groups) - number)  # an even part of what is left
        drawn = rng.choice(len(candidates), min(share, len(candidates)), replace=False)
        names = list(candidates)
        chosen |= {names[i]: candidates[names[i]] for i in sorted(drawn)}
    return list(chosen.values())


def _attempts(
    predictions: pd.DataFrame, chosen: Sequence[tuple[Task, int]]
) -> dict[tuple[str, int], Attempt]:
    few = predictions[predictions["task"].isin([task.id for task, _ in chosen])]
    if few.empty:
        return {}
    ranked = vote(few)  # of the chosen tasks only: a vote over all takes long
    top = ranked[ranked["rank"] == 1]  # one candidate a query
    total = ranked.groupby(["task", "query"], observed=True)["count"].sum().to_dict()
    columns = ["task", "query", "height", "width", "grid", "count"]
    return {
        (task, query): Attempt(to_array(*grid), votes, total[task, query])
        for task, query, *grid, votes in top[columns].itertuples(index=False, name=None)
    }


class _Column:
    """One test query: its grids, and how many cells the largest of them has on a side."""

    def __init__(
        self, task: Task, query: int, attempts: Mapping[str, Mapping[tuple[str, int], Attempt]]
    ) -> None:
        self.input = task.queries[query].input
        self.truth = np.asarray(task.queries[query].output)
        self.demo = task.demos[0].input, np.asarray(task.demos[0].output)
        self.demo_height = max(grid.shape[0] for grid in self.demo)
        self.demo_side = max(max(grid.shape) for grid in self.demo)
        self.answers = {name: found.get((task.id, query)) for name, found in attempts.items()}
        grids = [answer.grid for answer in self.answers.values() if answer is not None]
        shown = [self.input, self.truth, *grids]
        self.height = max(grid.shape[0] for grid in shown)
        self.side = max(self.height, *(grid.shape[1] for grid in shown))
        test = f", test {query + 1}" if len(task.queries) > 1 else ""
        name, cut = task.id, len(task.id) > LONGEST_LABEL
        short = f"{name[: LONGEST_LABEL - 4]}…{name[-3:]}" if cut else name  # begin and end
        self.label = short + test


class _Page:
    """Grids in rows and columns, placed in inches from the top left.

    A column is a test query, with room for words beside its grids.
    """

    def __init__(
        self, style: FigureStyle, counts: Mapping[str, Counter[str]], words: Sequence[str]
    ) -> None:
        self.style, self.counts, self.words = style, counts, words
        self.font = 6.5 * style.font_scale  # points
        self.line = 1.25 * self.font / 72  # inches
        self.beside = 10 * 0.58 * self.font / 72  # inches: `structured`
        self.names = min(NAMES * style.font_scale, 0.28 * style.width)
        self.bar = BAR * style.font_scale if any(counts.values()) else 0.0
        self.room = style.width - self.names - self.bar - 2 * APART  # inches, for columns
        self.most = max(1, int(self.room / (LEAST + self.beside + CLOSE + APART)))  # columns

    def draw(self, columns: Sequence[_Column], names: Sequence[str]) -> Figure:
        style, size = self.style, 8 * self.style.font_scale
        self.side = self.room / len(columns) - self.beside - CLOSE - APART
        self.side = min(self.side, LARGEST * style.font_scale)
        self.step = self.side + self.beside + CLOSE + APART
        letters = letters_across(self.names, self.font)
        labels = [wrap(name, letters) for name in names]
        self.fig = Figure(figsize=(style.width, 1.0))
        below = legend_below(self.fig, self._legend(), style)
        head = wrap(", ".join(filter(None, self.words)), letters_across(style.width, size))
        top = 1.3 * size / 72 * (head.count("\n") + 1.4)
        heights = self._heights(columns, labels)
        self.high = top + sum(heights) + below + 0.1
        self.fig.set_figheight(self.high)
        place: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": size}
        self._text(head, style.width / 2, 0.03, style="italic", **place)
        tops = top + np.cumsum([0.0, *heights])
        self.rows = list(zip(tops, np.array(heights) - BETWEEN, strict=False))  # top and height
        for (y, high), words in zip(self.rows, ["", *TASK, *labels], strict=True):
            self._text(words, 0.03, y + high / 2, va="center", linespacing=1.1)
        for number, column in enumerate(columns):
            self._column(column, self.names + APART + number * self.step)
        if self.bar:
            x = style.width - self.bar
            self._text("all answers", x, top, va="top", weight="bold")
            for (y, high), name in zip(self.rows[1 + len(TASK) :], names, strict=True):
                self._shares(self.counts[name], x, y + high / 2)
        return self.fig

    def _heights(self, columns: Sequence[_Column], labels: Sequence[str]) -> list[float]:
        """Return the height of each row in inches: titles, those of a task, experiments."""
        grids = self.side * max(column.height / column.side for column in columns)
        demo = self._half() * max(column.demo_height / column.demo_side for column in columns)
        least = 3.4 if self.bar else 2.0  # lines: a bar above two of text
        lines = [2.0, 2.0, *(max(least, label.count("\n") + 1) for label in labels)]
        rows = [max(demo, self.line), *(max(grids, self.line * count) for count in lines)]
        return [1.4 * self.line, *(row + BETWEEN for row in rows)]

    def _half(self) -> float:
        """Return the side of the grids of a demo in inches: two of them, and an arrow between."""
        return (self.step - APART - ARROW) / 2

    def _column(self, column: _Column, x: float) -> None:
        titles, demo, test, truth, *rest = self.rows
        self._text(column.label, x, titles[0], va="top", weight="bold")
        self._demo(column, x, *demo)
        self._grid(column.input, column, x, *test)
        self._grid(column.truth, column, x, *truth)
        for attempt, row in zip(column.answers.values(), rest, strict=True):
            self._attempt(attempt, column, x, *row)

    def _text(self, words: str, x: float, y: float, **look: Any) -> None:
        own: dict[str, Any] = {"fontsize": self.font, "color": GUIDE if "style" in look else INK}
        self.fig.text(x / self.style.width, 1 - y / self.high, words, **(own | look))

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        high, wide = self.high, self.style.width
        bottom = 1 - (top + height) / high
        return self.fig.add_axes((left / wide, bottom, width / wide, height / high))

    def _grid(self, grid: np.ndarray, column: _Column, x: float, top: float, high: float) -> float:
        """Draw a grid, or say that it is empty; return its width in inches."""
        if not grid.size:
            self._text("empty", x, top + high / 2, va="center", style="italic")
            return 6 * 0.58 * self.font / 72
        rows = high / self.side * column.side  # cells of all grids of a column are equally large
        axes = self._axes(x, top, self.side, high)
        draw_grid(axes, grid, (rows, column.side), "", self.font, centred=False)
        return self.side * grid.shape[1] / column.side

    def _demo(self, column: _Column, x: float, top: float, high: float) -> None:
        """Draw the input and the output of a demo, with an arrow between."""
        side, cells = self._half(), column.demo_side
        wide = column.demo[0].shape[1] / cells * side
        for left, grid in zip((x, x + wide + ARROW), column.demo, strict=True):
            axes, frame = self._axes(left, top, side, high), (high / side * cells, cells)
            draw_grid(axes, grid, frame, "", self.font, centred=False)
        self._text("→", x + wide + ARROW / 2, top + high / 2, va="center", ha="center")

    def _attempt(
        self, attempt: Attempt | None, column: _Column, x: float, top: float, high: float
    ) -> None:
        if attempt is None:
            self._text("not asked", x, top + high / 2, va="center", style="italic")
            return
        wide = self._grid(attempt.grid, column, x, top, high)
        found = failure(attempt.grid, column.truth)
        mark, colour = ("✓", RIGHT) if found == "right" else ("✗", WRONG)
        words = f"{mark} {attempt.votes}/{attempt.predictions}"
        words += f"\n{found}" * (found != "right")
        look: dict[str, Any] = {"va": "center", "color": colour, "linespacing": 1.1}
        self._text(words, x + wide + CLOSE, top + high / 2, **look)

    def _shares(self, count: Counter[str], x: float, y: float) -> None:
        """Draw the shares of all answers by class, and say how many are right."""
        if not count:
            return
        axes = self._axes(x, y - self.line, self.bar - 0.05, 0.9 * self.line)
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        left = 0.0
        for name, (colour, _) in CLASSES.items():
            share = count[name] / count.total()
            axes.barh(0.5, share, 1.0, left, color=colour)
            left += share
        right = f"{100 * count['right'] / count.total():.1f} % right\nof {count.total():,}"
        self._text(right, x, y + 0.1 * self.line, va="top", linespacing=1.1)

    def _legend(self) -> list[Artist]:
        """Return what marks and votes mean, and the classes of answers with their colours."""
        mark: dict[str, Any] = {"color": WRONG, "marker": "x", "ls": "", "ms": 4, "mew": 1.2}
        entries: list[Artist] = [Line2D([], [], label="5/6: wrong, with 5 of 6 votes", **mark)]
        if self.bar:
            classes = CLASSES.values()
            entries += [Patch(color=colour, lw=0, label=words) for colour, words in classes]
        return entries
