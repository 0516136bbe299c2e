"""Export of weights: the decoder in the format of official TRM, the encoder beside it.

Official TRM has no place for an encoder's weights. They go into a second file beside the first, so
that the two together hold everything that the run has learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from etrm.storage.checkpoint import CheckpointError, load_weights
from etrm.storage.files import atomic_write
from etrm.storage.first_weights import ENCODER, WEIGHTS
from etrm.storage.official import TABLE, WRITTEN_PREFIX
from etrm.training.initial_weights import read_parent

SUFFIXES = (".pt", ".safetensors")


def export(run_folder: Path, out: Path, which: str = "raw") -> dict[Path, list[str]]:
    """Write a run's weights as `.pt` or `.safetensors`; return each file with its tensors' names.

    `out` is a checkpoint of official TRM: the decoder, and TRM's table of embeddings where the run
    has one. `<stem>.encoder<suffix>` beside it holds the tensors of another context source under
    their names in our model (`context.…`); as safetensors, it names the `source` in its metadata.
    `raw` weights include buffers; `ema` are the averaged parameters alone, as official EMA files
    are. Reading a file back gives the same bits.

    Raises `CheckpointError` for another suffix, and for weights that are missing or differ from
    the digest in `run.json`.
    """
    path = run_folder / WEIGHTS
    if out.suffix not in SUFFIXES:
        raise CheckpointError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected the weights of a run")
    run = read_parent(run_folder, None)
    assert run.record is not None, f"{run_folder}: read as a checkpoint of unknown origin"
    source = run.record["config"]["context"]["source"]
    weights = load_weights(run.weights, which, buffers=which == "raw")
    official, encoder = {}, {}
    for name, tensor in weights.items():
        if name.startswith("decoder."):
            official[WRITTEN_PREFIX + name.removeprefix("decoder.")] = tensor
        elif source == "embedding":
            official[WRITTEN_PREFIX + TABLE] = tensor  # TRM's own context source
        else:
            encoder[name] = tensor
    files = {out: sorted(official)}
    if encoder:
        beside = out.with_name(out.stem + ENCODER + out.suffix)
        _write(beside, encoder, {"source": source, "weights": which})
        files[beside] = sorted(encoder)
    _write(out, official)  # last: where it is, the two are complete
    return files


def _write(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Write tensors; `about` is metadata of safetensors, for which `.pt` has no place."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        if path.suffix == ".pt":
            torch.save(tensors, temporary)
        else:
            temporary.write_bytes(safetensors_bytes(tensors, about))
