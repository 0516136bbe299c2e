"""A table of a study in four formats: numbers as CSV; their text as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from etrm.report.registry import TABLE_FORMATS
from etrm.storage.files import atomic_write

NONE = "–"
MARK = "†"  # of a mean over the seeds that passed the gate, where others did not
SURVIVORS = f"{MARK} Mean over the seeds that passed the gate only; the others were stopped before."
TERMINAL_WIDTH = 160  # columns
LAST_COLUMN = 20  # at least: it is wrapped
WRAPPED = 32  # letters of a LaTeX cell, above which its column breaks lines
ROWS = 40  # of one LaTeX `tabular`; more go on in another, which may stand on the next page
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"–": "--", "—": "---", "†": r"\dag{}", "…": r"\ldots{}", "−": "$-$", "≥": r"$\geq$"},
    **{"≤": r"$\leq$", "→": r"$\to$", "×": r"$\times$", "±": r"$\pm$", "·": r"$\cdot$"},
    **{"σ": r"$\sigma$", "μ": r"$\mu$", "²": "$^2$", "√": r"$\surd$", "≈": r"$\approx$"},
}
_NO_WIDER = (
    r"\noindent\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi\par\medskip"
)
_CSS = (
    "body{font:13px sans-serif;margin:1em}table{border-collapse:collapse}"
    "th,td{padding:.4em .7em;border-bottom:1px solid #ddd;vertical-align:top;text-align:left}"
    "th{border-bottom:2px solid #444}td{min-width:5em}"
)


Cell = Callable[[pd.Series], str]  # the text of a cell, from the numbers of its row
Columns = Mapping[str, str | Cell]  # by title; the name of a number that is shown as it is


@dataclass(frozen=True)
class Table:
    """A table of a study."""

    numbers: pd.DataFrame  # fractions from 0 to 1, counts
    text: pd.DataFrame  # the same for people, every cell a string
    notes: tuple[str, ...] = ()  # sentences below the text

    @classmethod
    def of(cls, numbers: pd.DataFrame, columns: Columns, notes: Iterable[str] = ()) -> Table:
        """Return a table whose text has these columns, each cell made from a row of numbers."""
        cells = {title: number(of) if isinstance(of, str) else of for title, of in columns.items()}
        rows = [row for _, row in numbers.iterrows()]
        text = pd.DataFrame({title: [cell(row) for row in rows] for title, cell in cells.items()})
        return cls(numbers, text, tuple(notes))


def number(name: str, form: str = "") -> Cell:
    """Return the cell of a number in a format: `–` of a missing one, any value without a format."""
    return lambda row: NONE if form and pd.isna(row[name]) else format(row[name], form)


def interval(
    name: str,
    form: str = ".1f",
    unit: str = " %",
    mark: Cell | None = None,
    of: str | None = None,
) -> Cell:
    """Return the cell `92.0 % [90.1, 93.9] (of 400)` of a number, its `_low` and `_high`.

    Fractions are in percent. `mark`: text between number and brackets; `of`: the number of tasks.
    """
    scale = 100 if unit.strip() == "%" else 1

    def cell(row: pd.Series) -> str:
        value, low, high = (row[f"{name}{part}"] for part in ("", "_low", "_high"))
        if pd.isna(value):
            return NONE
        text = f"{scale * value:{form}}{unit}{mark(row) if mark else ''}"
        if pd.notna(low):
            text += f" [{scale * low:{form}}, {scale * high:{form}}]"
        return (text + _tasks(row, of)).replace("-", "−")

    return cell


def points(name: str, of: str | None = None) -> Cell:
    """Return the cell `+2.3 [−0.1, +4.8] (of 400)` of a difference; `of`: the number of tasks."""

    def cell(row: pd.Series) -> str:
        shown = in_points(*(row[f"{name}{part}"] for part in ("", "_low", "_high")))
        return shown if shown == NONE else shown + _tasks(row, of)

    return cell


def _tasks(row: pd.Series, of: str | None) -> str:
    return "" if of is None or pd.isna(row[of]) else f" (of {row[of]:.0f})"


def in_points(value: float, low: float, high: float) -> str:
    """Render `+2.3 [−0.1, +4.8]` of fractions; `–` of a missing one."""
    if pd.isna(value):
        return NONE
    middle, least, most = (f"{100 * each:+.1f}".replace("-", "−") for each in (value, low, high))
    return f"{middle} [{least}, {most}]"


def to_markdown(table: Table) -> str:
    """Return a Markdown table, and the notes below it."""
    lines = markdown_table(list(table.text.columns), table.text.to_numpy().tolist())
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes), ""])


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table; None is a dash."""
    shown = [[str(NONE if c is None else c).replace("|", "\\|") for c in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *shown)]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]


