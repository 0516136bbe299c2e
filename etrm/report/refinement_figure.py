"""The figure `refinement`: pass@k against steps, the demos' likelihood, and cost against gain."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etrm.report.refinement import METHODS, refinement_table
from etrm.report.run_view import StudyView, distinct, last_stage
from etrm.report.style import (
    GUIDE,
    Look,
    empty_figure,
    heading,
    legend_below,
    looks,
    percent,
    small_multiples,
    theme,
)

LINES = {"search": "-", "random": ":", "act_steps": "--", "fine_tuning": "-."}
TITLES = ("pass@1", "pass@2", "Likelihood of demos", "pass@1 by cost")


def refinement(study: StudyView) -> Figure:
    """Draw the table of refinement: experiments by colour, methods by line.

    Error bars are 95 % intervals of the search. Steps stand at equal distances, methods side by
    side.
    """
    table, style = refinement_table(study.runs), study.style
    look_of = looks(view.experiment for view in study.runs)
    with theme(style):
        if table.empty:
            return empty_figure(style, "no experiment has refined answers")
        fig, grid, _ = small_multiples(style, len(TITLES), 2, 0.68)
        heading(fig, style, last_stage([v for v in study.runs if v.refinement])[1])
        names = distinct(str(name) for name in table["experiment"])
        methods = [m for m in METHODS if m in set(table["method"])]
        places = {steps: i for i, steps in enumerate(sorted(set(table["steps"])))}
        for name in names:
            for method in methods:
                rows = table[(table["experiment"] == name) & (table["method"] == method)]
                if len(rows):
                    _draw(grid, rows, look_of[name], LINES[method], places)
        _axes(grid, places)
        entries = []
        for name in names:
            look = look_of[name]
            mark: dict[str, Any] = {"color": look.colour, "marker": look.marker or "o"}
            entries.append(Line2D([], [], label=name, ls="-", **mark))
        entries += [Line2D([], [], label=METHODS[m], color=GUIDE, ls=LINES[m]) for m in methods]
        interval = "95 % interval, latent search"
        entries.append(Line2D([], [], label=interval, color=GUIDE, marker="|", ms=9, ls=""))
        legend_below(fig, entries, style)
    return fig


def _draw(grid: Any, rows: pd.DataFrame, look: Look, line: str, places: dict[int, int]) -> None:
    aside = 0.07 * ([*LINES.values()].index(line) - 1)  # equal values stay in sight
    x = [places[steps] + aside for steps in rows["steps"]]
    style: dict[str, Any] = {"color": look.colour, "ls": line, "marker": look.marker or "o"}
    for axes, name in zip(grid, ("pass@1", "pass@2", "likelihood"), strict=False):
        axes.plot(x, rows[name], **style)
        if line == "-" and name != "likelihood":
            low, high = (abs(rows[f"{name}_{end}"] - rows[name]) for end in ("low", "high"))
            bars: dict[str, Any] = {"fmt": "none", "ecolor": look.colour, "alpha": 0.5}
            axes.errorbar(x, rows[name], [low, high], capsize=2, lw=0.8, **bars)
    grid[3].plot(rows["gflop"], rows["pass@1"], **style)


def _axes(grid: Any, places: dict[int, int]) -> None:
    for axes, title in zip(grid, TITLES, strict=True):
        axes.set_title(title)
    for axes in grid[:3]:
        axes.set_xticks(list(places.values()), [str(steps) for steps in places])
        axes.set_xlabel("steps")
    for axes in (grid[0], grid[1], grid[3]):
        axes.yaxis.set_major_formatter(percent)
        _from_zero(axes)
    grid[2].set_ylabel("log, mean over cells")
    grid[3].set_xscale("log")
    grid[3].tick_params(which="minor", length=0)
    grid[3].set_xlabel("GFLOP of an answer")


def _from_zero(axes: Axes) -> None:
    top = max(0.05, axes.get_ylim()[1])
    axes.set_ylim(-0.03 * top, min(1.03, 1.05 * top))
