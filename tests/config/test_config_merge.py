"""Merging: `extends`, `defaults`, differences, and blocks that replace."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from documents import document, study

from etrm.config.load import load_study, read_study
from etrm.config.merging import merge
from etrm.config.schema import ConfigError


def write(path: Path, content: object) -> str:
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False),
        encoding="utf-8",
    )
    return str(path)


def message(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    return str(caught.value)


def test_a_block_changes_the_keys_that_it_names() -> None:
    base = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": [1, 2]}
    merged = {"a": {"b": 1, "c": {"d": 9, "e": 3}}, "f": [3]}
    assert merge(base, {"a": {"c": {"d": 9}}, "f": [3]}) == merged
    assert base == {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": [1, 2]}


@pytest.mark.parametrize("tag", ["source", "kind"])
def test_a_block_with_another_tag_replaces_the_inherited_one(tag: str) -> None:
    base = {"x": {tag: "one", "a": 1}}
    assert merge(base, {"x": {tag: "two", "b": 2}}) == {"x": {tag: "two", "b": 2}}
    assert merge(base, {"x": {tag: "one", "b": 2}}) == {"x": {tag: "one", "a": 1, "b": 2}}
    assert merge(base, {"x": {"b": 2}}) == {"x": {tag: "one", "a": 1, "b": 2}}


@pytest.mark.parametrize("tag", ["source", "kind"])
@pytest.mark.parametrize(("old", "new"), [({"a": 1}, {"a": 2}), (None, {"a": 2}), ({"a": 1}, None)])
def test_a_block_that_is_named_as_a_tag_is_no_tag(tag: str, old: object, new: object) -> None:
    base = {"experiments": {tag: old, "other": 1}}
    assert merge(base, {"experiments": {tag: new}}) == {"experiments": {tag: new, "other": 1}}


def test_null_and_scalars_replace_blocks() -> None:
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert merge({"a": 1}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_experiments_are_differences_to_the_defaults() -> None:
    experiments = study().experiments
    assert experiments["etrm"].halting.max_steps == 2
    assert experiments["etrm"].halting.exploration_prob == 0.25  # of the defaults
    assert experiments["other"].context.pooling == "mean"
    assert experiments["other"].context.width == 32
    assert experiments["trm"].context.source == "embedding"
    assert experiments["trm"].decoder.init is None


def test_health_rules_come_beside_those_of_the_guide() -> None:
    mine = {"metric": "train/lm_loss", "fail": 9.0}
    found = study(defaults__health__rules={"collapse": {"fail": None}, "mine": mine})
    rules = found.experiments["etrm"].health.rules
    assert rules["collapse"].fail is None
    assert rules["collapse"].metric == "train/encoder_cross_sample_var"
    assert rules["mine"].fail == 9.0
    assert "gradient_starvation" in rules


def test_a_file_extends_another_that_extends_a_third(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", document())
    second = write(tmp_path / "second.yaml", {"extends": first, "study": "second", "threads": 2})
    third = {"extends": second, "study": "third", "experiments": {"etrm": {"seeds": [5]}}}
    found = read_study(write(tmp_path / "third.yaml", third))
    assert (found.study, found.threads) == ("third", 2)
    assert found.experiments["etrm"].seeds == (5,)
    assert list(found.experiments) == ["trm", "etrm", "other"]


def test_overrides_come_last(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", document())
    assert read_study(path, {"data": {"variants": 3}}).data.variants == 3


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    base = str(tmp_path / "nowhere.yaml")
    text = message(write(tmp_path / "study.yaml", {"extends": base}))
    assert f"{base}: found no such file" in text


@pytest.mark.parametrize("base", [3, ["a.yaml"], {"file": "a.yaml"}])
def test_extends_takes_a_path(base: object) -> None:
    with pytest.raises(ConfigError, match=r"extends: found .* expected the path"):
        load_study({**document(), "extends": base})


def test_a_circle_of_files_is_shown(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    write(tmp_path / "a.yaml", {"extends": b})
    write(tmp_path / "b.yaml", {"extends": a})
    assert f"extends: found a circle: {b} → {a} → {b}" in message(a)
    assert "a circle" in message(write(tmp_path / "c.yaml", f"extends: {tmp_path / 'c.yaml'}"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "found None (null), expected a block of keys"),
        ("- a\n- b\n", "(list), expected a block of keys"),
        ("a: [1, 2", "found no YAML: "),
        ("a: 1\n b: 2\n", "found no YAML: "),
        ("a: 2026-13-45\n", "found no YAML: "),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path: Path, content: str, part: str) -> None:
    path = write(tmp_path / "bad.yaml", content)
    text = message(path)
    assert path in text
    assert part in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"study: caf\xe9\n")
    assert "a file that cannot be read" in message(str(tmp_path / "latin.yaml"))
    assert "a file that cannot be read" in message(str(tmp_path))


def test_a_file_takes_away_what_it_inherits(tmp_path: Path) -> None:
    axes = {"steps": {"key": "halting.max_steps", "values": [2, 4]}}
    experiments = {"swept": {"sweep": axes}, "plain": None, "other": {"seeds": [3]}}
    content = {"study": "base", "defaults": {"context": {"source": "standard"}}}
    base = write(tmp_path / "base.yaml", {**content, "experiments": experiments})
    assert list(read_study(base).experiments) == ["swept_steps2", "swept_steps4", "plain", "other"]
    change = {"extends": base, "experiments": {"other": None, "swept_steps2": None, "new": None}}
    assert list(load_study(change).experiments) == ["swept_steps4", "plain", "new"]
    without = load_study({"extends": base, "experiments": {"swept": None, "plain": None}})
    assert list(without.experiments) == ["other"]


def test_a_source_of_its_own_stands_beside_the_default_ones() -> None:
    mine = {"sources": {"mine": {"kind": "folder", "path": "tasks"}}, "evaluation": ["mine"]}
    study = load_study({**document(), "data": mine})
    assert set(study.data.sources) == {"arc1_training", "arc1_evaluation", "mine"}
    assert study.data.training == ("arc1_training",)
