"""The summary of a study on a screen: results, verdicts, and the pages to open next."""

from __future__ import annotations

from pathlib import Path

from etrm.config.study import StudyConfig
from etrm.report.run_view import RunView
from etrm.report.tables import results, to_text
from etrm.runtime.terminal import fit, width
from etrm.study.gate import outcome, verdicts_of
from etrm.study.layout import Layout
from etrm.study.selection import chosen_in_words, is_chosen
from etrm.study.views import study_views


def summary(study: StudyConfig, columns: int | None = None) -> str:
    """Return the summary, no wider than `columns` (those of the terminal, without)."""
    columns, layout = columns or width(), Layout(study)
    verdicts = verdicts_of(layout).values()
    views = study_views(study)
    if not views:
        return "\n".join(fit(f"{layout.root}: no run has finished yet", columns))
    lines = [f"Study {study.study}", "", to_text(results(views, study.baseline), columns)]
    chosen = [f"{name}: {chosen_in_words(layout, name)}" for name in study.selections]
    for title, said in (("Gates", list(map(outcome, verdicts))), ("Selections", chosen)):
        if said:
            each = [part for text in said for part in fit(f"  {text}", columns, " " * 9)]
            lines += [title, *each, ""]
    return "\n".join([*lines, *_next(layout, views, columns)])


def _next(layout: Layout, views: list[RunView], columns: int) -> list[str]:
    """Return the pages to open next, and the places of the rest."""
    lines = [f"Open next: {_state(layout.page, [str(layout.page)])}"]
    for name, files in (("figures", layout.figure_files()), ("tables", layout.table_files())):
        lines.append(f"  {name}: {_state(Path(files[0]).parent, files)}")
    lines.append(f"  provenance: {_state(layout.report, [str(layout.report)])}")
    known = layout.study.experiments
    shown = [name for name in known if known[name].after is None or is_chosen(layout, name)]
    records = [str(layout.root / "records" / f"{name}.md") for name in shown]
    lines.append(f"  records: {_state(layout.root / 'records', records)}")
    first = next((v.experiment for v in views if v.score is not None), views[0].experiment)
    lines.append(f"One run at a glance: etrm show {first}. Jobs to do, and their cost: etrm plan.")
    return [part for line in lines for part in fit(line, columns)]


def _state(place: Path | str, files: list[str]) -> str:
    """Return a place, and whether its files are there."""
    missing = sum(not Path(file).is_file() for file in files)
    if not missing:
        return str(place)
    of = f"{missing} of {len(files)} files are" if missing < len(files) else ""
    return f"{place}  ({of} not made yet)".replace("( ", "(")
