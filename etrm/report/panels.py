"""Small multiples over training: one metric a panel, with thresholds, untrained values and ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etrm.config.health import HealthConfig, guide_rules
from etrm.report import curves, style
from etrm.report.estimates import over_seeds
from etrm.report.run_view import RunView, StudyView, by_name

DrawPanel = Callable[[Axes, Sequence[RunView], Mapping[str, style.Look]], None]


@dataclass(frozen=True)
class Panel:
    """One metric over steps, with thresholds (value, words) and its axis."""

    metric: str
    title: str
    lines: tuple[tuple[float, str], ...] = ()
    linear_below: float | None = None  # logarithmic above; None: linear
    percent: bool = False
    floor: bool = False  # the value before the first step is a dashed line
    draw: DrawPanel | None = None  # instead of curves


def bounds(health: HealthConfig, finding: str) -> tuple[float, float]:
    """Return where a rule fails and where it warns; the guide's if the study has no such rule.

    NaN for a rule that is switched off.
    """
    rule = health.rules.get(finding) or guide_rules()[finding]
    given = [bound for bound in (rule.fail, rule.warn, rule.stop) if bound is not None]
    return (given[0], given[min(1, len(given) - 1)]) if given else (math.nan, math.nan)


def draw_panels(
    study: StudyView,
    views: Sequence[RunView],
    panels: Sequence[Panel],
    *,
    runs: str,
    subject: str,
    columns: int = 2,
    rows: Sequence[str] = (),
    ratio: float = 0.54,
) -> Figure:
    """Draw metrics of runs, some panels a row; `runs` names their stage, `rows` each row.

    Without names of rows, a metric that no run has logged has no panel, and the heading says so.
    `ratio`: of the height of a panel to its width.
    """
    look_of = style.looks(view.experiment for view in study.runs)
    logged = {p.metric for p in panels if p.draw or any(len(v.series(p.metric)) for v in views)}
    views = [v for v in views if any(p.draw or len(v.series(p.metric)) for p in panels)]
    missing = ", ".join(p.metric for p in panels if p.metric not in logged) if not rows else ""
    panels = panels if rows else [p for p in panels if p.metric in logged]
    if not views:
        raise style.EmptyFigureError(f"no {subject} has finished yet")
    fig, grid, across = style.small_multiples(study.style, len(panels), columns, ratio)
    style.heading(fig, study.style, runs, f"not logged: {missing}" if missing else "")
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        style.title(axes, panel.title, study.style, across)
        if panel.draw is not None:
            panel.draw(axes, views, look_of)
            continue
        _draw(axes, panel, views, look_of)
        below = panels[i + across] if i + across < len(panels) else None
        curves.label_steps(axes, labelled=below is None or below.draw is not None)
    if across == columns:
        room = style.letters_across(
            ratio * study.style.width / across, 7.5 * study.style.font_scale
        )
        for axes, words in zip(grid[::across], rows, strict=False):
            axes.set_ylabel(style.wrap(words, room))
    handles = curves.legend_entries(views, look_of, grid)
    if any(panel.floor for panel in panels):
        handles.append(style.entry("untrained", linestyle="--"))
    ended = {view.stopped_by["metric"] for view in views if view.stopped_by is not None}
    if ended & {panel.metric for panel in panels}:
        handles.append(curves.end_entry("end of a run, by this metric"))
    style.legend_below(fig, handles, study.style)
    return fig


def _draw(
    axes: Axes, panel: Panel, views: Sequence[RunView], look_of: Mapping[str, style.Look]
) -> None:
    if not curves.draw_curves(axes, views, panel.metric, look_of):
        style.say(axes, f"no run has logged {panel.metric}")
        return
    if panel.floor:
        _floors(axes, views, panel.metric, look_of)
    lines: dict[float, str] = {}
    for value, words in panel.lines:
        if not math.isnan(value):
            lines.setdefault(value, words)  # the first of two at one place
    for value, words in lines.items():
        beside = "center" if len(lines) < 2 else "bottom" if value == max(lines) else "top"
        curves.draw_threshold(axes, value, words, beside)
    for view in views:
        if (by := view.stopped_by) is not None and by["metric"] == panel.metric:
            curves.mark_last(
                axes, curves.smoothed(view, panel.metric), "X", look_of[view.experiment].colour
            )
    low, high = axes.get_ylim()
    if panel.linear_below is not None:
        curves.make_logarithmic(axes, panel.linear_below)
    elif panel.percent:
        axes.set_ylim(bottom=-0.02)  # a line at zero stays in sight
        axes.yaxis.set_major_formatter(style.percent)
    else:
        axes.set_ylim(min(0.0, low), max(1.1 * high, 0.0))


def _floors(
    axes: Axes, views: Sequence[RunView], metric: str, look_of: Mapping[str, style.Look]
) -> None:
    """Draw each experiment's value before the first step, the mean over its seeds."""
    for name, mine in by_name(views).items():
        first = over_seeds(view.series(metric).get(0) for view in mine)["value"]
        if first is not None:
            look: dict[str, Any] = {"color": look_of[name].colour, "linestyle": "--"}
            axes.axhline(first, linewidth=0.8, alpha=0.7, zorder=1.4, **look)
