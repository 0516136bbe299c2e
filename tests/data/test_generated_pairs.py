"""Pairs that reasoning-gym generates: its rules, the file, and tasks that stand for another."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_prepare import write_source

from etrm.api import prepare
from etrm.arc.generated import ABOUT, generated_file, read_generated
from etrm.arc.sources import Loaded, SourceError, load_sources
from etrm.arc.task import Pair, Task
from etrm.config.data import DataConfig
from etrm.config.load import load_study
from etrm.config.sources import Arc1dSource, ArckitSource, GeneratedSource, RearcSource
from etrm.data import generate as module
from etrm.data.generate import generate, install_library
from etrm.data.prepare import mark_overlaps, select_tasks
from etrm.data.tables import read_tasks
from etrm.errors import UserError
from etrm.study.layout import Layout
from etrm.study.plan.sizes import sizes_of

# Rules of ARC tasks that one line computes: left-right flip, half a turn, transposition.
KNOWN = {"67a3c6ac": np.fliplr, "6150a2bd": lambda x: x[::-1, ::-1], "74dd1130": np.transpose}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    """As `make setup` installs it; the error says how to."""
    install_library()


def rearc(folder: Path, rules: Any = tuple(KNOWN), pairs: int = 6, **options: Any) -> RearcSource:
    return RearcSource(rules=rules, pairs=pairs, folder=str(folder), **options)


def loaded(source: GeneratedSource, processes: int = 1) -> Loaded:
    generate(source, processes)
    return load_sources({"g": source})["g"]


def test_pairs_follow_the_rule_and_stand_for_its_task(tmp_path: Path) -> None:
    tasks = loaded(rearc(tmp_path, tests=2, max_side=12)).tasks
    assert [task.id for task in tasks] == [f"rearc_{name}" for name in sorted(KNOWN)]
    for task in tasks:
        assert (len(task.demos), len(task.queries)) == (4, 2)
        pairs = (*task.demos, *task.queries)
        assert len({pair.input.tobytes() for pair in pairs}) == 6
        for pair in pairs:
            assert pair.output is not None
            assert np.array_equal(KNOWN[task.id[6:]](pair.input), pair.output)
            assert max(*pair.input.shape, *pair.output.shape) <= 12
        assert task.original is not None
        assert task.original.id == task.id[6:]
        for pair in task.original.demos:
            assert np.array_equal(KNOWN[task.original.id](pair.input), pair.output)


def test_the_file_is_the_same_whatever_the_processes_and_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = ("00d62c1b", "d511f180", "6150a2bd", "a85d4709")
    sources = [rearc(tmp_path / name, rules, pairs=4) for name in ("one", "two", "killed")]
    generate(sources[0], 1)
    generate(sources[1], 2)
    asked, ask = [], module._Worker.ask

    def fail_later(worker: Any, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request.get("rule"))
        if 4 <= len(asked) < 10:  # after the names of rules and two of them
            raise KeyboardInterrupt
        return ask(worker, request)

    monkeypatch.setattr(module._Worker, "ask", fail_later)
    with pytest.raises(KeyboardInterrupt):
        generate(sources[2], 1)
    assert not generated_file(sources[2]).exists()
    asked[:] = [None] * 10
    generate(sources[2], 1)
    assert len(asked) == 10 + 3  # the names again, and the two rules that were missing
    first, *others = (generated_file(source) for source in sources)
    assert [path.name for path in others] == [first.name] * 2
    assert [path.read_bytes() for path in others] == [first.read_bytes()] * 2
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # no shard is left
    generate(sources[0], 1)  # is there
    assert len(asked) == 10 + 3


def test_options_have_a_file_each_but_for_those_that_change_no_pair(tmp_path: Path) -> None:
    source = rearc(tmp_path)
    same = replace(source, tests=3, prefix="other_", problems="error")
    assert generated_file(same) == generated_file(source)
    changes: list[dict[str, Any]] = [
        {"pairs": 7},
        {"seed": 1},
        {"difficulty": (0.0, 1.0)},
        {"rules": None},
        {"max_side": 29},
    ]
    files = {generated_file(replace(source, **change)) for change in changes}
    assert len(files - {generated_file(source)}) == len(changes)


def test_a_smaller_number_of_pairs_gives_the_first_and_another_seed_others(tmp_path: Path) -> None:
    few, more, other = (
        loaded(rearc(tmp_path, ("67a3c6ac",), **options)).tasks[0]
        for options in ({"pairs": 3}, {"pairs": 5}, {"pairs": 3, "seed": 1})
    )
    pairs = [(*task.demos, *task.queries) for task in (few, more, other)]
    assert pairs[0] == pairs[1][:3]
    assert pairs[0] != pairs[2]


def test_metadata_count_draws_and_name_rules_that_are_not_the_original(tmp_path: Path) -> None:
    source = rearc(tmp_path, ("67a3c6ac", "6cf79266"), pairs=3)
    summary = generate(source, 1)
    about = json.loads(pq.read_schema(generated_file(source)).metadata[ABOUT])
    rules = about["rules"]
    assert {name: rule["disagrees"] for name, rule in rules.items()} == {
        "67a3c6ac": 0,
        "6cf79266": 1,  # a known mistake in the original's third demo
    }
    assert all(r["draws"] == r["pairs"] + sum(r["rejected"].values()) for r in rules.values())
    assert about["generation"]["library"] == "reasoning_gym==0.1.25"
    assert "6cf79266 (1)" in summary
    assert "67a3c6ac (" not in summary
    identity = load_sources({"g": source})["g"].identity
    assert identity["revision"].startswith("reasoning_gym==0.1.25 (kind rearc, ")
    assert about["digest"][:16] in identity["origin"]


def test_a_rule_with_too_few_pairs_is_left_out_or_an_error(tmp_path: Path) -> None:
    source = rearc(tmp_path, ("007bbfb7", "67a3c6ac"), pairs=3, max_side=8, difficulty=(0.0, 1.0))
    found = loaded(source)  # grids of the second one are larger, but for few
    assert [task.id for task in found.tasks] == ["rearc_007bbfb7"]
    assert [problem.task for problem in found.skipped] == ["rearc_67a3c6ac"]
    with pytest.raises(SourceError, match=r"rule 67a3c6ac: found \d pairs? in 60 draws"):
        load_sources({"g": replace(source, problems="error")})


def test_one_dimensional_rules_fix_their_parameters(tmp_path: Path) -> None:
    def source(**options: Any) -> Arc1dSource:
        return Arc1dSource(folder=str(tmp_path), **{"pairs": 4, "cells": (9, 12)} | options)

    [task] = loaded(source(rules=("move_6pix_colorful_wrapped_left",), max_shift=6)).tasks
    for pair in (*task.demos, *task.queries):
        assert pair.output is not None
        assert pair.input.shape[0] == 1
        assert 9 <= pair.input.shape[1] <= 12
        assert np.array_equal(np.roll(pair.input, -6, axis=1), pair.output)
    # With shifts of up to four cells, the rules are those of the library's table.
    generate(every := source(pairs=2), 1)
    table = runpy.run_path(str(install_library() / "reasoning_gym/arc/arc_1d_tasks.py"))
    assert set(read_generated(generated_file(every)).pools) == set(table["ARC_1D_TASKS"])


def test_unknown_rules_a_missing_file_and_a_missing_library_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"found '67a3c6ad', expected .* mean '67a3c6ac'"):
        generate(rearc(tmp_path, ("67a3c6ad",)), 1)
    with pytest.raises(SourceError, match=r"no such file, .*`etrm prepare`"):
        load_sources({"g": rearc(tmp_path)})
    damaged = generated_file(rearc(tmp_path))
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"no table of generated pairs .* delete it"):
        load_sources({"g": rearc(tmp_path)})
    monkeypatch.setattr(module, "library_folder", lambda: tmp_path / "gone")
    refuse = "import sys; sys.exit('no index')"
    run = subprocess.run

    def no_pip(command: list[str], **options: Any) -> Any:
        return run([sys.executable, "-c", refuse], **options)

    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(UserError, match=r"gone: no such folder.*no index.*pip install .*--target"):
        install_library()


@pytest.fixture(scope="module")
def four_rules(tmp_path_factory: pytest.TempPathFactory) -> RearcSource:
    """RE-ARC's pairs of four rules, generated once."""
    rules = ("40853293", "67a3c6ac", "6150a2bd", "74dd1130")
    source = rearc(tmp_path_factory.mktemp("generated"), rules, pairs=3)
    generate(source, 2)
    return source


