"""The figure `answer`: pass@k on held-out tasks, TRM, every ETRM, and published results."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from etrm.report import style
from etrm.report.estimates import score_of
from etrm.report.published import find
from etrm.report.run_view import RunView, StudyView, asked, by_name, distinct, last_stage
from etrm.report.tables import ATTEMPTS

ARC1 = "ARC-AGI-1 evaluation"
DOTTED: Any = {
    "color": style.GUIDE,
    "linestyle": ":",
    "linewidth": 0.7,
    "alpha": 0.6,
    "zorder": 1.1,
}


@dataclass(frozen=True)
class Mark:
    """A value with its interval in one panel."""

    value: float
    low: float | None
    high: float | None
    seen: bool  # demos of the tasks were trained on
    tasks: int | None  # in the denominator; None: not stated


@dataclass(frozen=True)
class Line:
    """A row of the figure."""

    label: str
    colour: str
    marker: str
    marks: Mapping[int, Mark]  # by k
    words: str = ""  # in place of marks
    group: tuple[bool, int] = (True, 0)  # lines of the same tasks; those of the benchmark last


@style.figure
def answer(study: StudyView) -> Figure:
    """Draw pass@1 and pass@2 on held-out tasks: TRM, ETRM from the best on, published results.

    A mark is the mean over seeds, with its 95 % interval over seeds and tasks; it is hollow where
    demos of the tasks were trained on. Lines part experiments that were asked other tasks.
    Published values are diamonds on dotted lines, beside experiments of their benchmark only.
    """
    ours, theirs = _experiments(study.runs), _published(study.runs)
    if not any(line.marks for line in ours):
        raise style.EmptyFigureError("no experiment has a score on held-out tasks yet")
    lines = [*ours, *theirs]
    rows = style.Rows([line.label for line in lines], study.style)
    columns = style.across(len(ATTEMPTS), study.style, 2.6)  # labels and values beside the panels
    down = -(-len(ATTEMPTS) // columns)
    size = (
        study.style.width,
        down * (rows.height + 0.4 * study.style.font_scale) + 0.35 * study.style.font_scale,
    )
    fig = Figure(figsize=size, layout="constrained")
    style.heading(fig, study.style, last_stage([v for v in study.runs if v.score is not None])[1])
    panels = fig.subplots(down, columns, sharey=True, squeeze=False).ravel()
    top = next((y for y, line in zip(rows.at, lines, strict=True) if line.group[0]), 0.0)
    for axes, k in zip(panels, ATTEMPTS, strict=True):
        axes.set_title(f"pass@{k}, held-out tasks")
        for y, line in zip(rows.at, lines, strict=True):
            _draw(axes, float(y), line, k)
            if line in theirs and (mark := line.marks.get(k)):
                axes.plot([mark.value] * 2, [top, rows.height], **DOTTED)
        _axis(axes)
        for i, (one, other) in enumerate(itertools.pairwise(lines)):
            if one.group != other.group or (other in theirs and one in ours):
                axes.axhline((rows.at[i] + rows.at[i + 1]) / 2, color=style.GUIDE, linewidth=0.6)
        rows.label(axes)
    style.legend_below(fig, _legend(lines, bool(theirs)), study.style)
    return fig


def _experiments(runs: Sequence[RunView]) -> list[Line]:
    """Return a line for each experiment that is or could have been evaluated."""
    look_of = style.looks(view.experiment for view in runs)
    lines = []
    groups: dict[frozenset[str], int] = {}  # by the tasks that were asked
    # An experiment without a score stands beside those of the same sources.
    of_sources = {asked(v): frozenset(v.score["ranks"]) for v in runs if v.score is not None}
    for name, mine in by_name(runs).items():
        if all(view.only_initialises for view in mine):
            continue
        scores = [view.score for view in mine if view.score is not None]
        seen = any(score["held_out"]["status"] == "seen" for score in scores)
        found = {k: score_of(mine, k) for k in ATTEMPTS if scores}
        known = {k: e for k, e in found.items() if e is not None}
        marks = {k: Mark(e.value, e.low, e.high, seen, e.tasks) for k, e in known.items()}
        label = name + " (partial)" * any(score["partial"] for score in scores)
        words = "" if marks else "stopped" if any(v.stopped for v in mine) else "not evaluated"
        look = look_of[name]
        first = 0 if mine[0].is_trm else 1 if marks else 2
        best = -marks[min(marks)].value if marks else 0.0
        default = of_sources.get(asked(mine[0]), frozenset())
        tasks = frozenset(scores[0]["ranks"]) if scores else default
        group = _on_arc1(mine[0]), groups.setdefault(tasks, len(groups))
        line = Line(label, look.colour, look.marker or "o", marks, words, group)
        lines.append((group, first, best, line))
    return [line for *_, line in sorted(lines, key=lambda each: each[:3])]


def _on_arc1(view: RunView) -> bool:
    """Return whether tasks of the published benchmark are among those of a run, or may be."""
    known = view.run.get("sources") or {}
    named = view.run.get("config", {}).get("sources") or known
    revisions = [source["revision"] or "" for name, source in known.items() if name in named]
    return not known or any(ARC1 in revision for revision in revisions)


def _published(runs: Sequence[RunView]) -> list[Line]:
    """Return a line for each published model, if the study's tasks are of their benchmark."""
    if not any(_on_arc1(view) for view in runs):
        return []
    found = {k: {p.name: p for p in find(f"pass@{k}")} for k in ATTEMPTS}
    lines = []
    for name in distinct(name for of in found.values() for name in of):
        marks = {}
        for k in ATTEMPTS:
            if (p := found[k].get(name)) is not None:
                low, high = p.interval or (None, None)
                marks[k] = Mark(p.value, low, high, p.split != "strict", p.tasks)
        lines.append(Line(name, style.GUIDE, "d", marks))
    return lines


def _draw(axes: Axes, y: float, line: Line, k: int) -> None:
    if line.words:
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(line.words, (0.02, y), color=style.GUIDE, style="italic", **place)
    if (mark := line.marks.get(k)) is None:
        return
    if mark.low is not None and mark.high is not None:
        ends: dict[str, Any] = {"color": line.colour, "linewidth": 1.2, "alpha": 0.7}
        axes.plot([mark.low, mark.high], [y, y], zorder=2, **ends)
    face = "white" if mark.seen else line.colour
    look: dict[str, Any] = {"marker": line.marker, "ms": 5, "ls": "", "mec": line.colour}
    axes.plot([mark.value], [y], mfc=face, zorder=3, **look)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
    beside |= {"textcoords": "offset points", "annotation_clip": False, "color": style.GUIDE}
    words = f"{100 * mark.value:.1f} %" + (f" of {mark.tasks}" if mark.tasks else "")
    axes.annotate(words, (1, y), xytext=(3, 0), fontsize="small", **beside)


def _axis(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(style.percent)
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # a mark at zero is whole


def _legend(lines: Sequence[Line], published: bool) -> list[Line2D]:
    seen = {mark.seen for line in lines for mark in line.marks.values()}
    mark: dict[str, Any] = {"ls": "", "ms": 5, "marker": "o"}
    entries = [style.entry("tasks never seen", **mark)] if False in seen else []
    if True in seen:
        entries.append(style.entry("demos of the tasks trained on", mfc="white", **mark))
    entries.append(style.entry("95 % interval", lw=1.2))
    if published:
        entries.append(style.entry("published, by others", marker="d", ls=":", lw=0.7))
    return entries
