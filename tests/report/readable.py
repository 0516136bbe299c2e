"""Whether the text of a figure can be read: by matplotlib's own extents, at its own size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def texts(fig: Figure) -> list[tuple[str, Bbox]]:
    """All visible text of a figure with its box in pixels, without ticks outside of the view."""
    fig.draw_without_rendering()
    hidden = set()
    for axes in fig.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                shown = axes.axison and low <= tick.get_loc() <= high
                hidden |= {label for label in (tick.label1, tick.label2) if not shown}
        if not axes.axison:
            hidden |= {axes.xaxis.label, axes.yaxis.label}
    found = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    found = [text for text in found if text not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def assert_readable(fig: Figure, names: Iterable[str] = ()) -> str:
    """Return the words of a figure, checked.

    No text over text, none outside of the page, no broken word, the legend beside the panels.

    `names`: longer words that may appear, which lines may break after `_` and `-` only.
    """
    found = texts(fig)
    assert found
    for text, _ in found:
        for name in names:
            assert_whole(text, name)
    smaller = [(text, box.padded(-0.5)) for text, box in found]
    for (one, box), (other, its) in itertools.combinations(smaller, 2):
        assert not box.overlaps(its), f"{one!r} lies over {other!r}"
    for text, box in found:
        inside = fig.bbox.padded(1.0)
        assert inside.contains(box.x0, box.y0), f"{text!r} leaves the page"
        assert inside.contains(box.x1, box.y1), f"{text!r} leaves the page"
    for legend in fig.legends:
        for axes in fig.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    return _words(found)


def assert_whole(text: str, name: str) -> None:
    """Within a name in the text no line ends but after `_`, `-` or `.`."""
    start = text.replace("\n", "").find(name)
    if start < 0:
        return
    lines = text.split("\n")
    ends = itertools.accumulate(len(line) for line in lines[:-1])
    inside = [end - start for end in ends if start < end < start + len(name)]
    broken = [name[:end] for end in inside if name[end - 1] not in "_-."]
    assert not broken, f"{text!r} breaks {name!r} after {broken}"


def legend_of(fig: Figure) -> list[str]:
    """Return the entries of all legends, each in one line."""
    return [text.get_text().replace("\n", "") for legend in fig.legends for text in legend.texts]


def words_of(fig: Figure) -> str:
    """Return all visible text of a figure in one line."""
    return _words(texts(fig))


def _words(found: Iterable[tuple[str, Bbox]]) -> str:
    return " ".join(text.replace("\n", " ") for text, _ in found)
