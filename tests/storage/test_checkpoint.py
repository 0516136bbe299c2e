"""States and weights on disk: complete, atomic, checked, and refused where they do not fit."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_run, make_trainer

from etrm.models.decoder import Decoder
from etrm.storage.checkpoint import (
    CheckpointError,
    _HashingWriter,
    clear_states,
    init_decoder,
    load_state,
    load_weights,
    remove_temporaries,
    save_state,
    save_weights,
    state_path,
)
from etrm.training.trainer import Trainer


def state(step: int) -> dict[str, Any]:
    tensor = torch.full((3,), float(step))
    return {"step": step, "tensor": tensor, "none": None, "rows": [{"a": 1.5}]}


def loaded_step(folder: Path, step: int | None = None) -> int | None:
    found = load_state(folder, step)
    return None if found is None else found["step"]


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step")) for path in folder.iterdir())


@pytest.fixture
def trainer() -> Trainer:
    trainer = make_trainer(make_run())
    for _ in range(3):
        trainer.step()
    return trainer


@pytest.fixture
def weights(trainer: Trainer, tmp_path: Path) -> Path:
    save_weights(tmp_path / "model.safetensors", trainer.model, trainer.ema.values)
    return tmp_path / "model.safetensors"


# --- states ---


def test_a_state_comes_back(tmp_path: Path) -> None:
    assert load_state(tmp_path / "s") is None  # no folder
    assert load_state(tmp_path) is None  # no state
    save_state(tmp_path / "s", 7, state(7))
    found = load_state(tmp_path / "s")
    assert found is not None
    assert torch.equal(found.pop("tensor"), torch.full((3,), 7.0))
    assert found == {"step": 7, "none": None, "rows": [{"a": 1.5}]}


def test_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        save_state(tmp_path, step, state(step))
    assert steps_in(tmp_path) == [100, 1000]
    assert loaded_step(tmp_path) == 1000
    assert loaded_step(tmp_path, 100) == 100
    state_path(tmp_path, 1000).unlink()
    assert loaded_step(tmp_path) == 100


def damaged(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "empty": b"",
        "short": data[:20],
        "digest only": data[:32],
        "cut off": data[:-1],
        "half": data[:middle],
        "bit flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "bit of the digest flipped": bytes([data[0] ^ 1]) + data[1:],
        "longer": data + b"\0",
        "zeros": bytes(len(data)),
    }


@pytest.mark.parametrize("how", damaged(b"\0" * 99))
def test_a_damaged_state_is_skipped_with_a_warning_or_an_error(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_state(tmp_path, 1, state(1))
    newest = save_state(tmp_path, 2, state(2))
    newest.write_bytes(damaged(newest.read_bytes())[how])
    with caplog.at_level(logging.WARNING):
        assert loaded_step(tmp_path) == 1
    assert "step0000000002.state is damaged" in caplog.text
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(tmp_path, 2)


class Full:
    """A disk without space."""

    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran-code"),))


def test_code_in_a_state_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest is right, but it cannot be read: it is skipped as a damaged one is."""
    monkeypatch.chdir(tmp_path)
    save_state(tmp_path / "s", 1, state(1))
    save_state(tmp_path / "s", 2, {"evil": Evil()})
    with caplog.at_level(logging.WARNING):
        assert loaded_step(tmp_path / "s") == 1
    assert "step0000000002.state cannot be read" in caplog.text
    assert not (tmp_path / "ran-code").exists()


