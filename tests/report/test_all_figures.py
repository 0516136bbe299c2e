"""Every registered figure of a large study in which much went wrong can be read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import pytest
from readable import assert_readable

from etrm.config.execution import FigureStyle
from etrm.report import contexts_figure
from etrm.report.registry import FIGURES, load
from etrm.report.run_view import StudyView

DRAW = load(FIGURES)
PARTIAL = {"contexts", "qualitative", "encoders", "examples"}  # do not show all of so large a study
OVER_TRAINING = {"training_curves", "encoder_statistics", "gradient_flow", "overfit_dynamics"}
PAGE, COLUMN = 7.0, 3.4  # inches


@pytest.fixture(scope="module", autouse=True)
def _projected_once() -> Iterator[None]:
    """Contexts have the same t-SNE at every size of a figure."""
    project, found = contexts_figure._tsne, dict[bytes, np.ndarray | None]()

    def projected(x: np.ndarray) -> np.ndarray | None:
        if x.tobytes() not in found:
            found[x.tobytes()] = project(x)
        return found[x.tobytes()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts_figure, "_tsne", projected)
        yield


@pytest.mark.parametrize(("width", "scale"), [(PAGE, 1.0), (PAGE, 1.3), (COLUMN, 1.0)])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_is_clipped_or_broken(
    synthetic_study: StudyView, name: str, width: float, scale: float
) -> None:
    """A heading says that only a part of the study is shown."""
    style = FigureStyle(width=width, font_scale=scale)
    fig = DRAW[name](dataclasses.replace(synthetic_study, style=style))
    words = assert_readable(fig, {view.experiment for view in synthetic_study.runs})
    if name in PARTIAL:
        assert re.search(r"\b\d+ of \d+ (experiments|held-out)", words)


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_without_runs_is_said_in_words(name: str, synthetic_study: StudyView) -> None:
    fig = DRAW[name](dataclasses.replace(synthetic_study, runs=[]))
    words = assert_readable(fig)
    if name in OVER_TRAINING:
        assert "finished yet" in words
        assert not fig.legends
