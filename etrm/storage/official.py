"""Read checkpoints of official TRM as initial weights of a decoder (`etrm.training.export` writes).

An official checkpoint is a file `step_…`, `.pt` or `.safetensors` with one state dict, its names
under `model.inner.`, in front of which compilation and data parallelism leave `_orig_mod.` and
`module.`. Averaged weights come as a file of their own, without buffers. A `.ckpt` of Lightning has
the state dict under `state_dict`, beside hyperparameters and callbacks; its names are official ones
behind any prefix, or those of nano-trm (github.com/olivkoch/nano-trm). Nothing but tensors and
plain values is read: a file is opened with `weights_only=True` after its checksums were verified.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from etrm.config.text import first_few
from etrm.storage.checkpoint import EMA, RAW, CheckpointError, shape_mismatches
from etrm.storage.files import file_digest
from etrm.storage.trained_with import nano_settings, official_settings

PREFIX = re.compile(r"(?:\w+\.)*?inner\.")
NANO_PREFIX = re.compile(r"(?:(?:_orig_mod|module|model)\.)*")
NANO_NAMES = (  # of nano-trm: official ones
    (re.compile(r"input_embedding\."), "embed_tokens."),
    (re.compile(r"lenet\."), "L_level."),
    (re.compile(r"z_([HL])_init$"), r"\1_init"),
)
WRITTEN_PREFIX = "_orig_mod.model.inner."  # as official TRM names its own
TABLE = "puzzle_emb.weights"  # of puzzle embeddings: belongs to other puzzles
# Averaged weights are a file of parameters alone; these two buffers then stay as they were drawn.
MAY_BE_MISSING = ("H_init", "L_init")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAFETENSORS_DTYPES = ("F32", "BF16", "F16", "F64")  # the same, as the format names them


@dataclass(frozen=True)
class Official:
    """A checkpoint of another code for TRM."""

    tensors: dict[str, Tensor]  # float32, by official TRM's names below `inner.`
    settings: dict[str, Any]  # that it was trained with, as far as they are known
    averaged: bool  # whether the tensors are averages that were stored beside the weights


def read_official(path: Path, which: str = "raw") -> Official:
    """Read an official checkpoint, or one of nano-trm; `ema` takes averages where it has both.

    Raises `CheckpointError` for a file that is damaged, holds anything but tensors, or holds other
    names; no code in it is run.
    """
    content = _read_content(path)
    tensors, averages = _state_dict(path, content)
    averaged = which == "ema" and bool(averages)
    tensors |= averages if averaged else {}
    nano = any(re.search(r"(?:^|\.)lenet\.", key) for key in tensors)
    if nano:
        settings = nano_settings(dict(content.get("hyper_parameters") or {}))
    else:
        settings = official_settings(path)
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _official_name(path, key, nano)
        if name in named:
            raise CheckpointError(f"{path}: found {name!r} under two prefixes")
        if unusable := _unusable(value):
            raise _wrong_kind(path, key, unusable)
        named[name] = value.float().contiguous()
        if not bool(named[name].isfinite().all()):  # float64 may exceed the range of float32
            raise CheckpointError(
                f"{path}: found {value.dtype} with values that are not finite numbers in {key!r},"
                " expected finite ones in the range of float32: the file is damaged, or the run"
                " that wrote it diverged"
            )
    return Official(named, settings, averaged)


def _official_name(path: Path, key: str, nano: bool) -> str:
    """Return official TRM's name of a tensor."""
    if nano:
        name = NANO_PREFIX.sub("", key, count=1)
        for pattern, official in NANO_NAMES:
            name = pattern.sub(official, name, count=1) if pattern.match(name) else name
        return name
    if match := PREFIX.match(key):
        return key[match.end() :]
    if key.startswith((RAW, EMA)):
        raise CheckpointError(
            f"{path}: found the weights of one of our runs, expected its run.json beside them"
        )
    raise CheckpointError(
        f"{path}: found the name {key!r}, expected those of official TRM (…model.inner.…), of"
        " nano-trm (…lenet.…) or of one of our runs"
    )


def _unusable(value: Tensor) -> str:
    """Return the reason why a tensor cannot be weights, empty for a good one."""
    if value.is_meta:
        return "a tensor on the meta device, which has no values,"
    if value.is_nested or value.layout != torch.strided:
        return f"a {'nested' if value.is_nested else 'sparse'} tensor ({value.layout})"
    if value.dtype not in DTYPES:
        return str(value.dtype)
    if value.nbytes > value.untyped_storage().nbytes():  # it may be larger than any memory
        return f"an expanded tensor of shape {list(value.shape)}"
    return ""


