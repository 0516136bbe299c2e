"""The qualitative figure: the answers of each experiment to a few held-out test inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etrm.evaluation.voting import to_array, vote
from etrm.report.failures import failure
from etrm.report.run_view import StudyView, last_stage
from etrm.report.style import GUIDE, RIGHT, WRONG, draw_grid, say, theme, wrap
from etrm.storage.records import read_predictions

if TYPE_CHECKING:
    from etrm.arc.task import Task
    from etrm.config.execution import FigureStyle

MOST = 10  # experiments that are shown, in the order of the study
PER_LINE = 5  # experiments beside each other; further ones go on the next line
LARGEST_PANEL = 1.0  # inches
LABEL, CLOSE, APART, BETWEEN, MARGIN = 0.3, 0.08, 0.2, 0.1, 0.03  # inches
LONGEST_LABEL = 8  # letters
HEADS = ("demo input", "demo output", "test input", "truth")


@dataclass(frozen=True)
class Attempt:
    """The candidate with most votes, and how many of the predictions voted for it."""

    grid: np.ndarray
    votes: int
    predictions: int


def qualitative(study: StudyView) -> Figure:
    """Draw the answers of every evaluated experiment, one of its seeds each: the first."""
    answers: dict[str, pd.DataFrame] = {}
    for view in study.runs:
        # Said wherever answers of a partial evaluation are shown.
        partial = " (partial)" if view.score is not None and view.score["partial"] else ""
        if view.predictions is not None and view.experiment + partial not in answers:
            answers[view.experiment + partial] = read_predictions(view.predictions).to_pandas()
    scored = [view for view in study.runs if view.predictions is not None]
    runs, shown = last_stage(scored)[1], dict(list(answers.items())[:MOST])
    runs += f", {MOST} of {len(answers)} experiments" * (len(answers) > MOST)
    return draw_answers(study.tasks, shown, study.style, runs=runs)


def draw_answers(
    tasks: Sequence[Task],
    predictions: Mapping[str, pd.DataFrame],
    style: FigureStyle,
    *,
    seed: int = 0,
    runs: str = "",
) -> Figure:
    """Draw test queries in rows; a demo pair, test input, truth and attempts in columns.

    `runs`, above them, says whose answers they are.

    `predictions` maps an experiment to its predictions table (see `etrm.evaluation.voting`). The
    tasks are drawn with `seed` among those that have a known output and, if there are such, that
    all experiments predicted: never by how well they were answered. Under an attempt: right or
    wrong, its votes out of all predictions, and the class of the failure (`failures.py`).
    """
    chosen = choose(tasks, predictions, style.qualitative_tasks, seed)
    with theme(style):
        if not predictions or not chosen:
            fig = Figure(figsize=(style.width, 0.25 * style.width))
            none = "no experiment has been evaluated yet"
            say(
                fig.subplots(),
                "no evaluated test query has a known output" if predictions else none,
            )
            return fig
        attempts = {name: _attempts(frame, chosen) for name, frame in predictions.items()}
        return _Page(style, list(predictions), runs).draw(chosen, attempts)


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


def _short(name: str) -> str:
    """Return a task id as long as a low row is high: its beginning and its end."""
    return name if len(name) <= LONGEST_LABEL else f"{name[:4]}…{name[-3:]}"


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


class _Page:
    """Place panels on a figure, in inches from the top left.

    All panels of a row have one frame in cells, which is as wide as a panel or, for a row of tall
    grids, as high as a panel is wide.
    """

    def __init__(self, style: FigureStyle, names: Sequence[str], runs: str) -> None:
        self.runs = runs
        self.font = 6.5 * style.font_scale  # points
        self.per_line = min(PER_LINE, len(names))
        starts = range(0, len(names), self.per_line)
        self.lines = [list(names[i : i + self.per_line]) for i in starts]
        self.foot = (2 * 1.25 * self.font + 3) / 72  # inches: votes, and the class of a failure
        gaps = LABEL + CLOSE * (1 + self.per_line) + 2 * APART + MARGIN
        panels = len(HEADS) + self.per_line
        self.panel = min(LARGEST_PANEL, (style.width - gaps) / panels)  # inches
        self.width = gaps + panels * self.panel
        self.lefts = [LABEL]  # left edge of each column, inches
        for gap in (CLOSE, APART, CLOSE, APART, *[CLOSE] * (self.per_line - 1)):
            self.lefts.append(self.lefts[-1] + self.panel + gap)
        letters = max(4, int(self.panel * 72 / (0.64 * self.font)))  # that fit over a panel
        self.titles = {name: wrap(name, letters) for name in (*HEADS, *names)}

    def draw(
        self,
        chosen: Sequence[tuple[Task, int]],
        attempts: Mapping[str, Mapping[tuple[str, int], Attempt]],
    ) -> Figure:
        rows = [_Row(task, query, attempts) for task, query in chosen]
        tops, self.height = self._tops(rows)
        self.fig = Figure(figsize=(self.width, self.height))
        above: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": self.font}
        self.fig.text(
            0.5, 1 - MARGIN / self.height, self.runs, style="italic", color=GUIDE, **above
        )
        for i, row in enumerate(rows):
            self._row(row, tops[i], titled=i == 0 or len(self.lines) > 1)
        return self.fig

    def _tops(self, rows: Sequence[_Row]) -> tuple[list[list[float]], float]:
        """Return the top of every panel line of every row, and the height of the page."""
        y = MARGIN + bool(self.runs) * 1.6 * self.font / 72
        tops: list[list[float]] = []
        for i, row in enumerate(rows):
            tops.append([])
            for j, names in enumerate(self.lines):
                if i == 0 or len(self.lines) > 1:  # else the first row's titles serve all
                    shown = [*HEADS, *names] if j == 0 else names
                    lines = max(self.titles[name].count("\n") + 1 for name in shown)
                    y += (lines * 1.25 * self.font + 4) / 72
                tops[-1].append(y)
                y += row.height * self.panel + self.foot + BETWEEN
        return tops, y

    def _row(self, row: _Row, tops: Sequence[float], titled: bool) -> None:
        def axes(column: int, top: float, title: str) -> Axes:
            left, high = self.lefts[column] / self.width, row.height * self.panel / self.height
            bottom = 1 - top / self.height - high
            made = self.fig.add_axes((left, bottom, self.panel / self.width, high))
            if titled:
                made.set_title(self.titles[title], fontsize=self.font, pad=3, linespacing=1.1)
            return made

        for column, (title, grid) in enumerate(zip(HEADS, row.known, strict=True)):
            draw_grid(axes(column, tops[0], title), grid, row.frame, "unknown", self.font)
        for top, names in zip(tops, self.lines, strict=True):
            for column, name in enumerate(names, len(HEADS)):
                self._attempt(axes(column, top, name), row, row.answers[name])
        y = 1 - (tops[0] + row.height * self.panel / 2) / self.height
        place: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
        self.fig.text(LABEL / 2 / self.width, y, row.label, fontsize=self.font, **place)

    def _attempt(self, axes: Axes, row: _Row, attempt: Attempt | None) -> None:
        if attempt is None:
            draw_grid(axes, None, row.frame, "not\npredicted", self.font)
            return
        draw_grid(axes, attempt.grid, row.frame, "empty", self.font)
        found = failure(attempt.grid, row.truth)
        mark, colour = ("✓", RIGHT) if found == "right" else ("✗", WRONG)
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        place |= {"ha": "center", "va": "top", "fontsize": self.font, "color": colour}
        place |= {"linespacing": 1.1}
        votes = f"{mark} {attempt.votes}/{attempt.predictions}"
        votes += f"\n{found}" * (found != "right")
        axes.annotate(votes, xy=(0.5, 0), xytext=(0, -3), **place)


class _Row:
    """One row: its grids, their common frame in cells, and the label."""

    def __init__(
        self, task: Task, query: int, attempts: Mapping[str, Mapping[tuple[str, int], Attempt]]
    ) -> None:
        pair, demo = task.queries[query], task.demos[0]
        self.known = [demo.input, demo.output, pair.input, pair.output]
        self.truth = np.asarray(pair.output)
        self.answers = {name: found.get((task.id, query)) for name, found in attempts.items()}
        grids = [answer.grid for answer in self.answers.values() if answer is not None]
        shapes = [grid.shape for grid in (*self.known, *grids) if grid is not None]  # in cells
        highest, widest = max(h for h, _ in shapes), max(w for _, w in shapes)
        side = max(highest, widest)
        self.frame = (max(highest, side // 2), side)  # not so flat that its label would not fit
        self.height = self.frame[0] / side  # relative to a panel's width
        test = f"\ntest {query + 1}" if len(task.queries) > 1 else ""
        self.label = _short(task.id) + test