def study(folder: Path, pools: RearcSource, held_out: list[Task], **options: Any) -> DataConfig:
    """Training on ARC tasks and RE-ARC's pairs, held out as given."""
    originals = [task.original for task in load_sources({"g": pools})["g"].tasks]
    sources = {
        "arc": write_source(folder / "arc", [task for task in originals if task is not None]),
        "pools": pools,
        "held": write_source(folder / "held", held_out),
    }
    return DataConfig(sources, ("arc", "pools"), ("held",), **{"validation_tasks": 0} | options)


def test_pairs_of_a_held_out_rule_are_never_trained_on(
    four_rules: RearcSource, tmp_path: Path
) -> None:
    cell = Pair(np.array([[1, 2, 3]], np.uint8), np.array([[3]], np.uint8))
    by_id = Task("67a3c6ac", (cell,), (cell,))  # whatever its content
    evaluation = load_sources({"e": ArckitSource(subset="evaluation")})["e"].tasks
    [same] = [task for task in evaluation if task.id == "070dd51e"]  # it is 40853293
    records, *_ = select_tasks(study(tmp_path, four_rules, [by_id, same]))
    marked = {r.task.id: (r.duplicate_of, r.answer_of) for r in mark_overlaps(records)[0]}
    assert marked["rearc_40853293"] == marked["40853293"] == ("070dd51e", "070dd51e")
    assert marked["rearc_67a3c6ac"][0] == "67a3c6ac"
    assert "67a3c6ac" in marked  # held out itself; as a training task it is gone
    free = {name for name, marks in marked.items() if marks == (None, None)}
    assert free >= {"6150a2bd", "rearc_6150a2bd", "74dd1130", "rearc_74dd1130"}


