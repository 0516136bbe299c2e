"""The settings that checkpoints of other codes were trained with, by our names.

Official TRM writes them in `all_config.yaml` beside its checkpoints (`pretrain.py`,
`save_code_and_config`), Lightning in the checkpoint. `etrm.config.parents` compares them with ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from etrm.config.parents import DECODER_SIZES, FIXED
from etrm.storage.checkpoint import CheckpointError

CONFIG = "all_config.yaml"
OFFICIAL = {  # in official TRM's block `arch`: in ours
    **{name: name for name in ("expansion", "H_cycles", "L_cycles", "rope_theta")},
    **{name: name for name in ("rms_norm_eps", "no_ACT_continue", "mlp_t")},
    **{"hidden_size": "width", "num_heads": "heads", "L_layers": "layers"},
    **{"pos_encodings": "positions", "halt_max_steps": "max_steps", "forward_dtype": "dtype"},
}
NANO = {  # in the hyperparameters of nano-trm's `TRMModule`: in ours
    **{name: name for name in ("H_cycles", "L_cycles", "rope_theta", "seq_len", "pad_value")},
    **{"hidden_size": "width", "num_heads": "heads", "num_layers": "layers"},
    **{"ffn_expansion": "expansion", "use_mlp_t": "mlp_t", "pos_emb_type": "positions"},
    **{"N_supervision": "max_steps", "forward_dtype": "dtype"},
}
# Defaults of the official config class, which the file leaves out where the command did.
DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "no_ACT_continue": True, "mlp_t": False}
DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
# The same computation goes on, whatever they are: an encoder chooses its number of tokens, a run
# its number of ACT steps and its arithmetic. A difference is logged.
NOTED = ("context_tokens", "max_steps", "dtype")
# Shapes and names of tensors tell these; official TRM has one vocabulary, in its data set.
TOLD = ("width", "layers", "expansion", "mlp_t", "seq_len", "pad_value")
KNOWABLE = tuple(name for name in (*DECODER_SIZES, *FIXED, *NOTED) if name not in TOLD)


def official_settings(checkpoint: Path) -> dict[str, Any]:
    """Return the settings in the `all_config.yaml` beside a checkpoint; none without this file.

    Raises `CheckpointError` for one that is no config of official TRM.
    """
    config = checkpoint.parent / CONFIG
    if not config.is_file():
        return {}
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        arch = {**DEFAULTS, **dict(document.get("arch") or {})}
        loss = dict(arch.get("loss") or {})
    except (yaml.YAMLError, OSError, ValueError, AttributeError, TypeError):
        raise CheckpointError(
            f"{config}: found no YAML with a block `arch`, expected official TRM's config"
        ) from None
    found = _translate(arch, OFFICIAL)
    found["context_tokens"] = _context_tokens(arch, arch.get("puzzle_emb_ndim"))
    found["loss_type"] = loss.get("loss_type")
    if isinstance(name := arch.get("name"), str):  # recursive_reasoning.trm@TinyRecursive…
        found["architecture"] = name.partition("@")[0].rpartition(".")[2]
    return _known(found)


def nano_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the hyperparameters that Lightning stores of a nano-trm."""
    found = _translate(given, NANO)
    if found.get("positions") == "1d":
        found["positions"] = "rope"
    elif found.get("positions") == "2d":  # other frequencies than `rope_2d`, other context tokens
        found["positions"] = "2d of nano-trm"
    found["context_tokens"] = _context_tokens(given, given.get("puzzle_emb_dim"))
    return _known({**found, "no_ACT_continue": True, "loss_type": "stablemax_cross_entropy"})


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the configuration of one of our runs."""
    halting, train = config.get("halting", {}), config.get("train", {})
    steps, dtype = halting.get("max_steps"), train.get("dtype")
    return _known({**config["model"], "max_steps": steps, "dtype": dtype})


def _translate(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    dtype = str(found.get("dtype", "")).removeprefix("torch.")
    return {**found, "dtype": DTYPES.get(dtype, dtype or None)}


def _context_tokens(given: Mapping[str, Any], width: Any) -> int | None:
    """Return `puzzle_emb_len`, or where that is 0 as many as a puzzle embedding fills."""
    tokens, hidden = given.get("puzzle_emb_len"), given.get("hidden_size")
    if tokens == 0 and isinstance(width, int) and isinstance(hidden, int) and hidden > 0:
        return -(-width // hidden)
    return tokens if isinstance(tokens, int) else None


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those that have a value to compare."""
    return {k: v for k, v in settings.items() if isinstance(v, (int, float, str))}
