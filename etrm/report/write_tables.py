"""Write the tables of a study; apart from its figures, so that their look makes no table stale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from etrm.report.formats import write_table
from etrm.report.registry import TABLES, load
from etrm.report.run_view import RunView


def write_tables(views: Sequence[RunView], folder: Path, baseline: str | None = None) -> None:
    """Write every table of a study, as `<folder>/<name>.<format>`."""
    for name, tabulate in load(TABLES).items():
        write_table(tabulate(views, baseline), folder / name)
