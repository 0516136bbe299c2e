"""Write the figures of a study."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig
from etrm.data.tables import read_tasks
from etrm.report.registry import FIGURES, load
from etrm.report.run_view import RunView, StudyView
from etrm.report.style import save


def write_figures(
    views: Sequence[RunView],
    tasks_path: Path,
    folder: Path,
    style: FigureStyle,
    health: HealthConfig,
    names: Collection[str] = FIGURES,
) -> list[Path]:
    """Write the figures `names` of a study as `<folder>/<name>.<format>`; return their paths.

    The thresholds drawn are those of the study's health rules.
    """
    held_out = [r.task for r in read_tasks(tasks_path) if r.split == "evaluation"]
    study = StudyView(views, style, health, held_out)
    draw = load({name: FIGURES[name] for name in names})
    saved = (save(draw[name](study), folder / name, style.formats, style.dpi) for name in names)
    return [path for paths in saved for path in paths]
