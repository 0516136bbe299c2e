"""The table of rules: pass@1 of each run, rule by rule."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fake
import pytest

from etrm.report.formats import NONE, to_markdown
from etrm.report.rules import MOST, rules
from etrm.report.run_view import RunView


def scored(folder: Path, name: str, found: dict[str, tuple[int, float]]) -> RunView:
    view = fake.run(folder, experiment=name, stage="full", steps=200)
    of = {rule: {"tasks": n, "right": {"1": right, "2": n}} for rule, (n, right) in found.items()}
    return dataclasses.replace(view, score={"rules": of})


def test_every_run_has_a_row_and_every_rule_a_column(tmp_path: Path) -> None:
    one = scored(tmp_path, "one", {"fill": (40, 40.0), "recolour": (50, 0.0)})
    two = scored(tmp_path, "two", {"fill": (10, 2.5)})
    table = rules([one, two, fake.run(tmp_path, experiment="three", steps=200)])
    text = table.text.set_index("Experiment")
    assert list(text.columns) == ["Seed", "All rules", "fill", "recolour"]
    assert list(text.loc["one"]) == ["0", "44.4 %", "100", "0"]
    assert list(text.loc["two"]) == ["0", "25.0 %", "25", NONE]
    row = table.numbers.iloc[1]
    assert (row["rule"], row["tasks"], row["pass_at_1"], row["low"]) == ("recolour", 50, 0.0, 0.0)
    assert row["high"] == pytest.approx(0.0711, abs=1e-4)


def test_compositions_are_too_many_columns(tmp_path: Path) -> None:
    found = {f"fill+{n:02}": (n + 1, 1.0) for n in range(MOST + 5)}
    table = rules([scored(tmp_path, "one", found)])
    assert len(table.text.columns) == MOST + 3
    assert "fill+00" not in table.text.columns  # the rarest
    assert len(table.numbers) == MOST + 5
    assert f"of {MOST + 5} rules" in to_markdown(table)


def test_a_study_without_known_rules_says_so(tmp_path: Path) -> None:
    table = rules([fake.run(tmp_path, experiment="one", steps=200)])
    assert table.text.empty
    assert table.notes
