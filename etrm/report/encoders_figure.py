"""The figure `encoders`: what an encoder reaches, against its parameters and FLOPs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from etrm.report import style
from etrm.report.estimates import Estimate, by_experiment, score_of
from etrm.report.run_view import RunView, StudyView, asked, by_name

DEMOS, CELLS = 3, 144  # of the task whose encoding is counted: near the mean of ARC-AGI-1


@dataclass(frozen=True)
class Size:
    """The parameters and FLOPs of an encoder."""

    parameters: int
    flop: float | None  # of encoding one task once; None: it does not count its own


@style.figure
def encoders(study: StudyView) -> Figure:
    """Draw each experiment's outcome against its encoder's parameters and FLOPs.

    Of the largest group of experiments that were asked the same tasks. The outcome is pass@1 on
    held-out tasks; while nothing is scored, exact match of overfit runs. FLOPs are those of
    encoding three demos of 12 × 12 cells once, without the decoder's.
    """
    look_of = style.looks(view.experiment for view in study.runs)
    encoded = [view for view in study.runs if not view.is_trm]
    names = by_name(encoded)
    points, outcome, runs, ends = _points(_largest(encoded))
    sizes = {name: size_of(_first(study.runs, name)) for name in points}
    sized = {name: size for name, size in sizes.items() if size is not None}
    if not sized:
        raise style.EmptyFigureError("no run with an encoder has finished yet")
    fig, (left, right), columns = style.small_multiples(study.style, 2, 2, 0.75)
    style.share_y([left, right], columns)
    style.heading(
        fig, study.style, runs, style.part_of(len(sized), len(names), "experiments with an encoder")
    )
    panels: list[tuple[Axes, str, Callable[[Size], float | None]]] = [
        (left, "parameters of the encoder", lambda size: float(size.parameters)),
        (right, "FLOP of encoding a task", lambda size: size.flop),
    ]
    for axes, words, of in panels:
        places = _apart({name: of(size) for name, size in sized.items()})
        for name, x in places.items():
            _draw(axes, x, points[name], look_of[name])
        if places:
            _axis(axes, list(places.values()), words)
        else:
            style.say(axes, "no encoder here counts its FLOPs")
    for axes in (left, right)[::columns]:
        axes.set_ylabel(outcome)
    left.yaxis.set_major_formatter(style.percent)
    left.set_ylim(bottom=-0.02)
    entries = [style.entry(name, ms=4.5, ls="", **look_of[name].mark) for name in sized]
    style.legend_below(fig, [*entries, style.entry(ends, lw=0.8, alpha=0.6)], study.style)
    return fig


def _largest(views: Sequence[RunView]) -> list[RunView]:
    """Return the runs of the largest group of experiments that were asked the same tasks."""
    scored = [view for view in views if view.score is not None] or list(views)
    groups = Counter(_tasks(_first(scored, name)) for name in by_experiment(scored))
    return [view for view in scored if _tasks(view) == groups.most_common(1)[0][0]]


def _tasks(view: RunView) -> object:
    return asked(view) if view.score is None else frozenset(view.score["ranks"])


def _first(runs: Sequence[RunView], name: str) -> RunView:
    return next(view for view in runs if view.experiment == name)


def _apart(places: Mapping[str, float | None]) -> dict[str, float]:
    """Return the places that are known, equal ones a little beside each other."""
    known = {name: x for name, x in places.items() if x is not None}
    count = Counter(known.values())
    before: Counter[float] = Counter()
    found = {}
    for name, x in known.items():
        found[name] = x * (1 + 0.025 * (before[x] - (count[x] - 1) / 2))
        before[x] += 1
    return found


def _axis(axes: Axes, places: Sequence[float], words: str) -> None:
    axes.set_xlabel(words)
    if max(places) > 10 * min(places):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(min(places) / 1.2, 1.2 * max(places))  # no magnified difference of a percent
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _points(views: Sequence[RunView]) -> tuple[dict[str, Estimate], str, str, str]:
    """Return the outcome of each experiment, its name, the runs that have it, and the lines."""
    scored = by_experiment(view for view in views if view.score is not None)
    found = {name: score_of(mine) for name, mine in scored.items()}
    if points := {name: each for name, each in found.items() if each is not None}:
        return points, "pass@1, held-out tasks", "Full runs", "95 % interval"
    exact: dict[str, Estimate] = {}
    for name, mine in by_name(views).items():
        verdicts = [view.verdict for view in mine if view.verdict is not None]
        if values := [verdict["exact_accuracy"] for verdict in verdicts]:
            mean, ends = float(np.mean(values)), (min(values), max(values))
            exact[name] = Estimate("exact match", mean, *ends, 0, len(values))
    return exact, "exact match", "Overfit runs", "range of seeds"


def size_of(view: RunView) -> Size | None:
    """Return what the encoder of a run costs; None where its configuration is not known here.

    Counted from the shapes of its weights, which take no memory.
    """
    # Late: a report whose runs have no encoder needs no torch.
    from etrm.config.registry import context_options
    from etrm.config.schema import ConfigError, parse
    from etrm.config.study import ModelConfig
    from etrm.data.packing import TokenBounds
    from etrm.models.build import context_of_sizes

    config = view.run.get("config", {})
    options = context_options().get(config.get("context", {}).get("source"))
    if options is None:
        return None
    try:
        context = parse(options(), config["context"], "context")
        source = context_of_sizes(context, parse(ModelConfig, config["model"], "model"))
    except (ConfigError, KeyError):  # of another version, or an encoder of elsewhere
        return None
    tokens = np.full((1, DEMOS), CELLS + 1)
    work = source.work(TokenBounds(2 * tokens, tokens))
    parameters = sum(each.numel() for each in source.parameters())
    return Size(parameters, None if work is None else work.forward)


def _draw(axes: Axes, x: float, point: Estimate, look: style.Look) -> None:
    axes.plot([x, x], [point.low, point.high], color=look.colour, linewidth=0.8, alpha=0.4)
    axes.plot([x], [point.value], ms=4.5, zorder=3, **look.mark)
