"""The examples run, quickly: short training, and a tiny run instead of a trained one."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etrm
from etrm.config.registry import CONTEXT_SOURCES
from etrm.errors import UserError
from etrm.storage.digests import code_digests, train_code

TRIAL = ("--steps", "2", "--tasks", "20", "--folder", "here")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another folder than the checkout, and the registry as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    known = dict(CONTEXT_SOURCES)
    yield
    CONTEXT_SOURCES.clear()
    CONTEXT_SOURCES.update(known)


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_own_tasks(
    run_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("solve_own_tasks.py", str(run_folder("in_context")), monkeypatch=monkeypatch)
    submission = json.loads(Path("submission.json").read_text(encoding="utf-8"))
    assert list(submission) == ["arrays", "dictionary"]
    printed = capsys.readouterr().out
    assert "task arrays" in printed
    assert "context tokens (" in printed
    assert "logits (6, 6, 12)" in printed


def test_own_encoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_encoder.py", *TRIAL, monkeypatch=monkeypatch)
    assert "task task0" in capsys.readouterr().out
    folder = Path("here/results/own_encoder/runs/mine/overfit/seed0")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["context"]["source"] == "colour_counts"
    assert record["code"] == code_digests(*train_code("colour_counts"))
    solver = etrm.load(folder)
    one, other = (solver.encode([([[1, 2]], [[a, 3]])]) for a in (4, 5))
    assert one.shape == (12, 64)
    assert not np.allclose(one, other)


def test_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("sweep.py", *TRIAL, monkeypatch=monkeypatch)
    header, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert header.split()[0] == "lr"
    assert [float(row.split()[1]) for row in rows] == [3e-4, 1e-3, 3e-3]


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.ipynb"))])
def test_notebooks(
    name: str, run_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code cells in one namespace, as a kernel runs them."""
    monkeypatch.setenv("ETRM_RUN", str(run_folder("in_context")))
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    shared: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{name}, cell {number}", "exec"), shared)
    assert shared["context"].shape[1] == 16
    assert np.allclose(shared["chances"].sum(-1), 1.0, atol=1e-5)
    assert not any(c.get("outputs") for c in notebook["cells"])  # of no run in particular


def test_the_code_of_an_encoder_from_outside_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for number, (package, value) in enumerate([("lab_a", 1), ("lab_b", 2), ("lab_c", 2)]):
        (tmp_path / package / "deep").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("", encoding="utf-8")
        (tmp_path / package / "deep/__init__.py").write_text("", encoding="utf-8")
        helper = f"from {package}.helper import VALUE\nclass Mine:\n    value = VALUE\n"
        (tmp_path / package / "deep/mine.py").write_text(helper, encoding="utf-8")
        helper = f"VALUE = {value}  # number {number}\n"
        (tmp_path / package / "helper.py").write_text(helper, encoding="utf-8")
        etrm.register_encoder(f"mine{number}", f"{package}.deep.mine:Mine")
        found = code_digests(*train_code(f"mine{number}"))
        digests.append(found[f"{package}.helper"])
        assert f"{package}.deep.mine" in found
        assert "etrm.training.build" in found
    assert digests[0] != digests[1] == digests[2]  # the value counts, the comment does not


def test_names_of_encoders_are_not_taken_twice() -> None:
    with pytest.raises(UserError, match="'standard'"):
        etrm.register_encoder("standard", "mine:Encoder")
    with pytest.raises(UserError, match="module:Class"):
        etrm.register_encoder("mine", "mine.Encoder")