def _wrong_kind(path: Path, key: str, found: str) -> CheckpointError:
    *names, last = (str(dtype).removeprefix("torch.") for dtype in DTYPES)
    return CheckpointError(
        f"{path}: found {found} in {key!r}, expected a dense tensor of {', '.join(names)} or"
        f" {last}: convert it, and save the file again"
    )


def decoder_weights(
    path: Path, given: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights `given` by a file for a decoder of the state `ours`, and the names skipped.

    Raises `CheckpointError` where a weight is missing, unknown or of another shape.
    """
    given = dict(given)
    for name in ("q_head.weight", "q_head.bias"):
        if name in given and name in ours and len(given[name]) == 1:  # nano-trm halts by q-halt
            given[name] = torch.cat([given[name], ours[name][1:].to(given[name])])  # alone
    found = {
        "no": [n for n in ours if n not in given and n not in MAY_BE_MISSING],
        "the unknown": [n for n in given if n not in ours and n != TABLE],
        "other shapes,": shape_mismatches(given, ours),
    }
    if any(found.values()):
        listed = "; ".join(f"{k} {', '.join(first_few(v, 8))}" for k, v in found.items() if v)
        raise CheckpointError(
            f"{path}: found {listed}; expected exactly the weights of a TRM decoder"
        )
    skipped = [n for n in given if n not in ours]
    return {n: t for n, t in given.items() if n in ours}, skipped


def size_differences(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Return each size that shapes tell and that is not ours, with both."""
    theirs, here = _sizes(given), _sizes(ours)
    return [f"{k} {theirs[k]} there and {v} here" for k, v in here.items() if theirs[k] != v]


def check_sha256(path: Path, expected: str | None) -> str:
    """Return the SHA-256 of a file; raise `CheckpointError` where another one was expected."""
    try:
        found = file_digest(path)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: found a file that cannot be read ({reason}), expected initial weights"
        ) from None
    if expected is not None and found != expected.lower():
        raise CheckpointError(
            f"{path}: found SHA-256 {found}, expected {expected}: it is another file, or damaged"
        )
    return found


def _read_content(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return dict(_read_safetensors(path))
        if zipfile.is_zipfile(path):  # older versions of PyTorch wrote a bare pickle
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path}: found a wrong checksum in {damaged}: it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected a TRM checkpoint") from None
    except CheckpointError:
        raise
    except Exception as error:  # damage makes errors of every kind, of whatever reads the bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        found, expected = "no readable checkpoint", "a file of PyTorch, or .safetensors"
        if isinstance(error, pickle.UnpicklingError):
            found = "something else than tensors, which is never loaded"
            expected = "a state dict: save the tensors alone"
        raise CheckpointError(f"{path}: found {found} ({reason}), expected {expected}") from None
    if not isinstance(content, dict):
        found = type(content).__name__[:300]
        raise CheckpointError(f"{path}: found {found}, expected a state dict of tensors")
    return content


def _state_dict(
    path: Path, content: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a file's content, and the averages of a callback of Lightning."""
    averages: dict[str, Tensor] = {}
    if isinstance(content.get("state_dict"), Mapping):  # Lightning's
        for state in dict(content.get("callbacks") or {}).values():
            if isinstance(state, Mapping) and isinstance(state.get("shadow"), Mapping):
                averages = _only_tensors(path, state["shadow"])  # nano-trm's EMACallback
        content = content["state_dict"]
    return _only_tensors(path, content), averages


def _only_tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{path}: found a dictionary with something else than tensors"
            f" ({', '.join(first_few(other, 8))[:300]}), expected a state dict of tensors"
        )
    return {str(key): value for key, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; dtypes that PyTorch may not even have are refused by name."""
    with safe_open(path, "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        for key, kind in kinds.items():
            if kind not in SAFETENSORS_DTYPES:
                raise _wrong_kind(path, key, kind)
        return {key: file.get_tensor(key) for key in kinds}


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Return the sizes that shapes of a decoder's weights tell; None where one is not there."""
    names = ("embed_tokens.embedding_weight", "L_level.layers.0.mlp.down_proj.weight")
    matrices = [weights.get(name) for name in names]  # [V, D], [D, inner]
    shapes = [t.shape if t is not None and t.dim() == 2 else (None, None) for t in matrices]
    (tokens, width), (_, inner) = shapes
    layers = {m[1] for name in weights if (m := re.match(r"L_level\.layers\.(\d+)\.", name))}
    return {"vocabulary": tokens, "width": width, "layers": len(layers), "inner": inner}
