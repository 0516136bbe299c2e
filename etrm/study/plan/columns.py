"""Aligned columns and wrapped text, in the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from etrm.config.compare import NONE

GAP, HANGING = "  ", " " * 8
NARROWEST = 24  # of the last column: below it, reasons have lines of their own
MOST = 2  # lines of a reason beside its row
NAME = 24  # of the first column, where there is no room: names are cut in the middle


Row = tuple[str, ...]


def aligned(head: Row, rows: Sequence[Row | str], width: int) -> list[str]:
    """Lines of a table, no wider than `width` where that can be; a text among `rows` is a heading.

    The first column has names, which give way where there is no room; the last has reasons, which
    have lines of their own where that is not enough. Columns in which no row has anything are left
    out.
    """
    head, rows = _filled(head, rows)
    cells = [head, *(row for row in rows if not isinstance(row, str))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head) - 1)]
    left = width - sum(widths) - len(GAP) * len(widths)
    spare, wanted = max(0, widths[0] - NAME), min(NARROWEST, max(len(row[-1]) for row in cells))
    beside = left + spare >= wanted
    given = max(0, wanted - left) if beside else min(spare, max(0, -left))
    widths[0], left = widths[0] - given, left + given
    lines = []
    for row in [head, *rows]:
        if isinstance(row, str):
            lines += wrapped(row, width)
            continue
        fixed = [_cut(cell, size).ljust(size) for cell, size in zip(row, widths, strict=False)]
        line = GAP.join(fixed)
        if beside:
            why = textwrap.wrap(row[-1], left, max_lines=MOST, placeholder=" …") or [""]
            lines.append(f"{line}{GAP}{why[0]}".rstrip())
            lines += [" " * (len(line) + len(GAP)) + more for more in why[1:]]
        else:
            lines += [line.rstrip(), *(wrapped(row[-1], width, "    ") if row is not head else ())]
    return lines


def _filled(head: Row, rows: Sequence[Row | str]) -> tuple[Row, list[Row | str]]:
    """Without the columns in which no row has anything."""
    cells = [row for row in rows if not isinstance(row, str)]
    last = len(head) - 1
    kept = [i for i in range(last) if any(row[i] not in ("", NONE) for row in cells)] + [last]
    picked = [row if isinstance(row, str) else tuple(row[i] for i in kept) for row in rows]
    return tuple(head[i] for i in kept), picked


def _cut(text: str, width: int) -> str:
    """Names differ at their end as well as at their beginning."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of a text; later ones hang where there is no `indent`."""
    later = indent or HANGING
    return textwrap.wrap(
        text, max(width, NARROWEST), initial_indent=indent, subsequent_indent=later
    )
