"""Every registered figure of a large study in which much went wrong can be read."""

from __future__ import annotations

import dataclasses
import re

import pytest
from readable import assert_readable, words_of

from etrm.config.execution import FigureStyle
from etrm.report.registry import FIGURES, load
from etrm.report.run_view import StudyView

DRAW = load(FIGURES)


PAGE, COLUMN = 7.0, 3.4  # inches


@pytest.mark.parametrize(("width", "scale"), [(PAGE, 1.0), (PAGE, 1.3), (COLUMN, 1.0)])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_is_clipped_or_broken(
    synthetic_study: StudyView, name: str, width: float, scale: float
) -> None:
    style = FigureStyle(width=width, font_scale=scale)
    fig = DRAW[name](dataclasses.replace(synthetic_study, style=style))
    assert_readable(fig, {view.experiment for view in synthetic_study.runs})


@pytest.mark.parametrize("name", ["contexts", "qualitative", "encoders", "examples"])
def test_a_heading_says_that_only_a_part_is_shown(synthetic_study: StudyView, name: str) -> None:
    assert re.search(r"\b\d+ of \d+ (experiments|held-out)", words_of(DRAW[name](synthetic_study)))


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_without_runs_is_said_in_words(name: str, synthetic_study: StudyView) -> None:
    assert_readable(DRAW[name](dataclasses.replace(synthetic_study, runs=[])))
