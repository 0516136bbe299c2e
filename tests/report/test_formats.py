"""Tables in LaTeX and HTML: whatever a cell says, the file compiles and shows it."""

from __future__ import annotations

import pandas as pd
import pytest

from etrm.report.formats import ROWS, Table, escape_latex, html_fragment, to_latex

SPECIAL = '100 % of a_b & $5 #1 {x} ~ ^ \\ <> | " – − ≥ → × † √'


def table(cells: list[str], notes: tuple[str, ...] = ()) -> Table:
    frame = pd.DataFrame({"Name": cells, "Other": ["x"] * len(cells)})
    return Table(frame, frame, notes)


def test_escaped_text_is_ascii_and_balanced() -> None:
    text = escape_latex(SPECIAL)
    assert text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    plain = text.replace(r"\\", "")
    for letter in "%&#_":
        assert plain.count(letter) == plain.count(f"\\{letter}") > 0


@pytest.mark.parametrize(("letter", "shown"), [("é", "é"), ("数", "[U+6570]"), ("✗", "[U+2717]")])
def test_a_letter_that_latex_lacks_is_shown_by_its_code_point(letter: str, shown: str) -> None:
    assert escape_latex(letter) == shown


def test_a_row_that_begins_with_a_bracket_is_no_argument_of_the_row_before() -> None:
    lines = to_latex(table(["a", "[0.1, 0.2]", "* b"])).splitlines()
    assert not [line for line in lines if line.startswith(("[", "*"))]
    assert sum(line.endswith(r" \\") for line in lines) == 4


def test_a_long_table_goes_on_in_another_tabular_with_its_head() -> None:
    latex = to_latex(table([f"r{i}" for i in range(ROWS + 1)]))
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert latex.count("Name & Other") == 2
    assert sum(line.startswith("r") for line in latex.splitlines()) == ROWS + 1


def test_a_long_cell_breaks_its_lines() -> None:
    assert "p{16em}" in to_latex(table(["word " * 20]))
    assert "p{16em}" not in to_latex(table(["short"]))
    assert r"long\_\allowbreak{}name" in to_latex(table(["a_long_name_" * 4]))
    assert r"\allowbreak" not in to_latex(table(["a_name"]))


def test_the_fragment_of_a_page_is_escaped_and_has_no_page_of_its_own() -> None:
    fragment = html_fragment(table(["<script>"], ("a < b",)))
    assert "<script>" not in fragment
    assert "&lt;script&gt;" in fragment
    assert '<p class="note">a &lt; b</p>' in fragment
    assert "<!doctype" not in fragment