def test_validation_is_of_the_tasks_themselves_and_takes_their_pools(
    four_rules: RearcSource, tmp_path: Path
) -> None:
    cell = Pair(np.array([[1, 2, 3]], np.uint8), np.array([[3]], np.uint8))
    held_out = [Task("h", (cell,), (cell,))]
    records, *_ = select_tasks(study(tmp_path, four_rules, held_out, validation_tasks=2))
    validation = [r.task.id for r in records if r.split == "validation"]
    assert len(validation) == 2
    assert not any(name.startswith("rearc_") for name in validation)
    marked = {r.task.id: r.duplicate_of for r in mark_overlaps(records)[0]}
    pools = {name: mark for name, mark in marked.items() if name.startswith("rearc_")}
    assert {name for name, mark in pools.items() if mark} == {f"rearc_{n}" for n in validation}
    assert all(mark is None or name == f"rearc_{mark}" for name, mark in pools.items())


def test_tables_and_plans_of_a_study_generate_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pools = {"kind": "arc_1d", "pairs": 4, "rules": ["gravity_left", "gravity_right"]}
    document = {
        "study": "pools",
        "data": {"sources": {"pools": pools}, "training": ["pools"], "validation_tasks": 0},
        "experiments": {"x": {"description": "a question", "context": {"source": "standard"}}},
    }
    config = load_study(document)
    layout = Layout(config)
    [file] = layout.generated
    assert layout.source_files() == []
    assert layout.source_digests()["pools"] == Path(file).stem  # known before it is there
    assert [file in line for line in sizes_of(layout, again=True).missing] == [True]
    prepare(config)
    assert layout.source_files() == [file]
    assert layout.source_digests()["pools"] == Path(file).stem
    records = [r for r in read_tasks(layout.tasks) if r.split == "training"]
    assert [record.task.id for record in records] == ["arc_1d_gravity_left", "arc_1d_gravity_right"]
    assert sizes_of(layout, again=True).missing == ()
