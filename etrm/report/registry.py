"""The figures and tables of a study by name: one function and one line here for each.

A figure is a function from a `StudyView` to a `Figure`, under `@style.figure`; its caption is
`workflow/report/NAME.rst`. A table is a function from the runs and the name of the baseline to a
`Table` (`formats.py`); its caption is `workflow/report/NAME_table.rst`. Modules are loaded when
they are used, so that a plan needs no matplotlib.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURES = {  # in the order of a reader
    "answer": "etrm.report.answer_figure:answer",
    "training_curves": "etrm.report.figures:training_curves",
    "learning": "etrm.report.figures:learning",
    "dashboard": "etrm.report.figures:dashboard",
    "encoder_statistics": "etrm.report.figures:encoder_statistics",
    "encoder_probe": "etrm.report.figures:encoder_probe",
    "gradient_flow": "etrm.report.figures:gradient_flow",
    "overfit_dynamics": "etrm.report.figures:overfit_dynamics",
    "halting": "etrm.report.halting_figure:halting",
    "halting_grid": "etrm.report.halting_figure:halting_grid",
    "encoders": "etrm.report.encoders_figure:encoders",
    "predictors": "etrm.report.predictors_figure:predictors",
    "voting": "etrm.report.voting_figure:voting",
    "refinement": "etrm.report.refinement_figure:refinement",
    "contexts": "etrm.report.contexts_figure:contexts",
    "qualitative": "etrm.report.qualitative:qualitative",
    "failures": "etrm.report.failures:failures",
    "examples": "etrm.report.examples_figure:examples",
    "pipeline": "etrm.report.schematics:pipeline",
    "trm_and_etrm": "etrm.report.schematics:trm_and_etrm",
    "encoder_families": "etrm.report.schematics:encoder_families",
}
TABLES = {
    "results": "etrm.report.tables:results",
    "splits": "etrm.report.setup_tables:splits",
    "design_space": "etrm.report.setup_tables:design_space",
    "hyperparameters": "etrm.report.setup_tables:hyperparameters",
    "trm": "etrm.report.main_tables:trm",
    "etrm": "etrm.report.main_tables:etrm",
    "collapse": "etrm.report.collapse:collapse",
    "mechanisms": "etrm.report.mechanisms:mechanisms",
    "ablations": "etrm.report.ablations:ablations",
    "compute": "etrm.report.compute:compute",
    "claims": "etrm.report.claims.table:claims",
    "comparisons": "etrm.report.comparisons:comparisons",
    "selection": "etrm.report.selection:selection",
    "predictors": "etrm.report.predictors:predictors",
    "refinement": "etrm.report.refinement:refinement",
    "rules": "etrm.report.rules:rules",
    "neighbours": "etrm.report.neighbours:neighbours",
    "published": "etrm.report.published:published",
}
PAGE = Path(__file__).parent / "page" / "page.html.jinja"  # the template of `index.html`
PAPER_FILES = ("main.tex", "claims.tex", "claims.md")
TABLE_FORMATS = ("csv", "md", "tex", "html")  # numbers, then text thrice; HTML is for the report


def load(registry: Mapping[str, str]) -> dict[str, Any]:
    """Return the functions of a registry, by name."""
    parts = {name: place.partition(":") for name, place in registry.items()}
    return {name: getattr(importlib.import_module(m), f) for name, (m, _, f) in parts.items()}


def modules(registry: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that a registry loads."""
    return sorted({place.partition(":")[0] for place in registry.values()})
