"""The last good result stays cached if the next one fails, and is restored for its key."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file
from tiny import make_run, make_tasks, paths_in, write_study

from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.evaluation.run import evaluate_run
from etrm.storage.files import file_digest
from etrm.storage.result_cache import MAX_CACHED, RUN_FILES, SCORE_FILES
from etrm.training.run import RunPaths, train_run
from etrm.training.trainer import Trainer

OFF = TrackingConfig(wandb="disabled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    paths = write_study(folder, make_tasks(4), make_tasks(2, seed=7, prefix="held_out"))
    train(paths)
    evaluate(paths)
    return folder


@pytest.fixture
def paths(finished: Path, tmp_path: Path) -> RunPaths:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "copy")
    return paths_in(tmp_path / "copy")


@pytest.fixture
def fresh(tmp_path: Path) -> RunPaths:
    """The same tables, without a run."""
    return write_study(tmp_path, make_tasks(4), make_tasks(2, seed=7, prefix="held_out"))


def train(paths: RunPaths, **blocks: Any) -> dict[str, Any]:
    return train_run(make_run(**blocks), paths, OFF, device="cpu")


def content(folder: Path, names: Sequence[str] = RUN_FILES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step of training and every prediction fail."""
    fail = Mock(side_effect=RuntimeError("something was computed"))
    monkeypatch.setattr(Trainer, "step", fail)
    monkeypatch.setattr("etrm.evaluation.run.predict_batches", fail)


@pytest.mark.parametrize("deleted", [True, False])
def test_the_same_run_is_restored(
    deleted: bool, fresh: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after its outputs were deleted, as the workflow does before it starts a job again."""
    paths = fresh
    train(paths)
    before = content(paths.out)
    [cached] = [p.parent for p in paths.state.rglob("run.json")]
    for name in RUN_FILES:  # linked, not copied
        assert (cached / name).stat().st_ino == (paths.out / name).stat().st_ino
    if deleted:
        shutil.rmtree(paths.out)
    forbid(monkeypatch)
    train(paths)
    assert content(paths.out) == before
    assert {path.name for path in paths.out.iterdir()} == set(RUN_FILES)


def test_a_changed_run_that_fails_leaves_the_good_one(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(paths.out)
    shutil.rmtree(paths.out)
    forbid(monkeypatch)
    with pytest.raises(RuntimeError, match="something was computed"):
        train(paths, halting={"max_steps": 2})
    [cached] = [p.parent for p in paths.state.rglob("run.json")]
    assert content(cached) == before
    assert not paths.out.exists()
    train(paths)  # back to the old configuration
    assert content(paths.out) == before


def test_the_current_run_and_the_one_before_are_cached(fresh: RunPaths) -> None:
    lengths = (2, 3, 5)
    for steps in lengths:
        train(fresh, train={"steps": steps})
    cached = {json.loads(p.read_text())["steps_done"] for p in fresh.state.rglob("run.json")}
    assert cached == set(lengths[-MAX_CACHED:])
    other = replace(fresh, out=fresh.out.with_name("other"))
    train(other, experiment="other", train={"steps": 2})
    assert len(list(fresh.state.rglob("run.json"))) == MAX_CACHED + 1, "each run has its own"


@pytest.mark.parametrize("damage", ["truncated", "missing", "record"])
def test_a_damaged_copy_is_not_used(paths: RunPaths, damage: str) -> None:
    first = json.loads((paths.out / "run.json").read_text())
    before = content(paths.out)
    [cached] = [p.parent for p in paths.state.rglob("run.json")]
    shutil.rmtree(paths.out)
    if damage == "truncated":
        weights = (cached / "model.safetensors").read_bytes()
        (cached / "model.safetensors").write_bytes(weights[:-1])
    elif damage == "missing":
        (cached / "metrics.parquet").unlink()
    else:
        (cached / "run.json").write_text("{")
    again = train(paths)
    assert again["started"] >= first["started"]
    assert content(paths.out)["model.safetensors"] == before["model.safetensors"]
    assert content(cached) == content(paths.out), "the new one takes its place"


# --- evaluations ---


def evaluate(paths: RunPaths, **changes: Any) -> dict[str, Any]:
    config = EvaluationConfig(variants=2, pass_k=(1, 2), batch_size=8)
    return evaluate_run(
        paths.out,
        paths.tasks,
        paths.augmentations,
        replace(config, **changes),
        paths.out.with_name("evaluation"),
        device="cpu",
        state=paths.state,
    )


def test_an_evaluation_is_restored_after_another_one_failed(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = paths.out.with_name("evaluation")
    before = content(out, SCORE_FILES)
    shutil.rmtree(out)
    forbid(monkeypatch)
    with pytest.raises(RuntimeError, match="something was computed"):
        evaluate(paths, variants=1)
    assert not out.exists()
    assert evaluate(paths) == json.loads(before["score.json"])
    assert content(out, SCORE_FILES) == before


@pytest.mark.parametrize("change", ["config", "weights", "tables", "code"])
def test_an_evaluation_of_something_else_is_not_restored(
    change: str, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    changes: dict[str, Any] = {}
    record = paths.out / "run.json"
    if change == "config":
        changes = {"halt_early": True}
    elif change == "weights":
        path = paths.out / "model.safetensors"
        tensors = {name: tensor * 2 for name, tensor in load_file(path).items()}
        path.unlink()  # it is linked to the cached one
        save_file(tensors, path)
        content = json.loads(record.read_text()) | {"weights_sha256": file_digest(path)}
        record.unlink()
        record.write_text(json.dumps(content))
    elif change == "tables":
        write_study(paths.tasks.parent, make_tasks(4), make_tasks(1, seed=7, prefix="held_out"))
    else:
        monkeypatch.setattr("etrm.evaluation.run.code_digest", lambda *_: "another")
    with pytest.raises(RuntimeError, match="something was computed"):
        evaluate(paths, **changes)


def test_a_result_that_cannot_be_cached_is_a_result(
    fresh: RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("etrm.storage.result_cache._link", full)
    with caplog.at_level(logging.WARNING):
        train(fresh, train={"steps": 3})
        evaluate(fresh)
    assert caplog.text.count("could not be cached") == 2
    assert list(fresh.state.rglob("*.state")), "without a cached result, its state stays"
