"""Every registered figure of a large study in which much went wrong can be read."""

from __future__ import annotations

import dataclasses

import pytest
from readable import assert_readable

from etrm.config.execution import FigureStyle
from etrm.report.registry import FIGURES, load
from etrm.report.run_view import StudyView

DRAW = load(FIGURES)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_is_clipped(
    synthetic_study: StudyView, name: str, scale: float
) -> None:
    style = FigureStyle(font_scale=scale)
    fig = DRAW[name](dataclasses.replace(synthetic_study, style=style))
    assert_readable(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_without_runs_is_said_in_words(name: str, synthetic_study: StudyView) -> None:
    assert_readable(DRAW[name](dataclasses.replace(synthetic_study, runs=[])))
