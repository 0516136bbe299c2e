"""The figure `voting`: pass@k against k, and what the vote over variants adds to single answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from etrm.evaluation.pass_at_k import credits
from etrm.report import style
from etrm.report.estimates import RULE
from etrm.report.run_view import RunView, StudyView, by_name, last_stage

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@style.figure
def voting(study: StudyView) -> Figure:
    """Draw pass@k over k, and pass@1 after the vote against the exact match of single answers.

    Above the diagonal voting helps. Partial evaluations are left out: their missing answers would
    count in pass@1 alone.
    """
    look_of = style.looks(view.experiment for view in study.runs)
    scored = [view for view in study.runs if view.score is not None and not view.score["partial"]]
    runs = by_name(scored)
    if not runs:
        raise style.EmptyFigureError("no experiment has been evaluated on all tasks yet")
    if all(view.score["variants"] == 1 for view in scored if view.score is not None):
        raise style.EmptyFigureError("every evaluation asks one variant of a task: none votes")
    fig, (left, right), columns = style.small_multiples(study.style, 2, 2, 0.75)
    evaluated = by_name(view for view in study.runs if view.score is not None)
    whole = style.part_of(len(runs), len(evaluated), "experiments, evaluated on all tasks")
    style.heading(fig, study.style, last_stage(scored)[1], whole)
    style.title(left, "pass@k, held-out tasks", study.style, columns)
    style.title(right, "Vote against single answers, by run", study.style, columns)
    for name, mine in runs.items():
        _draw(left, right, mine, look_of[name])
    _axes(left, right)
    entries = [style.entry(name, ms=4, **look_of[name].mark) for name in runs]
    style.legend_below(
        fig, [*entries, style.entry("no gain by voting", linestyle=":")], study.style
    )
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


def _draw(left: Axes, right: Axes, views: list[RunView], look: style.Look) -> None:
    if (curve := pass_curve(views)) is not None:
        left.plot(*curve, ls="--" if views[0].is_trm else "-", ms=3, **look.mark)
    for score in (view.score for view in views if view.score is not None):
        single, first = score["single_variant_exact"]["value"], score["pass"].get("1")
        if single is not None and first is not None and first[RULE]["value"] is not None:
            edge: dict[str, Any] = {"ms": 4, "ls": "", "mew": 0.4, "mec": "white"}
            right.plot([single], [first[RULE]["value"]], **look.mark, **edge)


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
    right.plot([0, top], [0, top], color=style.GUIDE, linestyle=":", linewidth=0.8, zorder=1)
    for axis in (left.yaxis, right.yaxis, right.xaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(style.percent)
    left.set_ylim(bottom=-0.02)
