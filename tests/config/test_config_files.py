"""Configuration files: no key is swallowed, and everything else is read as YAML and JSON say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document, shipped

from etrm.cli import main
from etrm.config.files import check_files, read_file, with_types
from etrm.config.load import read_study
from etrm.config.schema import ConfigError
from etrm.launch.site import read_site

SHIPPED = shipped("config/*.yaml", "slurm/*.yaml")
TWICE = "experiments:\n  a: {seeds: [1]}\n  b: {}\n  a: {seeds: [2]}\n"


def file(folder: Path, text: str, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> list[str]:
    """The problems of a file, one line each, behind a line that names it."""
    with pytest.raises(ConfigError) as error:
        read_file(path)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{path}: {len(lines)} problem")
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TWICE, ["experiments.a: found the key twice, on lines 2 and 4"]),
        ("a: 1\nb: 2\na: 3\n", ["a: found the key twice, on lines 1 and 3"]),
        ("a: {b: {c: 1,\n d: 2,\n c: 3}}\n", ["a.b.c: found the key twice, on lines 1 and 3"]),
        (
            "a:\n- {b: 1}\n- - b: 1\n    b: 2\n",
            ["a[1][0].b: found the key twice, on lines 3 and 4"],
        ),
        ("a: 1\na: 2\nb: 0\na: 3\n", ["a: found the key 3 times, on lines 1, 2 and 4"]),
        ("{a: 1, a: 1}\n", ["a: found the key twice, on line 1"]),
        ("yes: 1\ntrue: 2\n", ["True: found the key twice, on lines 1 and 2"]),
        ("1: a\n1.0: b\n", ["1: found the key twice, on lines 1 and 2"]),
        ("a: 1\n'a': 2\n", ["a: found the key twice, on lines 1 and 2"]),
        ("? [a, b]\n: {c: 1, c: 2}\n", ["['a', 'b'].c: found the key twice, on line 2"]),
        ("a: 1\nb: {c: 1, c: 2}\na: 2\n", ["b.c: found the key twice", "a: found the key twice"]),
        ("a: &x {b: 1, b: 2}\nc: *x\n", ["a.b: found the key twice, on line 1"]),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x\n", ["c.<<: found the key twice, on lines 3 and 4"]),
    ],
)
def test_a_key_that_stands_twice(text: str, found: list[str], tmp_path: Path) -> None:
    lines = refused(file(tmp_path, text))
    assert len(lines) == len(found)
    for line, start in zip(lines, found, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    "text",
    [
        "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n",
        "base: &b {x: 1}\nmore: &m {x: 2, z: 3}\nmine:\n  <<: [*b, *m]\n  w: 4\n",
        "mine: {<<: {x: 1, y: 2}, y: 3}\n",
        "a: &x {b: 1}\nc: [*x, *x]\nd: *x\n",
        "1: a\n'1': b\n2.5: c\nno: d\n'no': e\n",
        "a: {b: 1}\nc: {b: 2}\nb: 3\n",
        "",
        "# nothing\n",
        "- 1\n- 2\n",
    ],
)
def test_merge_keys_and_aliases_mean_what_they_mean(text: str, tmp_path: Path) -> None:
    assert read_file(file(tmp_path, text)) == yaml.safe_load(text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_files_that_come_with_the_project(path: Path) -> None:
    assert read_file(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_json_files_are_read_as_snakemake_reads_them(tmp_path: Path) -> None:
    content = {"a": [1e-4, {"b": None}], "c": "yes", "d/\t": "é\U0001f600"}
    for text in (json.dumps(content), json.dumps(content, indent="\t", ensure_ascii=False)):
        assert read_file(file(tmp_path, text, "study.json")) == content
    text = '{\n\t"a": {"b": 1,\n\t\t"b": 2},\n\t"c": 0,\n\t"\\u0063": 1\n}\n'
    assert [line[:43] for line in refused(file(tmp_path, text, "study.json"))] == [
        "a.b: found the key twice, on lines 2 and 3,",
        "c: found the key twice, on lines 4 and 5, e",
    ]


# --- wherever a file is read ---


def test_a_study_and_what_it_extends(tmp_path: Path, capsys: Any) -> None:
    bad = file(tmp_path, yaml.safe_dump(document()) + "study: again\n", "bad.yaml")
    good = file(tmp_path, f"extends: {bad}\nstudy: good\n")
    for path in (bad, good):
        with pytest.raises(ConfigError, match=r"bad\.yaml: 1 problem\n  study: found the key"):
            read_study(path)
        for command in ("plan", "summary", "doctor"):
            assert main([command, "--configfile", str(path)]) == 1
            assert "study: found the key twice" in capsys.readouterr().err


def test_files_that_snakemake_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = file(tmp_path, "a: 1\n", "good.yaml"), file(tmp_path, TWICE, "bad.yaml")
    check_files([])
    check_files([good, str(good)])
    with pytest.raises(ConfigError, match=r"bad\.yaml: 1 problem\n  experiments\.a: found the key"):
        check_files([str(good), bad])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^bad\.yaml: 1 problem"):
        check_files([bad])
    with pytest.raises(ConfigError, match=r"none\.yaml: found no such file"):
        check_files(["none.yaml"])


def test_the_settings_of_a_site(tmp_path: Path) -> None:
    path = file(tmp_path, "partition: long\nruntime: {full: 1}\npartition: short\n", "site.yaml")
    with pytest.raises(
        ConfigError, match=r"site\.yaml: 1 problem\n  partition: found the key twice, on lines 1 a"
    ):
        read_site(path)


def test_values_of_the_command_line_have_the_types_of_yaml() -> None:
    nested = {"variants": "8", "max_side": "null", "lr": "1.0e-4", "on": "true", "of": ["1", "x"]}
    found = with_types({"data": nested, "study": "8", "threads": 2})
    typed = {"variants": 8, "max_side": None, "lr": 1.0e-4, "on": True, "of": [1, "x"]}
    assert found == {"data": typed, "study": "8", "threads": 2}  # Snakemake gives these types
    assert with_types({"a": {"day": "2026-13-45"}}) == {"a": {"day": "2026-13-45"}}
