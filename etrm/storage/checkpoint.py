"""Checkpoints: states from which a run resumes, and the weights of a finished one.

State files live outside the declared outputs of the workflow (which deletes those when a job
starts or fails), in a folder keyed by the digest of everything that determines the run. Each is
written to a temporary file and renamed; the state before is removed only after that.
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

STATES = "step*.state"  # ten digits: the order of the names is that of the steps
DIGEST_BYTES = hashlib.sha256().digest_size  # at the end of a state file
CHUNK = 1 << 22  # bytes read at once
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk that more room would mend
RAW, EMA = "raw.", "ema."  # prefixes of names in a file of weights


class CheckpointError(UserError):
    """A file that is no usable checkpoint; the message says why, and the remedy."""


def state_path(folder: Path, step: int) -> Path:
    """Return the path of the state after `step` steps."""
    return folder / f"step{step:010d}.state"


def save_state(
    folder: Path, step: int, state: Mapping[str, Any], check: Callable[[], None] = lambda: None
) -> Path:
    """Write a training state atomically, followed by its SHA-256, and drop all but the one before.

    Tensors are written as they are read from the device, with no copy of the whole state in memory.
    On a full disk the older of the earlier states is removed, never the last intact one. Raises
    `OSError` where it cannot be written, and whatever `check` raises, which is called before the
    file is renamed; the newest earlier state is then as before.
    """
    check()
    path = state_path(folder, step)
    try:
        _write_state(path, state, check)
    except OSError as error:
        if error.errno not in FULL:
            raise
        check()  # a superseded run removes nothing
        if not _make_room(path):
            raise
        _write_state(path, state, check)
    _drop_all_but(path)
    return path


def load_state(folder: Path, step: int | None = None) -> dict[str, Any] | None:
    """Return the newest intact state of a folder, or that of `step`, on the CPU; None without one.

    Damaged states are skipped with a warning. Raises `CheckpointError` where that of `step` is not
    usable.
    """
    if step is not None:
        return _read_state(state_path(folder, step))
    paths = sorted(folder.glob(STATES), reverse=True)
    for path in paths:
        try:
            return _read_state(path)
        except CheckpointError as error:
            log.warning("%s: trying the state before", error)
    if paths:
        log.warning("%s: found no usable state: starting anew at step 0", folder)
    return None


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files in `folder`, left by processes that were killed as they wrote."""
    for path in filter(Path.is_file, folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def clear_states(folder: Path) -> None:
    """Remove the states of a finished run, and their folder where it is empty then."""
    for path in folder.glob("*.state"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # missing, or not empty
        folder.rmdir()


class _HashingWriter:
    """A file for `torch.save` that digests the bytes written to it.

    The first error is stored, and later bytes are discarded: an exception raised within
    `torch.save` would come out as another one, which does not say that the disk is full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
                self.sha256.update(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: `torch.save` needs the method, and `atomic_write` flushes the file."""


def _write_state(path: Path, state: Mapping[str, Any], check: Callable[[], None]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        hashing = _HashingWriter(file)
        torch.save(dict(state), cast(BinaryIO, hashing))
        if hashing.error is not None:
            raise hashing.error
        file.write(hashing.sha256.digest())
        check()


def _make_room(path: Path) -> bool:
    """Remove all states but the newest intact one up to `path`; return whether there were any.

    Later ones were skipped when the run resumed from an earlier one.
    """
    states = sorted(path.parent.glob(STATES), reverse=True)
    newest = next((state for state in states if state <= path and _is_intact(state)), None)
    others = [] if newest is None else [state for state in states if state != newest]
    for state in others:
        log.info("%s: the disk is full, this state gives way to that of a later step", state)
        state.unlink(missing_ok=True)
    return bool(others)


def _is_intact(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return _digest_matches(file)
    return False


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if _digest_matches(file):
                file.seek(0)  # of the same open file: another process may replace it
                return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # the file is good, and its steps must not be lost
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    raise CheckpointError(f"{path} is damaged (its digest does not match)")


def _digest_matches(file: BinaryIO) -> bool:
    """Return whether a file ends with the SHA-256 of the bytes before."""
    sha256, size = hashlib.sha256(), os.fstat(file.fileno()).st_size - DIGEST_BYTES
    for start in range(0, size, CHUNK):  # none for a file that is shorter than a digest
        sha256.update(file.read(min(CHUNK, size - start)))
    return file.read() == sha256.digest()


def _drop_all_but(path: Path) -> None:
    """Remove all states but a new one and the one before, also later ones (see `_make_room`)."""
    states = sorted(path.parent.glob(STATES))
    # Steps are compared by name: a clock may be wrong.
    wanted = [path, *[state for state in states if state < path][-1:]]
    for state in states:
        if state not in wanted:
            state.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, ema: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers (`raw.*`) and averaged parameters (`ema.*`), as safetensors.

    Raises `OSError` where they cannot be written.
    """
    named = {RAW + n: t for n, t in model.state_dict().items()}
    named |= {EMA + n: t for n, t in ema.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors_bytes(tensors))


def load_weights(path: Path, which: str = "ema", buffers: bool = True) -> dict[str, Tensor]:
    """Return the weights of a run by their names in the model, `raw` or `ema`.

    `ema` takes buffers, which are not averaged, from raw. Raises `CheckpointError` where the file
    cannot be read or has no such weights.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            wanted = {n.removeprefix(RAW): n for n in names if n.startswith(RAW)}
            averaged = {n.removeprefix(EMA): n for n in names if n.startswith(EMA)}
            if which == "ema":  # without averages, raw weights are no replacement
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


def shape_mismatches(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Describe each tensor of `ours` that is `given` in another shape, with both shapes."""
    return [
        f"{name} {list(given[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in ours.items()
        if name in given and given[name].shape != tensor.shape
    ]


def init_decoder(decoder: nn.Module, path: Path, which: str) -> dict[str, Any]:
    """Load a run's decoder weights into `decoder`; return the names loaded, skipped and left new.

    Raises `CheckpointError` where shapes differ, with both.
    """
    weights = load_weights(path, which)
    ours = decoder.state_dict()
    given = {n.removeprefix("decoder."): t for n, t in weights.items() if n.startswith("decoder.")}
    wrong = shape_mismatches(given, ours)
    if wrong:
        raise CheckpointError(f"{path}: found other sizes: {'; '.join(wrong)}; use the same model")
    loaded = [n for n in ours if n in given]
    if not loaded:  # weights of something else
        raise CheckpointError(f"{path}: found no decoder weights, expected those of a run")
    decoder.load_state_dict({n: given[n] for n in loaded}, strict=False)
    return {  # stored in `run.json`
        "path": str(path),
        "weights": which,
        "loaded": [f"decoder.{n}" for n in loaded],
        "skipped": sorted(set(weights) - {f"decoder.{n}" for n in loaded}),
        "new": [f"decoder.{n}" for n in ours if n not in given],
    }
