"""Aligned columns and wrapped text, in the width of a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from etrm.config.compare import NONE

GAP, HANGING = "  ", " " * 8
NARROWEST = 24  # of the last column: below it, reasons have lines of their own
MOST = 2  # lines of a reason beside its row
NAME = 24  # of the first column in a narrow terminal: names are cut in the middle

Row = tuple[str, ...]


def aligned(head: Row, rows: Sequence[Row | str], width: int) -> list[str]:
    """Return the lines of a table, if possible no wider than `width`; texts are headings.

    The first column has names, which are shortened first; the last has reasons, which move to lines
    of their own where that is not enough. Empty columns are left out.
    """
    cells, last = [row for row in rows if not isinstance(row, str)], len(head) - 1
    columns = [i for i in range(last) if any(row[i] not in ("", NONE) for row in cells)]
    sizes = [max(len(row[i]) for row in (head, *cells)) for i in columns]
    left = width - sum(sizes) - len(GAP) * len(sizes)  # for the reasons; below 0: too narrow
    spare = max(0, sizes[0] - NAME)
    wanted = min(NARROWEST, max(len(row[last]) for row in (head, *cells)))
    beside = left + spare >= wanted  # whether reasons fit into the last column
    given = max(0, wanted - left) if beside else min(spare, max(0, -left))
    sizes[0] -= given  # names give way to reasons
    lines = []
    for row in (head, *rows):
        if isinstance(row, str):
            lines += wrapped(row, width)
            continue
        fixed = (_cut(row[i], size).ljust(size) for i, size in zip(columns, sizes, strict=True))
        line = GAP.join(fixed)
        if beside:
            why = textwrap.wrap(row[last], left + given, max_lines=MOST, placeholder=" …") or [""]
            lines.append(f"{line}{GAP}{why[0]}".rstrip())
            lines += [" " * (len(line) + len(GAP)) + more for more in why[1:]]
        else:
            lines.append(line.rstrip())
            lines += wrapped(row[last], width, "    ") if row is not head else []
    return lines


def _cut(text: str, width: int) -> str:
    """Shorten a name in its middle: names differ at their end as well as at their beginning."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of a text; without `indent`, all but the first hang."""
    later, width = indent or HANGING, max(width, NARROWEST)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=later)
