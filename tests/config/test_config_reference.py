"""`config/README.md` is what `etrm.config.reference` makes of the dataclasses."""

from __future__ import annotations

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from documents import ROOT

from etrm.config import reference
from etrm.config.data import DataConfig
from etrm.config.health import HealthRule, guide_rules
from etrm.config.load import load_study
from etrm.config.merging import merge
from etrm.config.reference import literal, render
from etrm.config.registry import context_options
from etrm.config.schema import ConfigError
from etrm.config.sources import source_kinds
from etrm.config.study import ExperimentConfig, StudyConfig, TrainConfig

PAGE = render()


def section(heading: str) -> str:
    """The text from a heading to the next."""
    start = PAGE.index(f"\n{heading}\n")
    return PAGE[start : PAGE.index("\n#", start + 1) if "\n#" in PAGE[start + 1 :] else None]


def row(heading: str, key: str) -> list[str]:
    line = next(x for x in section(heading).splitlines() if x.startswith(f"| `{key}` |"))
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_page_in_the_repository_is_up_to_date() -> None:
    written = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    command = "python -m etrm.config.reference config/README.md"
    assert written == PAGE, f"config/README.md is not up to date: run `{command}`"


def test_every_key_has_a_meaning_and_a_row() -> None:
    classes: list[tuple[str, type]] = [
        ("## Study", StudyConfig),
        ("## `data`", DataConfig),
        ("## One experiment", ExperimentConfig),
        ("### `train`", TrainConfig),
        ("#### `health.rules.<name>`", HealthRule),
    ]
    for kind, load in source_kinds().items():
        classes.append((f"#### `data.sources.<name>` with `kind: {kind}`", load()))
    for source, load in context_options().items():
        classes.append((f"#### `context` with `source: {source}`", load()))
    for heading, cls in classes:
        for field in dataclasses.fields(cls):
            assert row(heading, field.name)[-1], f"{cls.__name__}.{field.name} has no meaning"


def test_rows_say_type_unit_default_allowed_and_meaning() -> None:
    assert row("### `train`", "steps")[:5] == ["`steps`", "integer", "steps", "`100000`", "≥ 1"]
    assert row("### `train`", "lr")[:5] == ["`lr`", "number", "", "`1.0e-4`", "> 0"]
    assert row("### `train`", "grad_clip")[1] == "number or null"
    assert row("### `train`", "betas")[3:5] == ["`[0.9, 0.95]`", "≥ 0 and < 1; two of them"]
    assert row("### `train`", "dtype")[4] == "`fp32`, `bf16`"
    assert row("## Study", "study")[3] == "**required**"
    assert row("## One experiment", "context")[3] == "**required**, [its keys](#context)"


def test_the_guide_s_health_rules_are_listed() -> None:
    text = section("#### `health.rules.<name>`")
    for name, rule in guide_rules().items():
        assert f"| `{name}` | `{rule.metric}` |" in text


def test_links_lead_to_headings() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
    headings = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose, flags=re.M)
    ]
    assert len(headings) == len(set(headings))
    assert set(re.findall(r"\]\(#([^)]+)\)", prose)) <= set(headings)
    files = set(re.findall(r"\]\(([^)#]+)\)", prose))
    assert {name for name in files if not (ROOT / "config" / name).is_file()} == set()


def test_tables_have_as_many_cells_as_columns() -> None:
    width = 0
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = width or cells
        assert cells == width, line


def test_the_worked_example_is_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)[0])
    assert load_study(example).experiments["etrm_attention"].context.pooling == "attention"
    mistakes = {"context": {"pooling": "atention"}, "train": {"lr": "5e-4"}}
    with pytest.raises(ConfigError) as caught:
        load_study(merge(example, {"experiments": {"etrm_attention": mistakes}}))
    assert str(caught.value) in PAGE


def test_the_example_of_a_sweep_is_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)[1])
    found = [name for name in load_study(example).experiments if name.startswith("etrm_grid")]
    assert len(found) == 12
    assert f"from `{found[0]}` to\n`{found[-1]}`" in PAGE
    assert set(example["experiments"]) - set(found) == {"etrm_grid"}


@pytest.mark.parametrize("number", [1.0e-4, 2.5e-7, 0.001, 0.1, 1.0, 10000.0, -3.0e-5, 0.0])
def test_numbers_are_written_as_yaml_reads_them(number: float) -> None:
    assert yaml.safe_load(literal(number)) == number


def test_the_command_prints_the_page_or_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "README.md"
    for arguments in ([], [str(out)]):
        monkeypatch.setattr(sys, "argv", ["reference", *arguments])
        runpy.run_path(reference.__file__, run_name="__main__")
    assert capsys.readouterr().out == out.read_text(encoding="utf-8") == PAGE
