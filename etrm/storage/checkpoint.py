"""Checkpoints: the whole state of a run that is under way, and the weights of one that is done.

State files live outside the declared outputs of the workflow (which deletes those when a job
starts or fails), in a folder keyed by the digest of everything that determines the run. Each is
written beside the last and renamed into place; the one before is kept until the next is complete.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from etrm.errors import UserError
from etrm.storage.files import atomic_write

log = logging.getLogger(__name__)

STATES = "step*.state"
DIGEST_BYTES = hashlib.sha256().digest_size
CHUNK = 1 << 22  # bytes read at once
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk that more room would mend
RAW, EMA = "raw.", "ema."


class CheckpointError(UserError):
    """A file that is no usable checkpoint: says what was found, and what to do."""


def state_path(folder: Path, step: int) -> Path:
    """Where the state after `step` steps is."""
    return folder / f"step{step:010d}.state"


def save_state(
    folder: Path, step: int, state: Mapping[str, Any], check: Callable[[], None] = lambda: None
) -> Path:
    """Write a training state atomically, its SHA-256 behind it; keep this one and the one before.

    It is written as it is read from the device, without a copy of the whole in memory. On a full
    disk the older of the states before gives way, never the last intact one. Raises `OSError` where
    it cannot be written, and what `check` raises, which is called before it takes its place; the
    newest state before is then as it was.
    """
    check()
    path = state_path(folder, step)
    try:
        _write_state(path, state, check)
    except OSError as error:
        if error.errno not in FULL:
            raise
        check()
        if not _make_room(path):
            raise
        _write_state(path, state, check)
    _drop_all_but(path)
    return path


def load_state(folder: Path, step: int | None = None) -> dict[str, Any] | None:
    """The newest intact state of a folder, or that of `step`, on the CPU; None if there is none.

    A damaged one is passed over with a warning. Raises `CheckpointError` where the state of
    `step` is not usable.
    """
    paths = sorted(folder.glob(STATES), reverse=True)
    if step is not None:
        paths = [state_path(folder, step)]
    for path in paths:
        try:
            return _read_state(path)
        except CheckpointError as error:
            if step is not None:
                raise
            log.warning("%s: going back to the one before", error)
    if paths:
        log.warning("%s: found no state that can be used: starting anew at step 0", folder)
    return None


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote into `folder` have left there."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def clear_states(folder: Path) -> None:
    """Remove the states of a finished run, and their folder where nothing else is in it."""
    for path in folder.glob("*.state"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


class _HashingWriter:
    """A file as `torch.save` needs it, which takes the digest of what passes.

    The first error is kept, and what comes after it goes nowhere: an exception that passed through
    `torch.save` would come out as another one, that does not say that the disk is full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self._file.write(data)
                self.sha256.update(data)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """`torch.save` asks for it; the file is flushed when it is complete."""


def _write_state(path: Path, state: Mapping[str, Any], check: Callable[[], None]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        hashing = _HashingWriter(file)
        torch.save(dict(state), cast(BinaryIO, hashing))
        if hashing.error is not None:
            raise hashing.error
        file.write(hashing.sha256.digest())
        check()


def _make_room(path: Path) -> bool:
    """Remove all states but the newest intact one up to `path`; returns whether there were any.

    Later ones are those that were passed over when the run went on from an earlier one.
    """
    states = sorted(path.parent.glob(STATES), reverse=True)
    kept = next((state for state in states if state <= path and _is_intact(state)), None)
    others = [] if kept is None else [state for state in states if state != kept]
    for state in others:
        log.info("%s: the disk is full, this state gives way to that of a later step", state)
        state.unlink(missing_ok=True)
    return bool(others)


def _is_intact(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _digest_matches(file)
    except OSError:
        return False


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if not _digest_matches(file):
                raise CheckpointError(f"{path} is damaged (its digest does not match)")
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # the file is good, and its steps must not be lost
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    return state


def _digest_matches(file: BinaryIO) -> bool:
    left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
    sha256 = hashlib.sha256()
    while left > 0:
        data = file.read(min(CHUNK, left))
        if not data:
            return False
        sha256.update(data)
        left -= len(data)
    return left == 0 and file.read() == sha256.digest()


def _drop_all_but(path: Path) -> None:
    """Keep a new state and the one before it.

    Later ones are those that were passed over when the run went on from an earlier one.
    """
    states = sorted(path.parent.glob(STATES))
    kept = [path, *[state for state in states if state < path][-1:]]
    for state in states:
        if state not in kept:
            state.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, ema: Mapping[str, Tensor]) -> None:
    """Raw parameters and buffers (`raw.*`) and averaged parameters (`ema.*`), as safetensors.

    Raises `OSError` where they cannot be written.
    """
    tensors = {RAW + n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    tensors |= {EMA + n: t.detach().cpu().contiguous() for n, t in ema.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors_bytes(tensors))


def load_weights(path: Path, which: str = "ema", buffers: bool = True) -> dict[str, Tensor]:
    """Weights of one of our runs by their names in the model; `ema` takes buffers from raw."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            wanted = {n.removeprefix(RAW): n for n in names if n.startswith(RAW)}
            averaged = {n.removeprefix(EMA): n for n in names if n.startswith(EMA)}
            if which == "ema":
                wanted = {**(wanted if buffers else {}), **averaged} if averaged else {}
            weights = {name: file.get_tensor(key) for name, key in wanted.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected the weights of a run") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: found no readable safetensors file ({error}), expected the weights of a run;"
            " run its stage again"
        ) from None
    if not weights:
        raise CheckpointError(
            f"{path}: found none of the names {which}.*, expected the weights of a run"
        )
    return weights


def init_decoder(decoder: nn.Module, path: Path, which: str) -> dict[str, Any]:
    """Start a decoder from a run's decoder; returns what was loaded, skipped and left new.

    Raises `CheckpointError` where sizes differ, printing both.
    """
    weights = load_weights(path, which)
    ours = decoder.state_dict()
    given = {n.removeprefix("decoder."): t for n, t in weights.items() if n.startswith("decoder.")}
    wrong = [
        f"{n} {list(given[n].shape)} there and {list(ours[n].shape)} here"
        for n in ours
        if n in given and given[n].shape != ours[n].shape
    ]
    if wrong:
        raise CheckpointError(f"{path}: found other sizes: {'; '.join(wrong)}; use the same model")
    loaded = [n for n in ours if n in given]
    if not loaded:
        raise CheckpointError(f"{path}: found no decoder weights, expected those of a run")
    decoder.load_state_dict({n: given[n] for n in loaded}, strict=False)
    return {
        "path": str(path),
        "weights": which,
        "loaded": [f"decoder.{n}" for n in loaded],
        "skipped": sorted(set(weights) - {f"decoder.{n}" for n in loaded}),
        "new": [f"decoder.{n}" for n in ours if n not in given],
    }
