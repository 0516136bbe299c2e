"""The figure `contexts`: tasks as a run sees them, by principal components and by t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etrm.report import style
from etrm.report.neighbours import contexts_frame
from etrm.report.run_view import RunView, StudyView, by_name, last_stage

RUNS = 12  # that are drawn: the first seed of each experiment, in the order of the study
POINTS = 400  # tasks of a panel: held-out ones first
RULES = 7  # colours; tasks of rarer rules are grey
PERPLEXITY = 30
DIRECTIONS = 50  # of PCA, to which t-SNE is given what is longer
PALE = "#c4c4c4"


@dataclass(frozen=True)
class Group:
    """Tasks that are drawn alike."""

    label: str
    colour: str
    marker: str
    rows: np.ndarray  # [T] bool


@style.figure
def contexts(study: StudyView) -> Figure:
    """Draw the contexts of each run twice, by their principal components and by t-SNE.

    A point is a task. Where rules are known, colours are the most frequent ones; elsewhere they
    say which held-out tasks were solved, beside those of training. Distances between far groups of
    a t-SNE mean nothing (van der Maaten and Hinton, 2008).
    """
    evaluated = by_name(view for view in study.runs if view.contexts is not None)
    found = [min(mine, key=lambda view: view.seed) for mine in evaluated.values()]  # first seeds
    shown = found[:RUNS]
    if not shown:
        raise style.EmptyFigureError("no run has been evaluated on held-out tasks yet")
    most = 2 * min(2, len(shown), style.across(2, study.style, 2.6))  # pairs stay beside each other
    fig, grid, columns = style.small_multiples(study.style, 2 * len(shown), most, 1.0, least=0.5)
    style.heading(
        fig,
        study.style,
        last_stage(shown)[1],
        "a point a task",
        style.part_of(len(shown), len(found), "experiments"),
    )
    panels = zip(grid[::2], grid[1::2], strict=True)
    frames = [_frame(view) for view in shown]
    colours = _colours(frames)
    legend: dict[str, Line2D] = {}
    for (left, right), view, frame in zip(panels, shown, frames, strict=True):
        groups = _groups(frame, view, colours)
        x = np.array(frame["context"].to_list())  # [T, F]; of a diverged run [0]
        for axes, at, words in ((left, _pca(x, 2), "PCA"), (right, _tsne(x), "t-SNE")):
            _draw(axes, at, groups)
            style.title(axes, f"{view.experiment}\n{words}", study.style, columns)
        for group in groups:
            if group.rows.any():
                mark = {"color": group.colour, "marker": group.marker}
                legend[group.label] = style.entry(group.label, ls="", ms=4, **mark)
    style.legend_below(fig, list(legend.values()), study.style)
    return fig


def _frame(view: RunView) -> pd.DataFrame:
    """Return the tasks of a panel, held-out ones first, whose contexts are numbers."""
    frame = contexts_frame(view)
    order = (frame["split"] != "evaluation").to_numpy().argsort(kind="stable")
    return frame.iloc[order[:POINTS]].reset_index(drop=True)


def _colours(frames: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return a colour for each of the most frequent rules, where there are two at least."""
    counts = pd.concat([frame["rule"] for frame in frames]).value_counts()
    rules = sorted(counts.index[:RULES])
    return dict(zip(rules, style.PALETTE, strict=False)) if len(rules) > 1 else {}


def _groups(frame: pd.DataFrame, view: RunView, colours: dict[str, str]) -> list[Group]:
    held_out = (frame["split"] == "evaluation").to_numpy()
    if colours and frame["rule"].notna().any():  # a study may have tasks of both kinds
        rule = frame["rule"].to_numpy()
        rare = ~np.isin(rule.astype(str), list(colours))
        named = [Group(name, colour, "o", rule == name) for name, colour in colours.items()]
        return [Group("other rules", PALE, "o", rare), *named]
    ranks: dict[str, Any] = (view.score or {}).get("ranks") or {}
    right = np.array([all(r == 1 for r in ranks.get(t, [None])) for t in frame["task"]], bool)
    return [
        Group("training or validation task", PALE, "o", ~held_out),
        Group("held-out task, wrong", style.WRONG, "X", held_out & ~right),
        Group("held-out task, right", style.RIGHT, "D", held_out & right),
    ]


def _draw(axes: Axes, at: np.ndarray | None, groups: Sequence[Group]) -> None:
    if at is None:
        style.say(axes, "too few contexts that differ")
        return
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for group in groups:
        x, y = at[group.rows].T
        axes.scatter(x, y, s=7, c=group.colour, marker=group.marker, linewidths=0.15, ec="white")


def _pca(x: np.ndarray, directions: int) -> np.ndarray | None:
    """Return the first principal components of `x` [T, F]; None where tasks do not differ."""
    if len(x) < 3:
        return None
    left, size, _ = np.linalg.svd(x.astype(np.float64) - x.mean(axis=0), full_matrices=False)
    kept = min(directions, len(size))
    if kept < 2 or size[0] < 1e-9 * max(1.0, float(np.abs(x).max())):
        return None
    return np.asarray(left[:, :kept] * size[:kept])


def _tsne(x: np.ndarray) -> np.ndarray | None:
    """Return t-SNE's places of `x` [T, F] on a plane, from its principal components."""
    from sklearn.manifold import TSNE

    start = _pca(x, DIRECTIONS)
    if start is None:
        return None
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, random_state=0).fit_transform(start))
