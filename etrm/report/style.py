"""One place for the look of every figure: theme, colours, legends, ARC grids, and saving."""

from __future__ import annotations

import contextlib
import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from etrm.storage.files import atomic_write

if TYPE_CHECKING:
    from etrm.config.execution import FigureStyle

# Okabe and Ito's colour-blind-safe colours without their yellow, which is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = ("", "o", "s", "^", "D", "v", "P")  # tell experiments apart once colours repeat
ARC_COLOURS = (
    "#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
    "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip
ARC_MAP = ListedColormap(list(ARC_COLOURS), name="arc")
ARC_NORM = BoundaryNorm(np.arange(-0.5, 10.5), ncolors=10)
RIGHT, WRONG = "#009E73", "#D55E00"
GUIDE = "#555555"  # thresholds and notes
CELL_LINE = "#555555"


@dataclass(frozen=True)
class Look:
    """How the lines of one experiment are drawn."""

    colour: str
    marker: str


@contextlib.contextmanager
def theme(style: FigureStyle) -> Iterator[None]:
    """The settings under which a figure is built; the global ones stay as they are."""
    settings: dict[str, Any] = dict(sns.axes_style("ticks"))
    settings |= sns.plotting_context("paper", font_scale=style.font_scale)
    small = 7.5 * style.font_scale
    settings |= {
        "font.size": small,
        "axes.labelsize": small,
        "axes.titlesize": 8.5 * style.font_scale,
        "xtick.labelsize": 7 * style.font_scale,
        "ytick.labelsize": 7 * style.font_scale,
        "legend.fontsize": small,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "lines.linewidth": 1.3,
        "lines.markersize": 3.5,
        "legend.frameon": False,
    }
    with mpl.rc_context(cast(Any, settings)):
        yield


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, all different. Give all names of a study for the same in each figure.

    A name starts from a colour of its own (a hash), so that adding an experiment leaves most
    others as they are; once all colours are taken, lines get markers.
    """
    free = [Look(colour, marker) for marker in MARKERS for colour in PALETTE]
    chosen: dict[str, Look] = {}
    for i, name in enumerate(sorted(set(names))):
        if not free:  # beyond 49 experiments, looks repeat
            chosen[name] = Look(PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % 7])
            continue
        wanted = PALETTE[zlib.crc32(name.encode()) % len(PALETTE)]
        rank = {colour: i for i, colour in enumerate(PALETTE)}
        start = rank[wanted]
        look = min(
            free, key=lambda x: (MARKERS.index(x.marker), (rank[x.colour] - start) % len(PALETTE))
        )
        free.remove(look)
        chosen[name] = look
    return chosen


def wrap(name: str, width: int) -> str:
    """The name over as many lines as it needs, broken after `_`, `-` or a space where it can."""
    spaced = name.replace("_", "_ ").replace("-", "- ")
    lines: list[str] = []
    for word in spaced.split(" "):
        for piece in textwrap.wrap(word, width) or [""]:
            glue = "" if not lines or lines[-1][-1:] in "_-" else " "
            if lines and len(lines[-1]) + len(glue) + len(piece) <= width:
                lines[-1] += glue + piece
            else:
                lines.append(piece)
    return "\n".join(lines)


def legend_below(fig: Figure, handles: Sequence[Line2D], style: FigureStyle) -> None:
    """A legend under all panels (the figure needs constrained layout): it never covers data."""
    if not handles:
        return
    for handle in handles:
        handle.set_label(wrap(str(handle.get_label()), 34))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    inches = (longest * 0.62 + 5) * 7.5 * style.font_scale / 72
    columns = max(1, min(len(handles), int(style.width / inches)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))  # rows of equal length
    fig.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def say(axes: Axes, words: str) -> None:
    """Replaces an empty panel by words."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        textwrap.fill(words, 26),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=GUIDE,
        style="italic",
    )


def draw_grid(
    axes: Axes, grid: np.ndarray | None, frame: tuple[int, int], missing: str, font: float
) -> None:
    """An ARC grid (uint8 [height, width]) in the middle of a frame of (height, width) cells.

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
    top, left = (rows - height) / 2, (columns - width) / 2
    extent = (left, left + width, top + height, top)
    axes.imshow(grid, cmap=ARC_MAP, norm=ARC_NORM, extent=extent, interpolation="none", zorder=1)
    thin = 0.5 if max(frame) <= 12 else 0.25
    line: dict[str, Any] = {"colors": CELL_LINE, "linewidth": thin, "clip_on": False}
    axes.hlines(top + np.arange(height + 1), left, left + width, zorder=2, **line)
    axes.vlines(left + np.arange(width + 1), top, top + height, zorder=2, **line)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)


def save(fig: Figure, stem: Path | str, formats: Sequence[str], dpi: int) -> list[Path]:
    """Writes `<stem>.<format>` for each format and returns the paths.

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
        with mpl.rc_context(settings), atomic_write(path) as part:
            fig.savefig(part, format=kind, dpi=dpi, metadata=metadata.get(kind))
        paths.append(path)
    return paths
