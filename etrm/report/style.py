"""One place for the look of every figure: theme, colours, legends, ARC grids, and saving."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etrm.arc.grid import ARC_COLOURS
from etrm.storage.files import atomic_write

if TYPE_CHECKING:
    from etrm.config.execution import FigureStyle
    from etrm.report.run_view import StudyView

# Okabe and Ito's colour-blind-safe colours without black, and without their yellow, which is too
# pale for lines; then those that are each time farthest from all before, in OKLab as it is and as
# deuteranopes see it. The order counts: a name's colour is a place in it.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#99095C", "#5A590F",
    "#A053E1", "#3DCB47", "#6228BB", "#E078FF", "#C50124", "#7F588B", "#44C3A5", "#A09753",
    "#3C74FB", "#DB327B", "#067971", "#FB817C", "#9288DB", "#94563E", "#A624A0", "#207E27",
)  # fmt: skip
INK = "#222222"  # TRM, in every figure
MARKERS = ("", "s", "^", "D", "v", "P", "<", ">", "p")  # not `o` and `X`, which mark ends of runs
ARC_MAP = ListedColormap(list(ARC_COLOURS), name="arc")
ARC_NORM = BoundaryNorm(np.arange(-0.5, 10.5), ncolors=10)
RIGHT, WRONG = "#009E73", "#D55E00"  # from the palette: apart for the colour-blind
GUIDE = "#555555"  # thresholds and notes
CELL_LINE = "#555555"
LONGEST_WORD = 16  # letters: longer ones may be broken


@dataclass(frozen=True)
class Look:
    """Colour and marker of the lines of one experiment."""

    colour: str
    marker: str

    @property
    def mark(self) -> dict[str, Any]:
        """Colour and marker of a single mark, a dot where lines have none."""
        return {"color": self.colour, "marker": self.marker or "o"}


class EmptyFigureError(Exception):
    """A study has nothing that a figure shows; the message says so to its readers."""


@contextlib.contextmanager
def theme(style: FigureStyle) -> Iterator[None]:
    """Set the look under which a figure is built; the global settings stay as they are."""
    import seaborn as sns  # late: it takes longer to load than a picture of grids to draw

    scale = style.font_scale
    settings: dict[str, Any] = dict(sns.axes_style("ticks"))
    settings |= sns.plotting_context("paper", font_scale=scale)
    settings |= dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize"), 7.5 * scale)
    settings |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7 * scale)
    settings |= dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)
    settings |= dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5)
    settings |= {
        "axes.titlesize": 8.5 * scale,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
        **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4"},
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
        **{"grid.linewidth": 0.5, "lines.linewidth": 1.3, "lines.markersize": 3.5},
    }
    with mpl.rc_context(cast(Any, settings)):
        yield


def figure(draw: Callable[[StudyView], Figure]) -> Callable[[StudyView], Figure]:
    """Make a function draw in the look of its study, and say in words where there is nothing."""

    @functools.wraps(draw)
    def drawn(study: StudyView) -> Figure:
        with theme(study.style):
            try:
                return draw(study)
            except EmptyFigureError as reason:
                return empty_figure(study.style, str(reason))

    return drawn


def colour_of(name: str) -> str:
    """Return the colour of an experiment: a function of its name alone, in whatever study.

    TRMs are dark: names with the word `trm`, but not `etrm`.
    """
    words = re.split(r"[\W_]+", name.lower())
    if "trm" in words and not any(word.startswith("etrm") for word in words):
        return INK
    return PALETTE[_hash(name) % len(PALETTE)]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return a look for each name: its own colour, and a marker.

    Markers tell names of one colour apart, up to nine; a name has the one of its hash if it can.
    """
    chosen: dict[str, Look] = {}
    for name in sorted(set(names)):
        colour = colour_of(name)
        start = 0 if colour == INK else _hash(name) // len(PALETTE) % len(MARKERS)
        wanted = [Look(colour, m) for m in (*MARKERS[start:], *MARKERS[:start])]
        taken = set(chosen.values())
        chosen[name] = next((look for look in wanted if look not in taken), wanted[0])
    return chosen


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())  # hash() differs from process to process


