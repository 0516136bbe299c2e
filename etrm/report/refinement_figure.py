"""The figure `refinement`: pass@k against steps, the demos' likelihood, and cost against gain."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from etrm.report import style
from etrm.report.refinement import METHODS, refinement_table
from etrm.report.run_view import StudyView, distinct, last_stage

LINES = {"search": "-", "random": ":", "act_steps": "--", "fine_tuning": "-."}
TITLES = ("pass@1", "pass@2", "Likelihood of demos", "pass@1 by cost")


@style.figure
def refinement(study: StudyView) -> Figure:
    """Draw the table of refinement: experiments by colour, methods by line.

    Error bars are 95 % intervals of the search. Steps stand at equal distances, methods side by
    side.
    """
    table = refinement_table(study.runs)
    look_of = style.looks(view.experiment for view in study.runs)
    if table.empty:
        raise style.EmptyFigureError("no experiment has refined answers")
    fig, grid, _ = style.small_multiples(study.style, len(TITLES), 2, 0.68)
    style.heading(fig, study.style, last_stage([v for v in study.runs if v.refinement])[1])
    names = distinct(str(name) for name in table["experiment"])
    methods = [m for m in METHODS if m in set(table["method"])]
    places = {steps: i for i, steps in enumerate(sorted(set(table["steps"])))}
    for name in names:
        for method in methods:
            rows = table[(table["experiment"] == name) & (table["method"] == method)]
            if len(rows):
                _draw(grid, rows, look_of[name], LINES[method], places)
    _axes(grid, places)
    entries = [style.entry(name, ls="-", **look_of[name].mark) for name in names]
    entries += [style.entry(METHODS[m], ls=LINES[m]) for m in methods]
    entries.append(style.entry("95 % interval, latent search", marker="|", ms=9, ls=""))
    style.legend_below(fig, entries, study.style)
    return fig


def _draw(
    grid: Any, rows: pd.DataFrame, look: style.Look, line: str, places: dict[int, int]
) -> None:
    aside = 0.07 * ([*LINES.values()].index(line) - 1)  # equal values stay in sight
    x = [places[steps] + aside for steps in rows["steps"]]
    line_look = look.mark | {"ls": line}
    for axes, name in zip(grid, ("pass@1", "pass@2", "likelihood"), strict=False):
        axes.plot(x, rows[name], **line_look)
        if line == "-" and name != "likelihood":
            low, high = (abs(rows[f"{name}_{end}"] - rows[name]) for end in ("low", "high"))
            bars: dict[str, Any] = {"fmt": "none", "ecolor": look.colour, "alpha": 0.5}
            axes.errorbar(x, rows[name], [low, high], capsize=2, lw=0.8, **bars)
    grid[3].plot(rows["gflop"], rows["pass@1"], **line_look)


def _axes(grid: Any, places: dict[int, int]) -> None:
    for axes, title in zip(grid, TITLES, strict=True):
        axes.set_title(title)
    for axes in grid[:3]:
        axes.set_xticks(list(places.values()), [str(steps) for steps in places])
        axes.set_xlabel("steps")
    for axes in (grid[0], grid[1], grid[3]):
        axes.yaxis.set_major_formatter(style.percent)
        top = max(0.05, axes.get_ylim()[1])
        axes.set_ylim(-0.03 * top, min(1.03, 1.05 * top))
    grid[2].set_ylabel("log, mean over cells")
    grid[3].set_xscale("log")
    grid[3].tick_params(which="minor", length=0)
    grid[3].set_xlabel("GFLOP of an answer")
