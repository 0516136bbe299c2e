"""Checkpoints: the whole state of a run that is under way, and the weights of one that is done.

State files live outside the declared outputs of the workflow (which deletes those when a job
starts or fails), in a folder keyed by the digest of everything that determines the run. Each is
written beside the last and renamed into place; the one before is kept until the next is complete.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from etrm.data.files import atomic_write

log = logging.getLogger(__name__)

KEPT_STATES = 2
RAW, EMA = "raw.", "ema."


class CheckpointError(ValueError):
    """A file that is no usable checkpoint: says what was found, and what to do."""


def save_state(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write a training state atomically, its SHA-256 in front; keep this one and the one before."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    path = folder / f"step{step:010d}.state"
    with atomic_write(path) as temporary:
        temporary.write_bytes(hashlib.sha256(payload).digest() + payload)
    for old in sorted(folder.glob("step*.state"))[:-KEPT_STATES]:
        old.unlink()
    return path


def load_state(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest intact state of a folder; a damaged one is passed over with a warning."""
    for path in sorted(folder.glob("step*.state"), reverse=True):
        data = path.read_bytes()
        payload = data[32:]
        if len(data) < 32 or hashlib.sha256(payload).digest() != data[:32]:
            log.warning("%s is damaged (its digest does not match): going back one", path)
            continue
        state: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location=device, weights_only=True
        )
        return state
    return None


def clear_states(folder: Path) -> None:
    """Remove the states of a finished run."""
    for path in folder.glob("*.state"):
        path.unlink()
    if folder.is_dir() and not os.listdir(folder):
        folder.rmdir()


def save_weights(path: Path, model: nn.Module, ema: Mapping[str, Tensor]) -> None:
    """Raw parameters and buffers (`raw.*`) and averaged parameters (`ema.*`), as safetensors."""
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
