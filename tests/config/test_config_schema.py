"""`config/schema.json`: up to date, valid, true of the shipped studies, and false of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT, document, place, shipped, shipped_study
from jsonschema import Draft202012Validator
from test_config_errors import LINES

from etrm.config.json_schema import render, schema
from etrm.config.load import plain
from etrm.config.registry import encoders

SCHEMA = schema()
CHECK = Draft202012Validator(SCHEMA)
STUDIES = shipped("config/*.yaml")


def mistakes(content: Any) -> list[str]:
    """Return the path of each mistake, deepest first."""
    return sorted((e.json_path for e in CHECK.iter_errors(content)), key=len, reverse=True)


def test_the_file_in_the_repository_is_up_to_date() -> None:
    written = render()
    command = "make docs-generated"
    assert (ROOT / "config/schema.json").read_text(encoding="utf-8") == written, f"run `{command}`"
    assert json.loads(written) == json.loads(json.dumps(SCHEMA))


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_shipped_studies_are_valid(path: Path) -> None:
    assert mistakes(yaml.safe_load(path.read_text(encoding="utf-8"))) == []
    assert mistakes(plain(shipped_study(path.name))) == []  # nothing left to merge


def test_keys_say_meaning_unit_default_and_bounds() -> None:
    keys = SCHEMA["properties"]["defaults"]["properties"]
    steps = keys["train"]["properties"]["steps"]
    assert steps.pop("description") == "length of the run [steps]"
    assert steps == {"type": "integer", "default": 100_000, "minimum": 1}
    assert keys["split"]["enum"] == ["strict", "transductive"]
    assert keys["context"]["properties"]["source"]["enum"] == ["embedding", *encoders()]


# Mistakes that no schema of one file sees: values that do not fit together, names of other entries,
# and those that JSON has no word for.
BEYOND = (
    *("data.training", "data.evaluation", "defaults.model.width", "experiments.etrm.model.width"),
    *("defaults.context.width", "experiments.etrm.stages.full.eval_every"),
    *("data.sources.train", "data.sources.train.subset", "defaults.health.rules.mine.metric"),
    *("baseline", "finalists[0]", "finalists[1]", "defaults.episodes.draw"),
)
UNSEEN = {"2.0 (number)", "nan", "inf", "ascending", "2 lanes with order: epochs"}
SEEN = [
    (changes, path)
    for changes, path, parts in LINES
    if path not in BEYOND and not UNSEEN & set(parts)
]


@pytest.mark.parametrize(("changes", "path"), SEEN, ids=[str(c)[:60] for c, _ in SEEN])
def test_mistakes_that_the_loader_names_are_found(changes: dict[str, Any], path: str) -> None:
    assert mistakes(document(**changes)), path


@pytest.mark.parametrize(
    ("keys", "value", "path"),
    [
        ("experiments grid sweep steps values", [1], None),
        ("experiments grid sweep steps key", 3, "$.experiments.grid.sweep.steps.key"),
        ("experiments grid sweep steps every", "model", "$.experiments.grid.sweep.steps.every"),
        ("experiments etrm context", {"layers": 3}, None),
        ("experiments etrm context", {"source": "lpn", "pooling": "max"}, "$.experiments.etrm"),
        ("experiments etrm context", {"source": "lpnn"}, "$.experiments.etrm.context.source"),
        ("experiments etrm", None, None),
        ("defaults sweep", {}, "$.defaults"),
        ("extends", 3, "$.extends"),
    ],
)
def test_sweeps_and_unions(keys: str, value: Any, path: str | None) -> None:
    content = document()
    place(content, keys.split(), value)
    found = mistakes(content)
    assert not found if path is None else found[0].startswith(path), found
