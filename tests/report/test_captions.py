"""Captions of the report: each can be rendered as Snakemake renders it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined

CONFIG = {"answer": "``etrm`` answers **5.0 % of 20 held-out tasks**."}
CAPTIONS = sorted((Path(__file__).parents[2] / "workflow" / "report").glob("*.rst"))


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("wildcards", [{}, {"experiment": "etrm_standard"}])
def test_a_caption_renders(path: Path, wildcards: dict[str, str]) -> None:
    template = Environment(undefined=StrictUndefined).from_string(path.read_text(encoding="utf-8"))
    text = template.render(snakemake=SimpleNamespace(wildcards=wildcards, config=CONFIG))
    strict = {"report_level": 2, "halt_level": 2}  # a warning is an error
    html = publish_parts(text, writer="html", settings_overrides=strict)["body"]
    assert "<strong>" in html
    assert "{{" not in html
    if wildcards and "wildcards" in path.read_text(encoding="utf-8"):
        assert "etrm_standard" in html


def test_there_are_captions() -> None:
    assert {"workflow", "training_curves", "results_table"} <= {path.stem for path in CAPTIONS}