def to_latex(table: Table) -> str:
    """Return `tabular`s no wider than the text, and the notes.

    Needs the packages booktabs, graphicx and array.
    """
    text = table.text
    long = [max(map(len, text[name]), default=0) > WRAPPED for name in text]
    columns = "".join(r">{\raggedright\arraybackslash}p{16em}" if each else "l" for each in long)
    rows = (list(text.columns), *text.to_numpy().tolist())
    head, *body = [_latex_row(row, long) for row in rows]
    lines = [r"\begingroup"]
    for start in range(0, max(1, len(body)), ROWS):
        lines += [r"\setbox0\hbox{\begin{tabular}{" + columns + "}", r"\toprule", head, r"\midrule"]
        lines += [*body[start : start + ROWS], r"\bottomrule", r"\end{tabular}}%"]
        lines.append(_NO_WIDER)
    notes = [rf"\noindent{{\footnotesize {escape_latex(note)}\par}}" for note in table.notes]
    return "\n".join([*lines, *notes, r"\endgroup", ""])


def _latex_row(cells: list[str], long: list[bool]) -> str:
    # Behind the `\\` of the row before, a bracket or an asterisk would be its argument.
    guard = "{}" if cells and cells[0].startswith(("[", "*")) else ""
    shown = [escape_latex(cell) for cell in cells]
    for i, each in enumerate(long):
        shown[i] = shown[i].replace(r"\_", r"\_\allowbreak{}") if each else shown[i]  # long names
    return guard + " & ".join(shown) + r" \\"


def to_html(table: Table) -> str:
    """Return a page with the table and its notes, for Snakemake's report."""
    head = f'<!doctype html><meta charset="utf-8"><style>{_CSS}</style>'
    return f"{head}{html_fragment(table)}\n"


def html_fragment(table: Table) -> str:
    """Return the table and its notes as HTML to put into a page, which has the style.

    A `<div class="table">` that may scroll, and a `<p class="note">` for each note.
    """
    body = table.text.to_html(index=False, border=0, justify="left")
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return f'<div class="table">{body}</div>{notes}'


def read_html(path: Path) -> str:
    """Return the fragment in a page that `to_html` has made."""
    return path.read_text(encoding="utf-8").partition("</style>")[2]


def to_terminal(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """Return aligned plain text, whose last column and notes are wrapped to the width."""
    cells = [list(table.text.columns), *table.text.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]  # in letters
    start = sum(widths[:-1]) + 2 * (len(widths) - 1)  # of the last column
    room = max(LAST_COLUMN, width - start)
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


def number_of(number: int, noun: str) -> str:
    """Render a number of things: `1 seed`, `3 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float | None) -> str:
    """Render a share as `5.0 %`."""
    return NONE if value is None or pd.isna(value) else f"{100 * value:.1f} %"


def escape_latex(text: str) -> str:
    """Return text that LaTeX shows as it is; of a letter that its fonts lack, the code point."""
    return "".join(map(_latex_letter, text))


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    known = letter == "\n" or " " <= letter <= "~" or "À" <= letter <= "ÿ"
    return letter if known else f"[U+{ord(letter):04X}]"
