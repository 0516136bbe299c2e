"""Read checkpoints of official TRM as first weights of a decoder (`etrm.training.export` writes).

An official checkpoint is a `.pt` (or `.safetensors`) file with one state dict, its names under
`model.inner.`, in front of which compilation and data parallelism leave `_orig_mod.` and
`module.`. Averaged weights come as a file of their own, without buffers. Nothing but tensors is
read: a `.pt` file is opened with `weights_only=True` after its checksums were verified.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from etrm.config.study import ModelConfig
from etrm.storage.checkpoint import CheckpointError

PREFIX = re.compile(r"(?:_orig_mod\.|module\.)*(?:model\.)?(?:_orig_mod\.|module\.)*inner\.")
WRITTEN_PREFIX = "_orig_mod.model.inner."
TABLE = "puzzle_emb.weights"
# Averaged weights are a file of parameters alone; these two buffers then stay as they were drawn.
MAY_BE_MISSING = ("H_init", "L_init")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAFETENSORS_DTYPES = ("F32", "BF16", "F16", "F64")
ARCH_KEYS = {
    "hidden_size": "width",
    "num_heads": "heads",
    "L_layers": "layers",
    "expansion": "expansion",
    "H_cycles": "H_cycles",
    "L_cycles": "L_cycles",
    "rope_theta": "rope_theta",
}


def read_official(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an official checkpoint, float32, by their names below `inner.`.

    Raises `CheckpointError` for a file that is damaged, holds anything but tensors, or holds other
    names; no code in it is run.
    """
    tensors = _read_tensors(path)
    named = {}
    for key, value in tensors.items():
        match = PREFIX.match(key)
        if match is None:
            raise CheckpointError(
                f"{path}: found the name {key!r}, expected those of official TRM"
                " (…model.inner.…) or of one of our runs"
            )
        if key[match.end() :] in named:
            raise CheckpointError(f"{path}: found {key[match.end() :]!r} under two prefixes")
        named[key[match.end() :]] = _weight(path, key, value)
    return named


def _weight(path: Path, key: str, value: Tensor) -> Tensor:
    """A tensor of a file as float32; raises `CheckpointError` for one that cannot be weights."""
    found = _unusable(value)
    if found:
        raise _wrong_kind(path, key, found)
    weight = value.float().contiguous()
    if not bool(weight.isfinite().all()):
        raise CheckpointError(
            f"{path}: found {value.dtype} with values that are not finite numbers in {key!r},"
            " expected finite ones in the range of float32: the file is damaged, or the run that"
            " wrote it diverged"
        )
    return weight


def _unusable(value: Tensor) -> str:
    """Why a tensor cannot be weights, in words; empty for a good one."""
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
    path: Path, ours: Mapping[str, Tensor], model: ModelConfig
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return weights for a decoder of the state `ours`, names skipped, and sizes not checked.

    Raises `CheckpointError` where sizes, or (from an `all_config.yaml` beside the file) heads and
    cycles, are not those of `model`, printing both; and where a weight is missing or unknown.
    """
    given = read_official(path)
    sizes = _sizes(given)
    here = {"width": model.width, "layers": model.layers, "inner": _inner(ours)}
    wrong = [f"{k} {sizes[k]} there and {v} here" for k, v in here.items() if sizes[k] != v]
    arch, unchecked = _arch(path)
    for name, key in ARCH_KEYS.items():
        there, value = arch.get(name), getattr(model, key)
        if there is not None and there != value:
            wrong.append(f"{key} {there} there and {value} here")
    if wrong:
        raise CheckpointError(
            f"{path}: found another model: {', '.join(dict.fromkeys(wrong))}; expected the sizes"
            " and cycles of the experiment: change its `model`, or take another checkpoint"
        )
    missing = [n for n in ours if n not in given and n not in MAY_BE_MISSING]
    unknown = [n for n in given if n not in ours and n != TABLE]
    shapes = [
        f"{n} {list(given[n].shape)} there and {list(ours[n].shape)} here"
        for n in ours
        if n in given and given[n].shape != ours[n].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{path}: found {_list('no', missing)}{_list('the unknown', unknown)}"
            f"{_list('other shapes,', shapes)}expected exactly the weights of a TRM decoder"
        )
    skipped = [n for n in given if n not in ours]
    return {n: t for n, t in given.items() if n in ours}, skipped, unchecked


def check_sha256(path: Path, expected: str | None) -> str:
    """Return the SHA-256 of a file; raise `CheckpointError` where another one was expected."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"{path}: found a file that cannot be read ({reason}), expected weights to start from"
        ) from None
    if expected is not None and found != expected.lower():
        raise CheckpointError(
            f"{path}: found SHA-256 {found}, expected {expected}: it is another file, or damaged"
        )
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path}: found a wrong checksum in {damaged}: it is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected a TRM checkpoint") from None
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: found something else than tensors, which is never loaded ({reason});"
            " expected a state dict: save the tensors alone"
        ) from None
    except Exception as error:  # damage makes errors of every kind, of whatever reads the bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: found no readable checkpoint ({reason}), expected a .pt or .safetensors file"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        kinds = type(content).__name__
        if isinstance(content, dict):
            other = [k for k, v in content.items() if not isinstance(v, Tensor)]
            kinds = f"a dictionary with something else than tensors ({', '.join(map(str, other))})"
        raise CheckpointError(f"{path}: found {kinds[:300]}, expected a state dict of tensors")
    return {str(key): value for key, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; kinds that PyTorch may not even have are refused by their names."""
    with safe_open(path, "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        for key, kind in kinds.items():
            if kind not in SAFETENSORS_DTYPES:
                raise _wrong_kind(path, key, kind)
        return {key: file.get_tensor(key) for key in kinds}


def _sizes(given: Mapping[str, Tensor]) -> dict[str, int | None]:
    embedding = given.get("embed_tokens.embedding_weight")
    layers = {int(m[1]) for n in given if (m := re.match(r"L_level\.layers\.(\d+)\.", n))}
    width = embedding.shape[1] if embedding is not None and embedding.dim() == 2 else None
    return {"width": width, "layers": len(layers), "inner": _inner(given)}


def _inner(weights: Mapping[str, Tensor]) -> int | None:
    down = weights.get("L_level.layers.0.mlp.down_proj.weight")
    return int(down.shape[1]) if down is not None and down.dim() == 2 else None


def _arch(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The architecture that official TRM writes beside its checkpoints, and what is not known."""
    config = path.parent / "all_config.yaml"
    if not config.is_file():
        return {}, ["heads", "H_cycles", "L_cycles", "rope_theta"]
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        given = dict(document.get("arch") or {})
    except (yaml.YAMLError, OSError, ValueError, AttributeError, TypeError):
        raise CheckpointError(
            f"{config}: found no YAML with a block `arch`, expected official TRM's config"
        ) from None
    arch = {k: v for k, v in given.items() if isinstance(v, (int, float))}
    return arch, [key for name, key in ARCH_KEYS.items() if name not in arch]


def _list(word: str, names: list[str]) -> str:
    return f"{word} {', '.join(names[:8])}{', …' if len(names) > 8 else ''}; " if names else ""
