"""Schematics: the pipeline, TRM's embedding against ETRM's encoder, and the encoder families."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from etrm.report.run_view import StudyView
from etrm.report.style import GUIDE, INK, across, figure, letters_across, wrap

if TYPE_CHECKING:
    from etrm.config.execution import FigureStyle

PLAIN, OURS, THEIRS = "#f1f1f1", "#d6e8f5", "#f5e3d0"  # behind text: what differs is coloured
GAP, PAD, MARGIN = 0.24, 0.06, 0.04  # inches: between boxes, in a box, around all
LEAST = 1.3  # inches, of a box and the arrow beside it


@dataclass(frozen=True)
class Box:
    """A box: a name, what it does, and its colour."""

    name: str
    words: str = ""
    colour: str = PLAIN


PIPELINE = (
    (
        Box("Tasks", "ARC, RE-ARC, generated worlds; held\u2011out and validation tasks set apart"),
        Box("Variants", "8 dihedral transforms × permutations of colours"),
        Box("Pretraining", "TRM with puzzle embeddings; strict: no held\u2011out pair", THEIRS),
        Box("Overfit test", "ETRM on a few tasks, the decoder initialised from TRM", OURS),
    ),
    (
        Box(
            "Gate",
            "exact match >\u00a090\u00a0%, no finding of health; else the verdict says why",
        ),
        Box("Full run", "all training tasks; validation tasks select", OURS),
        Box("Evaluation", "held\u2011out tasks, a vote over variants: pass@k; latent search"),
        Box("Report", "figures, tables, records"),
    ),
)
MODELS = (
    (
        Box("TRM: puzzle id", "an index: task and variant"),
        Box("Table", "a learned row for each puzzle, by gradients of its labels", THEIRS),
        Box("Decoder", "context and test input; z_H, z_L refined at each ACT step"),
        Box("Answer", "a colour for each cell; q_halt: is it right?"),
    ),
    (
        Box("ETRM: demos", "input and output pairs, of any task"),
        Box("Encoder", "one forward pass from the demos, shared by all tasks", OURS),
        Box("Decoder", "the same network, states and loss"),
        Box("Answer", "also for tasks that were never trained on"),
    ),
)
FAMILIES = (
    (
        Box("standard", "and variational", OURS),
        Box("A transformer for each pair", "pooled to a vector"),
        Box("Learned queries across pairs", "variational: a normal latent behind them"),
    ),
    (
        Box("lpn, lpn_deep", "and variational", OURS),
        Box("A CLS token for each pair"),
        Box("The mean over pairs", "variational: a latent for each pair"),
    ),
    (
        Box("hybrid", "and variational", OURS),
        Box("A deep CLS token for each pair"),
        Box("Learned queries across pairs"),
    ),
    (
        Box("cross_attention", "", OURS),
        Box("Cells of all pairs attend to each other"),
        Box("Pooled for each pair, then queries"),
    ),
    (
        Box("hierarchical", "", OURS),
        Box("Cells to grids, grids to pairs"),
        Box("Pairs to the pattern"),
    ),
    (
        Box("set_transformer", "", OURS),
        Box("A vector for each pair"),
        Box("Induced set attention over pairs"),
    ),
    (
        Box("perceiver", "", OURS),
        Box("Learned queries read the cells of all pairs"),
        Box("No vector of a pair between"),
    ),
    (
        Box("recurrent", "ETRM²", OURS),
        Box("A state of the encoder's own"),
        Box("Refined by the demos at every ACT step"),
    ),
    (
        Box("in_context", "", OURS),
        Box("Every cell of the demos"),
        Box("Read by the decoder as it is: no bottleneck"),
    ),
)


@figure
def pipeline(study: StudyView) -> Figure:
    """Draw the stages of a study, from tasks to the report."""
    return _draw(PIPELINE, study.style, path=True)


@figure
def trm_and_etrm(study: StudyView) -> Figure:
    """Draw the one difference between TRM and ETRM: where the context comes from."""
    return _draw(MODELS, study.style)


@figure
def encoder_families(study: StudyView) -> Figure:
    """Draw how each family of encoders reads pairs, and how it combines them."""
    return _draw(FAMILIES, study.style)


def _draw(rows: Sequence[Sequence[Box]], style: FigureStyle, path: bool = False) -> Figure:
    """Draw boxes in rows with arrows between; where they do not fit, two a row.

    `path`: the rows are one, and every second one runs backwards. Others become columns.
    """
    narrow = across(len(rows[0]), style, LEAST) < min(4, len(rows[0]))
    down = narrow and not path and len(rows) == 2
    if narrow and path:
        boxes = list(itertools.chain(*rows))
        rows = [boxes[i : i + 2] for i in range(0, len(boxes), 2)]
    elif down:
        rows = list(zip(*rows, strict=True))
    most = max(map(len, rows))
    width = (style.width - 2 * MARGIN - GAP * (most - 1)) / most
    texts = [[_lines(box, width, style) for box in row] for row in rows]
    line = 1.3 * 7 * style.font_scale / 72  # inches
    heights = [2 * PAD + line * max(len(n) + len(w) for n, w in row) for row in texts]
    total = 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1)
    fig = Figure(figsize=(style.width, total))
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, style.width), ylim=(total, 0))  # inches, downwards
    top = MARGIN
    for number, (row, lines, height) in enumerate(zip(rows, texts, heights, strict=True)):
        backwards = path and number % 2 == 1
        lefts = [MARGIN + i * (width + GAP) for i in range(len(row))]
        lefts = lefts[::-1] if backwards else lefts
        for left, box, of in zip(lefts, row, lines, strict=True):
            _box(axes, (left, top, width, height), box, of, line)
        middle, bottom = top + height / 2, top + height
        for left, following in itertools.pairwise(lefts) if not down else ():
            start = left + (0 if backwards else width)
            _arrow(axes, (start, middle), (following + (width if backwards else 0), middle))
        for left in lefts if down else lefts[-1:] if path else ():
            if number + 1 < len(rows):
                x = left + width / 2
                _arrow(axes, (x, bottom), (x, bottom + GAP))
        top += height + GAP
    return fig


def _lines(box: Box, width: float, style: FigureStyle) -> tuple[list[str], list[str]]:
    """Return the lines of name and words that fit into a box."""
    room = letters_across(width - 2 * PAD, 7 * style.font_scale)
    name = wrap(box.name, int(0.9 * room)).split("\n")  # bold letters are wider
    return name, wrap(box.words, room).split("\n") if box.words else []


def _box(
    axes: Axes,
    place: tuple[float, float, float, float],
    box: Box,
    lines: tuple[list[str], list[str]],
    line: float,
) -> None:
    left, top, width, height = place
    look: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.05", "linewidth": 0.7}
    patch = FancyBboxPatch((left, top), width, height, fc=box.colour, ec=GUIDE, **look)
    axes.add_patch(patch)
    y = top + (height - line * sum(map(len, lines))) / 2
    for words, weight in zip(lines, ("bold", "normal"), strict=True):
        for each in words:
            at: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "color": INK,
                "size": line * 72 / 1.3,
            }
            axes.text(left + width / 2, y + line / 2, each, weight=weight, **at)
            y += line


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "color": GUIDE, "linewidth": 0.9, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops=look)
