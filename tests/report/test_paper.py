"""The LaTeX skeleton of a study: it is whole, what it includes is there, and it compiles."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from etrm.report.paper import TEXTS, from_rst, main_tex, write_paper
from etrm.report.registry import FIGURES, PAPER_FILES, TABLES
from etrm.report.run_view import StudyView
from etrm.report.write_tables import write_tables

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
COMMAND = re.compile(r"\\(?:begin|end)\{(\w+\*?)\}")
SPECIAL = re.compile(r"(?<!\\)[&%#_^]")


@pytest.fixture(scope="module")
def paper(synthetic_study: StudyView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the paper, beside tables and figures, which are a pixel each."""
    root = tmp_path_factory.mktemp("results")
    for name in ("figures", "tables", "paper"):
        (root / name).mkdir()
    for name in FIGURES:
        (root / "figures" / f"{name}.png").write_bytes(PIXEL)
    write_tables(synthetic_study.runs, root / "tables", "etrm_standard")
    options = {"captions": CAPTIONS, "formats": ["png"], "baseline": "etrm_standard"}
    write_paper(root / "paper", "a_study & more", synthetic_study.runs, **options)
    return root / "paper"


def included(text: str) -> list[str]:
    return re.findall(r"\\(?:input|includegraphics(?:\[[^]]*\])?)\{([^}#]+)\}", text)


def without_comments(text: str) -> str:
    return "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())


def test_all_files_are_written_and_all_that_they_include_is_there(paper: Path) -> None:
    assert sorted(path.name for path in paper.iterdir()) == sorted(PAPER_FILES)
    found = included((paper / "main.tex").read_text())
    assert all((paper / name).is_file() for name in found)
    names = {Path(name).stem for name in found}
    assert names == {*FIGURES, *TABLES}  # `claims`: the list
    assert "claims.tex" in found


def test_environments_and_braces_are_balanced(paper: Path) -> None:
    files = [*paper.glob("*.tex"), *(paper.parent / "tables").glob("*.tex")]
    assert len(files) == 2 + len(TABLES)
    for path in files:
        text = without_comments(path.read_text())
        stack = []
        for match in COMMAND.finditer(text):
            if match[0].startswith(r"\begin"):
                stack.append(match[1])
            else:
                assert stack.pop() == match[1], path
        assert not stack, path
        plain = re.sub(r"\\[{}\\]", "", text)
        depth = 0
        for letter in plain:
            depth += (letter == "{") - (letter == "}")
            assert depth >= 0, path
        assert depth == 0, path


def test_special_characters_are_escaped_in_claims(paper: Path) -> None:
    text = (paper / "claims.tex").read_text()
    assert not SPECIAL.search(text)
    assert text.count(r"\item") > 20
    assert "etrm\\_cached\\_control" in text
    assert r"a\_study \& more" in (paper / "main.tex").read_text()


def test_claims_in_markdown_are_a_list_with_verdicts(paper: Path) -> None:
    text = (paper / "claims.md").read_text()
    items = re.findall(r"^- \*\*(supported|contradicted|not decided)\*\*: ", text, re.MULTILINE)
    assert len(items) == text.count("  - Evidence: ") == text.count("  - Rule: ") > 20
    assert "## 5.1.1" in text


def test_the_text_of_a_person_is_included_and_kept(
    paper: Path, synthetic_study: StudyView, tmp_path: Path
) -> None:
    for name in TEXTS:
        assert rf"\written{{{name}}}" in (paper / "main.tex").read_text()
    (tmp_path / "results.tex").write_text("Mine.")
    write_paper(tmp_path, "s", synthetic_study.runs[:3], captions=CAPTIONS, formats=["pdf"])
    assert (tmp_path / "results.tex").read_text() == "Mine."
    assert "../figures/training_curves.pdf" in (tmp_path / "main.tex").read_text()


def test_figures_that_latex_cannot_read_are_named_in_a_comment() -> None:
    text = main_tex("s", CAPTIONS, ["svg"])
    assert r"\includegraphics" not in text
    assert "% Figure training_curves" in text


def test_captions_become_latex() -> None:
    text = from_rst("**A_b.** *Look* at ``x_y`` & `this <https://a.b/c_d>`__: 5 %")
    assert text == r"\textbf{A\_b.} \emph{Look} at \texttt{x\_y} \& {this}: 5 \%"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_it_compiles(paper: Path, tmp_path: Path) -> None:
    shutil.copytree(paper.parent, tmp_path / "results")
    folder = tmp_path / "results" / "paper"
    (folder / "introduction.tex").write_text(r"See Table~\ref{tab:etrm} and \cite{lpn}.")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "main.pdf").stat().st_size > 50_000
    assert "undefined" not in (folder / "main.log").read_text(errors="replace")
