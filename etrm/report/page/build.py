"""The page of a study from its runs and its files: figures, tables, records, configuration."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from docutils.core import publish_parts
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from etrm.report.experiment_record import ANALYSIS, YOURS, analysis_in
from etrm.report.formats import Table, html_fragment, read_html
from etrm.report.page.answer import answer, facts
from etrm.report.page.sections import cost, health, looked_at_test, verdicts
from etrm.report.registry import FIGURES, PAGE, TABLES
from etrm.report.run_view import RunView, distinct
from etrm.report.tables import brief, outcome, results
from etrm.storage.files import atomic_write

# Formats that browsers show. A PNG looks the same everywhere; an SVG needs the reader's fonts.
MEDIA = {"png": "image/png", "svg": "image/svg+xml"}
AT_ONCE = ("results", "comparisons", "claims")  # tables beside the results; others are folded
LONG_TEXT, LONG_NAME = 40, 26  # letters of cells that are wrapped
DEEPER = 2  # levels that the headings of a record go down in the page


@dataclass(frozen=True)
class Part:
    """A figure, a table or a record: its name, its caption or status, and its content."""

    name: str
    caption: Markup
    content: Markup

    @property
    def title(self) -> str:
        """The bold words that its caption begins with; without a caption, the name."""
        found = re.search(r"<strong>(.+?)\.?</strong>", self.caption)
        return found[1] if found else self.name.replace("_", " ")


def write_page(
    path: Path,
    views: Sequence[RunView],
    captions: Path,
    *,
    baseline: str | None = None,
    finalists: Collection[str] | None = None,
) -> Path:
    """Write the page of the study whose results are in the folder of `path`.

    Figures, tables, records and the resolved configuration are read from there; `captions` is the
    folder of the captions, which Snakemake's report shows too. Nothing else is needed to read it.
    """
    root = path.parent
    tables = [_table(root, captions, name) for name in TABLES]
    whole = results(views, baseline)
    statuses = {name: _status(views, name) for name in distinct(v.experiment for v in views)}
    content = {
        "study": root.name,
        "answer": answer(views, baseline),
        "facts": facts(views),
        "brief": _wrapping(html_fragment(Table(whole.numbers, brief(whole)))),
        "tables": [table for table in tables if "<td" in table.content],
        "empty": [table.title for table in tables if "<td" not in table.content],
        "at_once": AT_ONCE,
        "verdicts": verdicts(views),
        "figures": list(_figures(root, captions)),
        "health": health(views),
        "looked": looked_at_test(views, finalists),
        "cost": cost(views),
        "records": [
            Part(file.stem, Markup.escape(statuses.get(file.stem, "")), _record(file))
            for file in _in_order(root / "records", list(statuses))
        ],
        "config": (root / "config.yaml").read_text(encoding="utf-8"),
        "versions": _made_with(views),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(_template().render(content), encoding="utf-8")
    return path


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(PAGE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["width"] = _width
    environment.filters["md"] = lambda text: Markup(_markdown().renderInline(text))
    return environment.get_template(PAGE.name)


@cache
def _markdown() -> MarkdownIt:
    """Return a reader of Markdown for text of anyone: no HTML in it, and no pictures, is shown."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def _figures(root: Path, captions: Path) -> Iterator[Part]:
    for name in FIGURES:
        files = [(root / "figures" / f"{name}.{kind}", kind) for kind in MEDIA]
        found = next(((file, kind) for file, kind in files if file.is_file()), None)
        if found is None:
            words = "is in no format that a browser shows: add png to figures.formats"
            content = Markup("<p>figures/{} {}</p>").format(name, words)
        else:
            file, kind = found
            data = base64.b64encode(file.read_bytes()).decode("ascii")
            content = Markup('<img alt="{}" src="data:{};base64,{}">').format(
                name.replace("_", " "), MEDIA[kind], data
            )
        yield Part(name, _caption(captions / f"{name}.rst"), content)


def _caption(path: Path) -> Markup:
    settings = {"report_level": 2, "halt_level": 2, "file_insertion_enabled": False}
    text = path.read_text(encoding="utf-8")
    return Markup(publish_parts(text, writer="html", settings_overrides=settings)["body"])


def _table(root: Path, captions: Path, name: str) -> Part:
    content = _wrapping(read_html(root / "tables" / f"{name}.html"))
    return Part(name, _caption(captions / f"{name}_table.rst"), content)


def _width(cell: str) -> str:
    """Return the class of a cell that is wrapped: a `long` text, or a `name` without a space."""
    if " " in cell:
        return "long" if len(cell) > LONG_TEXT else ""
    return "name" if len(cell) > LONG_NAME else ""


def _wrapping(fragment: str) -> Markup:
    """Return a table whose long cells have their class; names break after `_`, if at all."""

    def marked(cell: re.Match[str]) -> str:
        kind, text = _width(cell[1]), cell[1]
        return f'<td class="{kind}">{text.replace("_", "_<wbr>")}</td>'

    return Markup(re.sub("<td>([^<]+)</td>", marked, fragment))


def _record(path: Path) -> Markup:
    """Return a record as HTML, without its title, its headings below those of the page."""
    reader, text = _markdown(), path.read_text(encoding="utf-8")
    known, _, _ = text.partition(YOURS)
    if analysis_in(text) == ANALYSIS:  # nobody has written it yet
        text = known.removesuffix("## Analysis\n\n")
    tokens = reader.parse(text.replace(YOURS, ""))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + DEEPER)}"
    titled = tokens[:1] and tokens[0].type == "heading_open"
    shown = tokens[3:] if titled else tokens  # the heading's start, its text, its end
    return Markup(reader.renderer.render(shown, reader.options, {}))


def _in_order(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the records of a folder, those of experiments with runs first, as these are."""
    place = {name: number for number, name in enumerate(names)}
    files = folder.glob("*.md")
    return sorted(files, key=lambda file: (place.get(file.stem, len(place)), file.stem))


def _status(views: Sequence[RunView], experiment: str) -> str:
    """Return how far an experiment got: the outcomes of its seeds at the last stage of each."""
    last = {view.seed: view for view in views if view.experiment == experiment}  # in this order
    return "; ".join(distinct(outcome(view) for view in last.values()))


def _made_with(views: Sequence[RunView]) -> list[str]:
    """Return versions and commits that the runs were made with."""
    packages = ("python", "torch", "etrm")
    versions = distinct(
        ", ".join(f"{name} {found[name]}" for name in packages if name in found)
        for view in views
        if (found := view.run.get("versions") or {})
    )
    commits = distinct(str(view.run["commit"])[:12] for view in views if view.run.get("commit"))
    return [*versions, *(f"commit {commit}" for commit in commits)]
