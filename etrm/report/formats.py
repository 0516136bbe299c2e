"""A table of a study in four formats: numbers as CSV; their text as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from etrm.report.registry import TABLE_FORMATS
from etrm.storage.files import atomic_write

NONE = "–"
MARK = "†"  # of a mean over the seeds that passed the gate, where others did not
SURVIVORS = f"{MARK} Mean over the seeds that passed the gate only; the others were stopped before."
TERMINAL_WIDTH = 160  # columns
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "≥": r"$\geq$", "†": r"\dag{}"},
    "−": "$-$",
}
_CSS = (
    "body{font:13px sans-serif;margin:1em}table{border-collapse:collapse}"
    "th,td{padding:.4em .7em;border-bottom:1px solid #ddd;vertical-align:top;text-align:left}"
    "th{border-bottom:2px solid #444}td{min-width:5em}"
)


@dataclass(frozen=True)
class Table:
    """A table of a study."""

    numbers: pd.DataFrame  # fractions from 0 to 1, counts
    text: pd.DataFrame  # the same for people, every cell a string
    notes: tuple[str, ...] = ()  # sentences below the text


def to_markdown(table: Table) -> str:
    """Return a Markdown table, and the notes below it."""
    text = table.text
    cells = text.map(lambda cell: cell.replace("|", "\\|")).to_numpy().tolist()
    lines = ["| " + " | ".join(row) + " |" for row in (list(text.columns), *cells)]
    lines.insert(1, "|" + " --- |" * len(text.columns))
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes), ""])


def to_latex(table: Table) -> str:
    """Return a `tabular` as wide as the text, and the notes; needs booktabs and graphicx."""
    rows = [list(table.text.columns), *table.text.to_numpy().tolist()]
    head, *body = [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    lines = [r"\resizebox{\linewidth}{!}{%"]
    lines += [r"\begin{tabular}{" + "l" * len(table.text.columns) + "}"]
    lines += [r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}%", "}"]
    notes = [rf"\par\noindent{{\footnotesize {escape_latex(note)}\par}}" for note in table.notes]
    return "\n".join([*lines, *notes, ""])


def to_html(table: Table) -> str:
    """Return a page with the table and its notes, for the report."""
    body = table.text.to_html(index=False, border=0, justify="left")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return f'<!doctype html><meta charset="utf-8"><style>{_CSS}</style>{body}{notes}\n'


def to_terminal(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """Return aligned plain text, whose last column and notes are wrapped to the width."""
    cells = [list(table.text.columns), *table.text.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]  # in letters
    start = sum(widths[:-1]) + 2 * (len(widths) - 1)  # of the last column
    room = max(20, width - start)
    cells.insert(1, ["─" * each for each in (*widths[:-1], min(widths[-1], room))])
    lines = []
    for row in cells:
        first, *more = textwrap.wrap(row[-1], room) or [""]
        lines.append("  ".join([*map(str.ljust, row[:-1], widths), first]).rstrip())
        lines += [" " * start + rest for rest in more]
    for note in table.notes:
        lines += ["", *textwrap.wrap(note, width)]
    return "\n".join(lines) + "\n"


def write_table(table: Table, stem: Path | str) -> list[Path]:
    """Write `<stem>.csv` (numbers), `.md`, `.tex` and `.html` (text), each whole or not at all."""
    render = {"md": to_markdown, "tex": to_latex, "html": to_html}
    paths = [Path(f"{stem}.{kind}") for kind in TABLE_FORMATS]
    for path, kind in zip(paths, TABLE_FORMATS, strict=True):
        content = table.numbers.to_csv(index=False) if kind == "csv" else render[kind](table)
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return paths


def escape_latex(text: str) -> str:
    """Return text that LaTeX shows as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
