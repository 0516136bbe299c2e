"""The figure `voting`: pass@k against k, and what the vote over variants adds to single answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from etrm.evaluation.pass_at_k import credits
from etrm.report.estimates import RULE
from etrm.report.run_view import RunView, StudyView, distinct, last_stage
from etrm.report.style import (
    GUIDE,
    Look,
    empty_figure,
    heading,
    legend_below,
    looks,
    part_of,
    percent,
    small_multiples,
    theme,
    title,
)

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def voting(study: StudyView) -> Figure:
    """Draw pass@k over k, and pass@1 after the vote against the exact match of single answers.

    Above the diagonal voting helps. Partial evaluations are left out: their missing answers would
    count in pass@1 alone.
    """
    style, look_of = study.style, looks(view.experiment for view in study.runs)
    scored = [view for view in study.runs if view.score is not None and not view.score["partial"]]
    names = distinct(view.experiment for view in scored)
    with theme(style):
        if not names:
            return empty_figure(style, "no experiment has been evaluated on all tasks yet")
        if all(view.score["variants"] == 1 for view in scored if view.score is not None):
            return empty_figure(style, "every evaluation asks one variant of a task: none votes")
        fig, (left, right), columns = small_multiples(style, 2, 2, 0.75)
        evaluated = distinct(view.experiment for view in study.runs if view.score is not None)
        whole = part_of(len(names), len(evaluated), "experiments, evaluated on all tasks")
        heading(fig, style, last_stage(scored)[1], whole)
        title(left, "pass@k, held-out tasks", style, columns)
        title(right, "Vote against single answers, by run", style, columns)
        for name in names:
            _draw(left, right, [v for v in scored if v.experiment == name], look_of[name])
        _axes(left, right)
        legend_below(fig, [*map(partial(_entry, look_of), names), *_notes()], style)
    return fig


def pass_curve(views: Sequence[RunView]) -> tuple[list[int], np.ndarray] | None:
    """Return pass@k at many k, the mean over runs: up to the fewest variants that vote."""
    scores = [view.score for view in views if view.score is not None and view.score.get("ranks")]
    if not scores:
        return None
    most = max(1, min(int(score["variants"]) for score in scores))
    ks = [k for k in KS if k <= most]
    curves = [credits(score["ranks"], ks)[..., 0].mean(axis=0) for score in scores]
    return ks, np.mean(curves, axis=0)


def _entry(look_of: dict[str, Look], name: str) -> Line2D:
    look = look_of[name]
    return Line2D([], [], color=look.colour, marker=look.marker or "o", ms=4, label=name)


def _notes() -> list[Line2D]:
    return [Line2D([], [], color=GUIDE, linestyle=":", label="no gain by voting")]


def _draw(left: Axes, right: Axes, views: list[RunView], look: Look) -> None:
    if (curve := pass_curve(views)) is not None:
        line: dict[str, Any] = {"color": look.colour, "marker": look.marker or "o", "ms": 3}
        left.plot(*curve, ls="--" if views[0].is_trm else "-", **line)
    for score in (view.score for view in views if view.score is not None):
        single, first = score["single_variant_exact"]["value"], score["pass"].get("1")
        if single is not None and first is not None and first[RULE]["value"] is not None:
            mark: dict[str, Any] = {"marker": look.marker or "o", "ms": 4, "ls": "", "mew": 0.4}
            right.plot([single], [first[RULE]["value"]], color=look.colour, mec="white", **mark)


def _axes(left: Axes, right: Axes) -> None:
    ks = sorted({int(k) for line in left.lines for k in np.asarray(line.get_xdata())})
    if ks:
        left.set_xscale("log")
        left.set_xticks(ks[:: max(1, -(-len(ks) // 5))], map(str, ks[:: max(1, -(-len(ks) // 5))]))
        left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("k")
    right.set_xlabel("exact match of single answers")
    right.set_ylabel("pass@1")
    ends = [float(v) for line in right.lines for v in (*line.get_xdata(), *line.get_ydata())]  # type: ignore[misc]
    top = max([0.05, *ends])
    right.plot([0, top], [0, top], color=GUIDE, linestyle=":", linewidth=0.8, zorder=1)
    for axis in (left.yaxis, right.yaxis, right.xaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(percent)
    left.set_ylim(bottom=-0.02)
