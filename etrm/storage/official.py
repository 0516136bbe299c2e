"""Read checkpoints of official TRM as initial weights of a decoder (`etrm.training.export` writes).

An official checkpoint is a `.pt` (or `.safetensors`) file with one state dict, its names under
`model.inner.`, in front of which compilation and data parallelism leave `_orig_mod.` and
`module.`. Averaged weights come as a file of their own, without buffers. Nothing but tensors is
read: a `.pt` file is opened with `weights_only=True` after its checksums were verified.
"""

from __future__ import annotations

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
from etrm.config.text import first_few
from etrm.storage.checkpoint import CheckpointError, shape_mismatches
from etrm.storage.files import file_digest

PREFIX = re.compile(r"(?:_orig_mod\.|module\.)*(?:model\.)?(?:_orig_mod\.|module\.)*inner\.")
WRITTEN_PREFIX = "_orig_mod.model.inner."  # as official TRM names its own
TABLE = "puzzle_emb.weights"  # of puzzle embeddings: belongs to other puzzles
# Averaged weights are a file of parameters alone; these two buffers then stay as they were drawn.
MAY_BE_MISSING = ("H_init", "L_init")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SAFETENSORS_DTYPES = ("F32", "BF16", "F16", "F64")  # the same, as the format names them
ARCH_KEYS = {  # in official TRM's config: in ours
    "hidden_size": "width",
    "num_heads": "heads",
    "L_layers": "layers",
    **{name: name for name in ("expansion", "H_cycles", "L_cycles", "rope_theta")},
}


def read_official(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an official checkpoint, float32, by their names below `inner.`.

    Raises `CheckpointError` for a file that is damaged, holds anything but tensors, or holds other
    names; no code in it is run.
    """
    named: dict[str, Tensor] = {}
    for key, value in _read_tensors(path).items():
        match = PREFIX.match(key)
        if match is None:
            raise CheckpointError(
                f"{path}: found the name {key!r}, expected those of official TRM"
                " (…model.inner.…) or of one of our runs"
            )
        name = key[match.end() :]
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
    return named


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
    path: Path, ours: Mapping[str, Tensor], model: ModelConfig
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return weights for a decoder of the state `ours`, names skipped, and sizes not checked.

    Raises `CheckpointError` where sizes, or (from an `all_config.yaml` beside the file) heads and
    cycles, are not those of `model`, with both; and where a weight is missing or unknown.
    """
    given = read_official(path)
    theirs, here = _sizes(given), _sizes(ours) | {"width": model.width, "layers": model.layers}
    arch, unchecked = _arch(path)
    pairs = [(key, theirs[key], value) for key, value in here.items()]
    pairs += [(key, arch[n], getattr(model, key)) for n, key in ARCH_KEYS.items() if n in arch]
    wrong = [
        f"{key} {there} there and {value} here" for key, there, value in pairs if there != value
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: found another model: {', '.join(dict.fromkeys(wrong))}; expected the sizes"
            " and cycles of the experiment: change its `model`, or take another checkpoint"
        )
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
    return {n: t for n, t in given.items() if n in ours}, skipped, unchecked


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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
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
        found, expected = "no readable checkpoint", "a .pt or .safetensors file"
        if isinstance(error, pickle.UnpicklingError):
            found = "something else than tensors, which is never loaded"
            expected = "a state dict: save the tensors alone"
        raise CheckpointError(f"{path}: found {found} ({reason}), expected {expected}") from None
    found = type(content).__name__
    if isinstance(content, dict):
        other = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        if not other:
            return {str(key): value for key, value in content.items()}
        found = f"a dictionary with something else than tensors ({', '.join(first_few(other, 8))})"
    raise CheckpointError(f"{path}: found {found[:300]}, expected a state dict of tensors")


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
    width, inner = (t.shape[1] if t is not None and t.dim() == 2 else None for t in matrices)
    layers = {m[1] for name in weights if (m := re.match(r"L_level\.layers\.(\d+)\.", name))}
    return {"width": width, "layers": len(layers), "inner": inner}


def _arch(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the sizes that official TRM writes beside its checkpoints, and those not known."""
    config = path.parent / "all_config.yaml"
    if not config.is_file():
        return {}, ["heads", "H_cycles", "L_cycles", "rope_theta"]  # shapes tell the others
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        given = dict(document.get("arch") or {})
    except (yaml.YAMLError, OSError, ValueError, AttributeError, TypeError):
        raise CheckpointError(
            f"{config}: found no YAML with a block `arch`, expected official TRM's config"
        ) from None
    arch = {k: v for k, v in given.items() if isinstance(v, (int, float))}
    return arch, [key for name, key in ARCH_KEYS.items() if name not in arch]
