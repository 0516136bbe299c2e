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
RIGHT, WRONG = "#009E73", "#D55E00"  # from the palette: apart for the colour-blind
GUIDE = "#555555"  # thresholds and notes
CELL_LINE = "#555555"


@dataclass(frozen=True)
class Look:
    """Colour and marker of the lines of one experiment."""

    colour: str
    marker: str


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


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Return a look for each name, all different.

    A name starts from a colour of its own (a hash), so that adding an experiment leaves most
    others as they are; once all colours are taken, lines get markers.
    """
    free = [Look(colour, marker) for marker in MARKERS for colour in PALETTE]  # best first
    chosen: dict[str, Look] = {}
    for i, name in enumerate(sorted(set(names))):
        if not free:  # beyond 49 experiments, looks repeat
            chosen[name] = Look(PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE) % 7])
            continue
        start = zlib.crc32(name.encode()) % len(PALETTE)  # hash() differs from process to process
        marker = free[0].marker
        colours = [look.colour for look in free if look.marker == marker]
        wanted = next(c for c in (*PALETTE[start:], *PALETTE[:start]) if c in colours)
        chosen[name] = Look(wanted, marker)
        free.remove(chosen[name])
    return chosen


def wrap(name: str, width: int) -> str:
    """Break a name into lines, after `_`, `-` or a space if possible."""
    spaced = name.replace("_", "_ ").replace("-", "- ")  # places where a line may end
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
    """Put a legend under all panels, where it covers no data; needs a constrained layout."""
    if not handles:
        return
    for handle in handles:
        handle.set_label(wrap(str(handle.get_label()), 34))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    inches = (longest * 0.62 + 5) * 7.5 * style.font_scale / 72  # an entry: letters and its line
    columns = max(1, min(len(handles), int(style.width / inches)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))  # rows of equal length
    fig.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def say(axes: Axes, words: str) -> None:
    """Replace an empty panel by words."""
    axes.set_axis_off()
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, textwrap.fill(words, 26), color=GUIDE, style="italic", **place)


def draw_grid(
    axes: Axes, grid: np.ndarray | None, frame: tuple[int, int], missing: str, font: float
) -> None:
    """Draw an ARC grid (uint8 [height, width]) in the middle of a frame of (height, width) cells.

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
    top, left = (rows - height) / 2, (columns - width) / 2  # centred
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