def test_states_that_are_all_damaged_are_said_and_give_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their steps are higher than those of the run that starts anew."""
    for step in (10, 20):
        save_state(tmp_path, step, state(step)).write_bytes(b"no state, but long enough for one")
    with caplog.at_level(logging.WARNING):
        assert load_state(tmp_path) is None
    assert "starting anew" in caplog.text
    for step in (1, 2, 3):
        save_state(tmp_path, step, state(step))
    assert steps_in(tmp_path) == [2, 3]


def test_a_state_is_not_held_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Only its largest tensor is, at most."""
    big = {"a": torch.ones(1 << 20), "b": torch.ones(1 << 20), "c": torch.ones(1 << 20)}
    tracemalloc.start()
    try:
        save_state(tmp_path, 1, big)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    kept = save_state(tmp_path, 1, state(1))
    (tmp_path / ".step0000000002.state.123.tmp").write_bytes(b"half")
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("at", [0, 100, 5000, None])
def test_a_write_that_fails_leaves_the_states_before(
    at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that takes `at` bytes, or (None) all, but not the name."""
    write, total = _HashingWriter.write, 0

    def limited(self: _HashingWriter, data: Any) -> int:
        nonlocal total
        total += memoryview(data).nbytes
        if at is not None and total > at:
            self._file = cast(BinaryIO, Full())
        return write(self, data)

    save_state(tmp_path, 1, state(1))
    monkeypatch.setattr(_HashingWriter, "write", limited)
    if at is None:
        monkeypatch.setattr("etrm.storage.files.os.replace", Full.write)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"a": torch.zeros(4096)})
    assert steps_in(tmp_path) == [1]


def room_for(monkeypatch: pytest.MonkeyPatch, folder: Path, states: int, number: int) -> None:
    """Make a disk on which so many files fit; one more is the error with this number."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if len([path for path in folder.glob("*.state") if path != target]) >= states:
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr("etrm.storage.files.os.replace", full)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_older_state_gives_way(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(monkeypatch, tmp_path, 2, number)
    for step in range(1, 6):
        save_state(tmp_path, step, state(step))
    assert steps_in(tmp_path) == [4, 5]


def test_the_last_intact_state_never_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged ones do, and later ones, which a resumed run has skipped."""
    for step in (1, 2):
        save_state(tmp_path, step, state(step))
    for step in (3, 9):
        state_path(tmp_path, step).write_bytes(b"damaged")
    room_for(monkeypatch, tmp_path, 1, errno.ENOSPC)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            save_state(tmp_path, 4, state(4))
        assert steps_in(tmp_path) == [2]
    save_state(tmp_path, 2, state(2))  # its own place is free
    assert loaded_step(tmp_path) == 2


def test_nothing_gives_way_to_other_errors_or_to_a_run_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, state(step))
    check = Mock(side_effect=[None, None, RuntimeError("lost")])
    with pytest.MonkeyPatch.context() as patch:
        room_for(patch, tmp_path, 2, errno.EIO)
        with pytest.raises(OSError, match="Input/output error"):
            save_state(tmp_path, 3, state(3))
    room_for(monkeypatch, tmp_path, 2, errno.ENOSPC)
    with pytest.raises(RuntimeError, match="lost"):
        save_state(tmp_path, 3, state(3), check)
    assert steps_in(tmp_path) == [1, 2]


def test_states_are_cleared_with_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    save_state(folder, 1, state(1))
    clear_states(folder)
    assert not folder.exists()
    clear_states(folder)
    save_state(folder, 1, state(1))
    (folder / "notes.txt").write_text("mine")
    clear_states(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


# --- weights ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_weights_come_back_raw_and_averaged(source: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_run(source))
    for _ in range(3):
        trainer.step()
    path = tmp_path / "model.safetensors"
    save_weights(path, trainer.model, trainer.ema.values)
    raw, ema = load_weights(path, "raw"), load_weights(path, "ema")
    model = trainer.model.state_dict()
    assert set(raw) == set(ema) == set(model)
    for name, tensor in model.items():
        assert torch.equal(raw[name], tensor)
        assert torch.equal(ema[name], trainer.ema.values.get(name, tensor))
    assert not torch.equal(raw["decoder.lm_head.weight"], ema["decoder.lm_head.weight"])
    trainer.model.load_state_dict(ema)


def test_equal_weights_give_equal_bytes(trainer: Trainer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_weights(tmp_path / name, trainer.model, trainer.ema.values)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "how", ["missing", "empty", "cut off", "text", "pickle", "folder", "names"]
)
def test_files_that_are_no_weights_are_an_error(
    how: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "other.safetensors"
    content = {"empty": b"", "cut off": weights.read_bytes()[:-9], "text": b"no weights" * 9}
    content["pickle"] = pickle.dumps(Evil())
    if how in content:
        path.write_bytes(content[how])
    elif how == "folder":
        path.mkdir()
    elif how == "names":
        save_file({"something": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: .*expected the weights of a"):
        load_weights(path)
    assert not (tmp_path / "ran-code").exists()


def test_averaged_weights_that_are_not_there_are_not_replaced_by_raw_ones(weights: Path) -> None:
    raw = {n: t for n, t in load_file(weights).items() if n.startswith("raw.")}
    save_file(raw, weights)
    assert load_weights(weights, "raw")
    with pytest.raises(CheckpointError, match=r"none of the names ema\.\*"):
        load_weights(weights, "ema")


# --- first weights of a decoder ---


def fresh(**changes: Any) -> Decoder:
    torch.manual_seed(9)
    return Decoder(make_run(model=changes).model)


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_a_decoder_starts_from_the_weights_asked_for(which: str, weights: Path) -> None:
    decoder = fresh()
    report = init_decoder(decoder, weights, which)
    given = load_weights(weights, which)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, given[f"decoder.{name}"])
    assert report["weights"] == which
    assert report["path"] == str(weights)
    assert sorted(report["loaded"]) == sorted(n for n in given if n.startswith("decoder."))
    assert report["skipped"] == sorted(n for n in given if n.startswith("context."))
    assert report["new"] == []


def test_weights_left_new_are_reported(weights: Path) -> None:
    decoder = fresh(layers=2)
    before = {n: t.clone() for n, t in decoder.state_dict().items()}
    report = init_decoder(decoder, weights, "ema")
    new = {n for n in before if n.startswith("L_level.layers.1.")}
    assert new
    assert set(report["new"]) == {f"decoder.{n}" for n in new}
    for name in new:
        assert torch.equal(decoder.state_dict()[name], before[name])


def test_other_sizes_are_an_error_that_prints_both(weights: Path) -> None:
    decoder = fresh(width=32)
    before = {n: t.clone() for n, t in decoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"weight \[12, 16\] there and \[12, 32\] here"):
        init_decoder(decoder, weights, "ema")
    assert all(torch.equal(t, before[n]) for n, t in decoder.state_dict().items())


def test_a_file_without_a_decoder_is_an_error(weights: Path) -> None:
    save_file({n: t for n, t in load_file(weights).items() if ".context." in n}, weights)
    with pytest.raises(CheckpointError, match="found no decoder weights"):
        init_decoder(fresh(), weights, "ema")