def wrap(name: str, width: int) -> str:
    """Break a name into lines between its words: after `_`, `-`, `/`, a dot or a space.

    A word stays whole even if it is wider; only one of more than `LONGEST_WORD` letters does not.
    """
    lines: list[str] = []
    for word in re.split(r"(?<=[-_/ ])|(?<=\.)(?=[a-z])", re.sub(" +", " ", name).strip(" ")):
        for start in range(0, len(word), max(width, LONGEST_WORD)):
            piece = word[start : start + max(width, LONGEST_WORD)]
            if lines and (piece == " " or len(lines[-1]) + len(piece.rstrip(" ")) <= width):
                lines[-1] += piece
            else:
                lines.append(piece)
    return "\n".join(line.rstrip(" ") for line in lines)


def legend_below(fig: Figure, handles: Sequence[Artist], style: FigureStyle) -> float:
    """Put a legend under all panels, and make the figure higher by it; return its inches.

    A constrained layout makes room for it.
    """
    if not handles:
        return 0.0
    for handle in handles:
        handle.set_label(wrap(str(handle.get_label()), 34))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    inches = (longest * 0.62 + 5) * 7.5 * style.font_scale / 72  # an entry: letters and its line
    columns = max(1, min(len(handles), int(style.width / inches)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))  # rows of equal length
    place: Any = "lower center" if fig.get_layout_engine() is None else "outside lower center"
    legend = fig.legend(handles=list(handles), loc=place, ncols=columns)
    box = legend.get_window_extent(FigureCanvasAgg(fig).get_renderer())
    fig.set_figheight(fig.get_figheight() + box.height / fig.dpi)
    return float(box.height / fig.dpi)


def entry(label: str, color: str = GUIDE, **line: Any) -> Line2D:
    """Return an entry of a legend: a line, or a mark alone where `ls` is empty."""
    return Line2D([], [], label=label, color=color, **line)


def letters_across(inches: float, points: float) -> int:
    """Return how many letters of a font of `points` fit on a line of `inches`."""
    return max(6, int(inches * 72 / (0.62 * points)))


def across(panels: int, style: FigureStyle, least: float = 1.75) -> int:
    """Return how many of `panels` stand beside each other, with `least` inches for each.

    Larger text needs more. So the figures of a page's width are those of a column's, stacked.
    """
    return max(1, min(panels, int(style.width / (least * style.font_scale))))


