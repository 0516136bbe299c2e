"""Published numbers: each cites its source, and has an interval where its tasks are known."""

from __future__ import annotations

import re

import pytest

from etrm.evaluation.statistics import clopper_pearson
from etrm.report.published import ARC1, PUBLISHED, SPLITS, SUBSET, VARIANCE, find, published


def test_every_number_names_its_source_and_how_its_tasks_were_seen() -> None:
    for each in PUBLISHED:
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|github\.com/\S+/\S+|N8Programs, .+", each.source)
        assert each.split in SPLITS
        assert each.metric == VARIANCE or 0 <= each.value <= 1
    table = published()
    assert len(table.numbers) == len(table.text) == len(PUBLISHED)
    assert "none was measured here" in table.notes[0]


def test_the_numbers_of_the_seed_and_of_the_papers() -> None:
    scores = {(p.name, p.metric): p.value for p in find("pass@1") + find("pass@2")}
    assert scores["TRM", "pass@2"] == 0.45
    assert scores["LPN, no search", "pass@2"] == 0.0775
    assert scores["LPN, latent search", "pass@2"] == 0.155
    assert scores["original ETRM, best run", "pass@2"] == 0.025
    collapse = [p.value for p in find(VARIANCE, "ARC-AGI-1 training")]
    assert collapse == [0.357, 3.33, 0.146]
    assert [p.tasks for p in find("pass@1", SUBSET)] == [32] * 3
    strict = find("pass@1", ARC1, "strict")
    assert [p.value for p in strict] == [0.044, 0.09]


def test_an_interval_is_given_where_the_tasks_are_known_only() -> None:
    subset = find("pass@1", SUBSET)[0]
    assert subset.interval == pytest.approx(clopper_pearson(0, 32))
    tiny = find("pass@1", ARC1, "strict")[0]
    assert tiny.interval is None
    text = published().text.set_index("Model")["Published value"]
    assert text["LPN, no search"] == "7.75 % [5.3, 10.8] (of 400)"
    assert text[tiny.name] == "4.4 %"
