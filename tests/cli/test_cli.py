"""The command line without Snakemake, on a study that trains in a moment."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from small_study import STUDY, write_sources

import etrm
from etrm.cli import main
from etrm.errors import UserError
from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.models.encoders.standard import StandardEncoder

FULL = Path("results/tiny/runs/one/full/seed0")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with the study's sources and file, which is the current one."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    document = copy.deepcopy(STUDY)
    Path("tiny.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return document


def call(*arguments: str) -> int:
    return main([*arguments, "--configfile", "tiny.yaml"])


def test_a_study_without_snakemake(
    study: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage by its command: what a machine has that holds PyTorch and nothing else."""
    assert call("run", "strict") == 1
    assert "tasks.parquet" in capsys.readouterr().err
    assert call("prepare") == 0
    tables = {path: path.stat().st_mtime_ns for path in Path("results/tiny/data").iterdir()}
    assert {path.name for path in tables} == {"tasks.parquet", "augmentations.parquet"}
    assert call("prepare") == 0
    assert {path: path.stat().st_mtime_ns for path in tables} == tables
    assert call("run", "strict") == 0  # pretraining is all that it has
    assert call("gate", "one") == 1
    assert "`etrm run one overfit --seed 0`" in capsys.readouterr().err
    assert call("run", "one", "full") == 1
    assert "`etrm run one overfit`" in capsys.readouterr().err
    assert call("run", "one", "overfit") == 0
    assert call("run", "one", "full") == 1
    assert "`etrm gate one`" in capsys.readouterr().err
    assert call("gate", "one") == 0
    assert "passed" in capsys.readouterr().out
    assert call("run", "one", "full") == 0
    assert call("evaluate", "one") == 0
    files = capsys.readouterr().out.split()
    assert all(Path(file).is_file() for file in files[-3:])
    others = {"finalists": ["trm"]}  # nobody looks at test by the way
    with pytest.raises(UserError, match="one is not among the finalists"):
        etrm.evaluate(etrm.read_study("tiny.yaml", others), "one")
    verdict = etrm.gate(etrm.read_study("tiny.yaml"), "one")
    assert verdict == json.loads((FULL.parents[1] / "overfit/seed0/verdict.json").read_text())
    model = etrm.load_model(FULL)
    assert isinstance(model.context, StandardEncoder)
    assert not model.training
    (FULL / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        etrm.load_model(FULL)


def test_all_stages_in_turn(study: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("prepare") == call("run", "strict") == call("run", "one") == 0
    assert "passed" in capsys.readouterr().out
    assert (FULL / "run.json").is_file()
    assert call("run", "one") == 0  # restored: nothing is trained again
    assert json.loads((FULL / "run.json").read_text())["steps_done"] == 2
    assert call("run", "stopped") == 0
    printed = capsys.readouterr().out
    assert "stopped" in printed
    assert str(FULL.parents[2] / "stopped/overfit/seed0/verdict.json") in printed
    assert not (FULL.parents[2] / "stopped/full").exists()
    # The gate judges no run that is stale.
    study["defaults"]["train"]["batch_size"] = 3
    Path("tiny.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    assert call("gate", "one") == 1
    assert "train.batch_size 4 → 3" in capsys.readouterr().err


def test_ranks_of_torchrun_are_given_a_stage(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("run", "one") == 1
    assert "stage" in capsys.readouterr().err


BROKEN = """
import torch
from etrm.models.encoders.embedding import PuzzleEmbedding
def forward(self, *_):
    return torch.ones(2, 3) @ torch.ones(4, 5)
PuzzleEmbedding.forward = forward
"""


def test_a_defect_has_its_traceback(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one process, and in the ranks that it starts."""
    assert call("prepare") == 0
    # Every rank imports it as it starts.
    Path("sitecustomize.py").write_text(BROKEN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f".:{Path(etrm.__file__).parents[1]}")
    assert call("run", "strict", "--gpus", "2", "--device", "cpu") == 1
    shown = capfd.readouterr().err
    for words in ("Traceback", "sitecustomize.py", "mat1 and mat2 shapes cannot be multiplied"):
        assert words in shown
    broken = Mock(side_effect=lambda *_: torch.ones(2, 3) @ torch.ones(4, 5))
    monkeypatch.setattr(PuzzleEmbedding, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        call("run", "strict", "--gpus", "1", "--device", "cpu")


def test_the_package_says_which_calls_it_has() -> None:
    assert all(callable(getattr(etrm, name)) for name in etrm.__all__)
    with pytest.raises(AttributeError, match="no_such_call"):
        etrm.no_such_call  # noqa: B018
    code = "import sys, etrm; print('torch' in sys.modules or 'yaml' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
