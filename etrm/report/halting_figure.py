"""The figures `halting` and `halting_grid`: when runs stop thinking, and what the options do."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from etrm.report import style
from etrm.report.estimates import over_seeds
from etrm.report.panels import Panel, bounds, draw_panels
from etrm.report.run_view import RunView, StudyView, by_name, last_stage

UNLIKE = ("experiment", "stage", "seed", "health", "halting")  # where runs of a group may differ
Grid = dict[tuple[int, float], list[RunView]]  # by max_steps and exploration_prob


@style.figure
def halting(study: StudyView) -> Figure:
    """Draw ACT steps and the halting head over training, and held-out answers by ACT step."""
    views, runs = last_stage(study.runs)
    bound, _ = bounds(study.health, "unsure_halting")
    panels = [
        Panel("train/steps", "ACT steps of a sample in training"),
        Panel(
            "train/q_halt_accuracy",
            "Accuracy of the halting head",
            ((bound, f"good\n> {100 * bound:g} %"),),
            percent=True,
        ),
        Panel("train/q_halt_loss", "Loss of the halting head"),
        Panel("steps", "Share of held-out answers by ACT steps", draw=_histogram),
        Panel("exact", "Exact match by ACT step", draw=partial(_by_step, "exact_accuracy")),
        Panel("accuracy", "Token accuracy by ACT step", draw=partial(_by_step, "accuracy")),
    ]
    return draw_panels(study, views, panels, runs=runs, subject="run")


def _line(look: style.Look, view: RunView) -> dict[str, Any]:
    dashes = "--" if view.is_trm else "-"
    return {"color": look.colour, "marker": look.marker, "ls": dashes, "zorder": 2.5}


def _histogram(axes: Axes, views: Sequence[RunView], look_of: Mapping[str, style.Look]) -> None:
    """Draw the shares of answers by the steps that they took, where any stopped early."""
    answered = by_name(view for view in views if view.predictions is not None)
    paths = {name: [view.predictions for view in mine] for name, mine in answered.items()}
    found = {n: pq.read_table(of, columns=["steps"])["steps"].to_numpy() for n, of in paths.items()}
    answers = {name: steps for name, steps in found.items() if len(steps)}
    if not answers:
        style.say(axes, "no answers to held-out tasks yet")
    elif all(steps.min() == steps.max() for steps in answers.values()):
        style.say(axes, "every answer took all of its steps: evaluations do not halt early")
    else:
        for name, steps in answers.items():
            counts = np.bincount(steps)[1:]
            line = _line(look_of[name], answered[name][0]) | {"drawstyle": "steps-mid"}
            axes.plot(range(1, len(counts) + 1), counts / counts.sum(), markevery=0.2, **line)
        axes.yaxis.set_major_formatter(style.percent)
        _steps(axes)


def _by_step(
    metric: str, axes: Axes, views: Sequence[RunView], look_of: Mapping[str, style.Look]
) -> None:
    """Draw a metric of held-out answers after each ACT step, the mean over seeds."""
    for name, mine in by_name(views).items():
        curves = [((view.score or {}).get("by_step") or {}).get(metric) for view in mine]
        if known := [curve for curve in curves if curve]:
            mean = np.mean([curve[: min(map(len, known))] for curve in known], axis=0)
            line = _line(look_of[name], mine[0]) | {"markevery": max(1, len(mean) // 6)}
            axes.plot(np.arange(1, len(mean) + 1), mean, **line)
    if not axes.lines:
        style.say(axes, "no evaluation on held-out tasks has recorded its steps yet")
        return
    axes.yaxis.set_major_formatter(style.percent)
    _steps(axes)


def _steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("ACT step")
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])  # a line at zero stays in sight


@style.figure
def halting_grid(study: StudyView) -> Figure:
    """Draw exact match by `max_steps` and `exploration_prob`, as heat maps and as curves.

    Of experiments that differ in nothing else, the largest group: overfit runs (the guide found a U
    over exploration), and pass@1 of their full runs.
    """
    overfit, full = _group(study.runs)
    if len({*overfit, *full}) < 2:
        words = "no two experiments differ in max_steps and exploration_prob alone"
        raise style.EmptyFigureError(words)
    fig, (left, right, curves), columns = style.small_multiples(study.style, 3, 3, 0.95)
    for axes, words in (
        (left, "Overfit runs: exact match, %"),
        (right, "Full runs: pass@1, %"),
        (curves, "Overfit runs: exact match"),
    ):
        style.title(axes, words, study.style, columns)
    _heat_map(left, overfit, _exact)
    _heat_map(right, full, lambda view: view.test_metric("ARC/pass@1"))
    style.legend_below(fig, _curves(curves, overfit), study.style)
    return fig


def _group(runs: Sequence[RunView]) -> tuple[Grid, Grid]:
    """Return the overfit and the full runs of the largest group that differs in halting alone."""
    groups: dict[str, tuple[Grid, Grid]] = {}
    etrm = [view for view in runs if not view.is_trm and "halting" in view.run.get("config", {})]
    for mine in by_name(etrm).values():
        config = mine[0].run["config"]  # of its overfit run, where it has one
        others = {k: v for k, v in config.items() if k not in UNLIKE}
        key = json.dumps([mine[0].stage, others], sort_keys=True)
        cell = int(config["halting"]["max_steps"]), float(config["halting"]["exploration_prob"])
        for view in mine:
            both = groups.setdefault(key, (defaultdict(list), defaultdict(list)))
            both[view.stage == "full"][cell].append(view)
    return max(groups.values(), key=lambda of: len({*of[0], *of[1]}), default=({}, {}))


def _exact(view: RunView) -> float | None:
    if view.verdict is not None:
        return float(view.verdict["exact_accuracy"])
    return view.last("all.exact_accuracy")


def _mean(views: Sequence[RunView], value: Callable[[RunView], float | None]) -> float:
    mean = over_seeds(map(value, views))["value"]
    return np.nan if mean is None else mean


def _heat_map(axes: Axes, grid: Grid, value: Callable[[RunView], float | None]) -> None:
    """Draw a cell for each pair of options, with its percentage; a dash where there is no run."""
    cells = {cell: _mean(views, value) for cell, views in grid.items()}
    if not np.isfinite(list(cells.values())).any():
        style.say(axes, "no run has finished yet")
        return
    down, across = sorted({m for m, _ in cells}), sorted({p for _, p in cells})
    table = np.array([[cells.get((m, p), np.nan) for p in across] for m in down])
    low, high = np.nanmin(table), np.nanmax(table)
    shown = np.ma.masked_invalid(table)
    axes.imshow(shown, cmap="viridis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for row, column in np.ndindex(table.shape):
        share = table[row, column]
        text = "–" if np.isnan(share) else f"{100 * share:.0f}"
        dark = np.isnan(share) or share > low + 0.6 * (high - low)
        place: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(column, row, text, color="#222222" if dark else "white", **place)
    axes.set_xticks(range(len(across)), [f"{p:g}" for p in across])
    axes.set_yticks(range(len(down)), [str(m) for m in down])
    axes.set(xlabel="exploration", ylabel="max. ACT steps")
    axes.grid(False)


def _curves(axes: Axes, grid: Grid) -> list[Line2D]:
    """Draw exact match over exploration, a line for each number of steps.

    Where exploration does not vary, over the number of steps.
    """
    by_steps = len({p for _, p in grid}) > 1
    lines: dict[int | None, dict[float, float]] = defaultdict(dict)
    for (steps, exploration), views in sorted(grid.items()):
        line, place = (steps, exploration) if by_steps else (None, steps)
        lines[line][place] = _mean(views, _exact)
    entries = []
    for colour, (most, shares) in zip(style.PALETTE, lines.items(), strict=False):
        look: dict[str, Any] = {"color": colour, "marker": "o", "ms": 4}
        axes.plot(list(shares), list(shares.values()), **look)
        if most is not None:
            entries.append(style.entry(f"{most} steps at most", **look))
    axes.set_xlabel("exploration" if by_steps else "max. ACT steps")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(style.percent)
    if not axes.lines:
        style.say(axes, "no overfit run has finished yet")
    return entries