def small_multiples(
    style: FigureStyle, count: int, columns: int, ratio: float, least: float = 1.75
) -> tuple[Figure, list[Axes], int]:
    """Return a figure of `count` panels, the panels, and how many stand in a row.

    At most `columns`, and as many as fit (`across`). `ratio`: of a panel's height to its width, for
    panels that are not stacked for want of width.
    """
    wanted = min(columns, count)
    columns = across(wanted, style, least)
    high = ratio * style.width / columns
    if columns < wanted:
        high = min(high, 1.6 * style.font_scale)
    rows = -(-count // columns)
    size = style.width, rows * high + 0.45 * style.font_scale
    fig = Figure(figsize=size, layout="constrained")
    grid = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid[count:]:
        axes.set_axis_off()
    return fig, grid[:count], columns


def share_y(panels: Sequence[Axes], columns: int) -> None:
    """Give panels one y axis, numbered at the first of `columns` only."""
    for i, axes in enumerate(panels[1:], 1):
        axes.sharey(panels[0])
        axes.tick_params(labelleft=i % columns == 0)


def title(axes: Axes, words: str, style: FigureStyle, columns: int) -> None:
    """Set the title of a panel, one of `columns` across the figure, in lines that fit."""
    room = 0.8 * style.width / columns  # the rest is for axes and what stands beside them
    lines = (wrap(line, letters_across(room, 8.5 * style.font_scale)) for line in words.split("\n"))
    axes.set_title("\n".join(lines))


def heading(fig: Figure, style: FigureStyle, *words: str) -> None:
    """Say above all panels what they show, such as the stage of the runs; empty words are none."""
    size = 8 * style.font_scale
    text = wrap(", ".join(filter(None, words)), letters_across(style.width, size))
    fig.suptitle(text, fontsize=size, style="italic", color=GUIDE)


def part_of(shown: int, of: int, what: str) -> str:
    """Return words for a heading that say how much of something is shown, if that is not all."""
    return f"{shown} of {of} {what}" if shown < of else ""


def percent(value: float, _place: float | None = None) -> str:
    """Return a fraction as the label of an axis: `7.5 %`."""
    return f"{100 * value:g} %"


def empty_figure(style: FigureStyle, words: str) -> Figure:
    """Return a figure that says in words why it shows nothing."""
    fig = Figure(figsize=(style.width, 0.25 * style.width), layout="constrained")
    say(fig.subplots(), words)
    return fig


class Rows:
    """Names one below the other, broken into lines: their places, in inches from the top."""

    def __init__(self, names: Sequence[str], style: FigureStyle) -> None:
        letters = min(26, letters_across(0.4 * style.width, 7 * style.font_scale))
        self.labels = [wrap(name, letters) for name in names]
        line = 1.35 * 7 * style.font_scale / 72
        heights = [line * (label.count("\n") + 1) + 0.05 for label in self.labels]
        ends = np.cumsum([0.0, *heights])
        self.height, self.at = float(ends[-1]), (ends[1:] + ends[:-1]) / 2

    def label(self, axes: Axes) -> None:
        """Put the names beside the axis of a panel, the first one at the top."""
        axes.set_ylim(self.height, 0)
        axes.set_yticks(list(self.at), self.labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")


def say(axes: Axes, words: str) -> None:
    """Replace an empty panel by words."""
    axes.set_axis_off()
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, wrap(words, 26), color=GUIDE, style="italic", **place)


def draw_grid(
    axes: Axes,
    grid: np.ndarray | None,
    frame: tuple[float, float],
    missing: str,
    font: float,
    centred: bool = True,
) -> None:
    """Draw an ARC grid (uint8 [height, width]) in a frame of (height, width) cells.

    It stands in the middle, or at the left unless `centred`.

    One frame makes grids of different sizes comparable: their cells are equally large. A grid that
    is None or empty gives the word `missing`, in points `font`.
    """
    rows, columns = frame
    axes.set_axis_off()
    if grid is None or not grid.size:
        center: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, missing, color=GUIDE, fontsize=font, **center)
        return
    height, width = grid.shape
    top, left = (rows - height) / 2, (columns - width) / 2 * centred
    extent = (left, left + width, top + height, top)  # row 0 at the top
    axes.imshow(grid, cmap=ARC_MAP, norm=ARC_NORM, extent=extent, interpolation="none", zorder=1)
    thin = 0.5 if max(frame) <= 12 else 0.25  # points; large grids would drown in lines
    line: dict[str, Any] = {"colors": CELL_LINE, "linewidth": thin, "clip_on": False}
    axes.hlines(top + np.arange(height + 1), left, left + width, zorder=2, **line)
    axes.vlines(left + np.arange(width + 1), top, top + height, zorder=2, **line)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)  # downwards, like rows of a grid


def save(fig: Figure, stem: Path | str, formats: Sequence[str], dpi: int) -> list[Path]:
    """Write `<stem>.<format>` for each format and return the paths.

    A file appears whole or not at all, and the same figure gives the same bytes: no dates.
    """
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    settings: Any = {"pdf.fonttype": 42, "svg.hashsalt": "etrm", "svg.fonttype": "none"}
    paths = []
    for kind in formats:
        path = Path(f"{stem}.{kind}")
        with mpl.rc_context(settings), atomic_write(path) as temporary:
            fig.savefig(temporary, format=kind, dpi=dpi, metadata=metadata.get(kind))
        paths.append(path)
    return paths
