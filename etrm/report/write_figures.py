"""All figures of a study, written."""

from __future__ import annotations

from pathlib import Path

from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig, guide_rules
from etrm.data.tables import read_tasks
from etrm.report.figures import encoder_statistics, gradient_flow, training_curves
from etrm.report.qualitative import qualitative
from etrm.report.run_view import RunView, distinct
from etrm.report.style import save
from etrm.storage.records import read_predictions


def write_figures(
    views: list[RunView],
    tasks_path: Path,
    folder: Path,
    style: FigureStyle,
    health: HealthConfig,
) -> None:
    """Every figure of a study, as `<folder>/<name>.<format>`.

    The thresholds drawn are those of the study's health rules.
    """
    names = distinct(view.experiment for view in views)
    held_out = [r.task for r in read_tasks(tasks_path) if r.split == "evaluation"]
    answers = {
        view.experiment + _partial(view): read_predictions(view.predictions).to_pandas()
        for view in reversed(views)
        if view.predictions is not None
    }
    made = {
        "training_curves": training_curves(views, style, names=names),
        "encoder_statistics": encoder_statistics(
            views, style, names=names, variance_lines=bounds(health, "collapse")
        ),
        "gradient_flow": gradient_flow(
            views,
            style,
            names=names,
            norm_lines=bounds(health, "gradient_starvation"),
            share_line=bounds(health, "low_gradient_share")[0],
        ),
        "qualitative": qualitative(held_out, dict(reversed(answers.items())), style),
    }
    for name, figure in made.items():
        save(figure, folder / name, style.formats, style.dpi)


def _partial(view: RunView) -> str:
    """Said wherever answers of a partial evaluation are shown."""
    return " (partial)" if view.score is not None and view.score["partial"] else ""


def bounds(health: HealthConfig, finding: str) -> tuple[float, float]:
    """Where a rule fails and where it warns; the guide's where the study has no such rule."""
    rule = health.rules.get(finding) or guide_rules()[finding]
    given = [bound for bound in (rule.fail, rule.warn, rule.stop) if bound is not None]
    return (given[0], given[min(1, len(given) - 1)]) if given else (0.0, 0.0)
