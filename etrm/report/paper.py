r"""The folder `paper` of a study: a LaTeX skeleton with its figures and tables, and claims.

`main.tex` compiles where LaTeX is (`pdflatex main`, twice). It is overwritten with the study; the
text is a person's, in files beside it (`TEXTS`) that it includes where they exist, and that nothing
here writes. Figures and tables stay where they are, and are included by relative paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from etrm.report.claims.case import Claim, Finding
from etrm.report.claims.table import NOTE, decide, tally
from etrm.report.formats import escape_latex
from etrm.report.published import ARC1, ETRM, LPN, PUBLISHED, TINY, TRM, value_text
from etrm.report.registry import FIGURES, PAPER_FILES, TABLES
from etrm.report.run_view import RunView
from etrm.storage.files import atomic_write

INCLUDED = ("pdf", "png")  # formats of figures that pdflatex reads, the better first
# Section, its figures, its tables. What no section names is in the appendix.
SECTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Introduction", (), ()),
    ("Background", (), ("published",)),
    ("Method", ("pipeline", "trm_and_etrm", "encoder_families"), ()),
    ("Experiments", ("examples",), ("splits", "hyperparameters", "design_space")),
    (
        "Results",
        (
            *("answer", "training_curves", "encoder_statistics", "gradient_flow", "halting_grid"),
            *("encoders", "refinement", "failures", "qualitative"),
        ),
        ("trm", "etrm", "collapse", "mechanisms", "ablations"),
    ),
    ("Discussion", (), ()),
)
TEXTS = ("abstract.tex", *(f"{title.lower()}.tex" for title, _, _ in SECTIONS))
SOURCES = {
    TRM: ("trm", "A. Jolicoeur-Martineau. Less is More: Recursive Reasoning with Tiny Networks."),
    LPN: ("lpn", "M. V. Macfarlane and C. Bonnet. Searching Latent Program Spaces."),
    TINY: ("tiny", "ARC Tiny Transformer."),
    ETRM: ("etrm", "The original ETRM."),
}
PREAMBLE = r"""% Written with the study, and overwritten with it. Your text goes into the files that
% \written names below, beside this one: they are included where they exist, and never written.
\documentclass[11pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,margin=20mm]{geometry}
\usepackage{array,booktabs,graphicx}
\usepackage[hidelinks]{hyperref}
\newcommand{\written}[1]{\IfFileExists{#1}{\input{#1}}{\emph{To be written: \texttt{#1}.}}}
\newcommand{\tablecaption}[2]{\par\medskip\refstepcounter{table}\label{#2}%
  {\interlinepenalty=10000\noindent Table~\thetable: #1\par}\nopagebreak\smallskip\nopagebreak}
\sloppy\emergencystretch=3em
"""
_INLINE = re.compile(r"``(.+?)``|\*\*(.+?)\*\*|\*(.+?)\*|`([^`<]+?) <[^>]*>`__", re.DOTALL)


def write_paper(
    folder: Path,
    study: str,
    views: Sequence[RunView],
    *,
    captions: Path,
    formats: Sequence[str],
    baseline: str | None = None,
) -> None:
    """Write `PAPER_FILES` into the folder `paper` of a study, each whole or not at all.

    `captions`: the folder with a caption for each figure and table, in reStructuredText; `formats`:
    those of the study's figures.
    """
    decided = decide(views, baseline)
    contents = (main_tex(study, captions, formats), claims_tex(decided), claims_markdown(decided))
    for name, content in zip(PAPER_FILES, contents, strict=True):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def main_tex(study: str, captions: Path, formats: Sequence[str]) -> str:
    """Return the skeleton: sections with their figures and tables, claims, appendix, sources."""
    lines = [PREAMBLE + rf"\title{{{escape_latex(study)}}}", r"\author{}", r"\begin{document}"]
    lines += [r"\maketitle", r"\begin{abstract}", r"\written{abstract.tex}", r"\end{abstract}"]
    for title, figures, tables in SECTIONS:
        lines += ["", rf"\section{{{title}}}", rf"\written{{{title.lower()}.tex}}"]
        lines += [_figure(name, captions, formats) for name in figures if name in FIGURES]
        lines += [_table(name, captions) for name in tables if name in TABLES]
        lines.append(r"\clearpage" if figures or tables else "")
    lines += [r"\subsection{Claims, and what this study says of them}", r"\input{claims.tex}"]
    lines += ["", r"\clearpage", r"\appendix", r"\section{Further figures and tables}"]
    shown = {name for _, figures, tables in SECTIONS for name in (*figures, *tables)}
    lines += [_figure(name, captions, formats) for name in FIGURES if name not in shown]
    lines.append(r"\clearpage")
    hidden = {*shown, "claims"}  # a list in the discussion
    lines += [_table(name, captions) for name in TABLES if name not in hidden]
    return "\n".join([*lines, "", *_sources(), r"\end{document}", ""])


def _figure(name: str, captions: Path, formats: Sequence[str]) -> str:
    kind = next((each for each in INCLUDED if each in formats), None)
    if kind is None:
        return f"% Figure {name}: pdflatex reads {' and '.join(INCLUDED)}, see figures.formats."
    size = r"width=\linewidth,height=0.75\textheight,keepaspectratio"
    return "\n".join(
        [
            r"\begin{figure}[!htbp]",
            r"\centering",
            rf"\includegraphics[{size}]{{../figures/{name}.{kind}}}",
            rf"\caption{{{caption(captions / f'{name}.rst')}}}",
            rf"\label{{fig:{name}}}",
            r"\end{figure}",
        ]
    )


def _table(name: str, captions: Path) -> str:
    words = caption(captions / f"{name}_table.rst")
    return "\n".join(
        [rf"\tablecaption{{{words}}}{{tab:{name}}}", rf"\input{{../tables/{name}.tex}}"]
    )


def caption(path: Path) -> str:
    """Return a caption in reStructuredText as LaTeX: inline markup, without paragraphs."""
    return from_rst(" ".join(path.read_text(encoding="utf-8").split()))


def from_rst(text: str) -> str:
    """Return a line of reStructuredText as LaTeX: literals, strong, emphasis and links."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(escape_latex(text[end : match.start()]))
        kinds = zip((r"\texttt", r"\textbf", r"\emph", ""), match.groups(), strict=True)
        (command, words) = next((each, group) for each, group in kinds if group is not None)
        inner = escape_latex(words) if command in (r"\texttt", "") else from_rst(words)
        parts.append(f"{command}{{{inner}}}")
        end = match.end()
    return "".join([*parts, escape_latex(text[end:])])


def _sources() -> Iterable[str]:
    yield rf"\begin{{thebibliography}}{{{len(SOURCES)}}}"
    for source, (key, title) in SOURCES.items():
        numbers = (p for p in PUBLISHED if (p.source, p.benchmark) == (source, ARC1))
        scores = "; ".join(f"{p.name}: {p.metric} {value_text(p)}" for p in numbers)
        where = source if source != TINY else "N8Programs"
        yield rf"\bibitem{{{key}}} {escape_latex(f'{title} {where}. Published: {scores}.')}"
    yield r"\end{thebibliography}"


def claims_tex(decided: Sequence[tuple[Claim, Finding]]) -> str:
    """Return the claims as a LaTeX list: the verdict of each, its evidence and its rule."""
    (words,) = tally([found.verdict for _, found in decided])
    lines = [escape_latex(words), r"\begin{itemize}"]
    for claim, found in decided:
        head = rf"\textbf{{{found.verdict}}} ({claim.section}) {escape_latex(claim.text)}"
        lines.append(rf"\item {head}\\")
        lines.append(rf"Evidence: {escape_latex(found.evidence)}.\\")
        lines.append(rf"{{\footnotesize Rule: {escape_latex(claim.rule)}}}")
    return "\n".join([*lines, r"\end{itemize}", rf"{{\footnotesize {escape_latex(NOTE)}\par}}", ""])


def claims_markdown(decided: Sequence[tuple[Claim, Finding]]) -> str:
    """Return the claims as a Markdown list: the verdict of each, its evidence and its rule."""
    lines = ["# Claims of the discussion", "", *tally([found.verdict for _, found in decided])]
    for section in dict.fromkeys(claim.section for claim, _ in decided):
        lines += ["", f"## {section}", ""]
        for claim, found in decided:
            if claim.section == section:
                lines += [f"- **{found.verdict}**: {claim.text}", f"  - Evidence: {found.evidence}"]
                lines.append(f"  - Rule: {claim.rule}")
    return "\n".join([*lines, "", NOTE, ""])
