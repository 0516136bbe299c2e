"""The check of `decoder.init`: the pretraining whose weights an experiment starts from."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from etrm.config.schema import ConfigProblem, unknown_key
from etrm.config.study import ExperimentConfig, ModelConfig
from etrm.config.sweep import Expansion

INIT = "decoder.init"
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")  # of checkpoint files; others need a /
# Settings that a decoder must share with the one whose weights it starts from: all but the number
# of context tokens, which no weight depends on and which is an encoder's to choose.
DECODER_SIZES = (
    *("width", "heads", "layers", "expansion", "H_cycles", "L_cycles", "positions", "rope_theta"),
    "loss_type",
)
# Options of other codes for TRM that we do not have, under their names of them: our value.
FIXED = {
    "architecture": "trm",  # of official TRM's others, `trm_singlez` has tensors of the same names
    "mlp_t": False,
    "rms_norm_eps": 1e-5,
    "no_ACT_continue": True,  # a sample halts by its q-halt logit alone
    "seq_len": 900,
    "pad_value": 0,
}


def names_file(init: str, experiments: Collection[str]) -> bool:
    """Return whether `decoder.init` names a file or folder, rather than one of `experiments`.

    The name of an experiment stays one, whatever files there are; a typing error in it is a path
    only where there is something of that name.
    """
    if init in experiments:
        return False
    looks_like_one = "/" in init or init[:1] == "~" or Path(init).suffix in SUFFIXES
    return looks_like_one or os.path.exists(init)  # no error for a name that no file can have


def decoder_differences(theirs: Mapping[str, Any], model: ModelConfig) -> dict[str, str]:
    """Return the settings that change the computation and are not those of `model`, with both.

    `theirs` are the settings that weights were trained with, as far as they are known.
    """
    ours = {**{name: getattr(model, name) for name in DECODER_SIZES}, **FIXED}
    return {
        name: f"{name} {str(theirs[name])[:60]} there and {here} here"
        for name, here in ours.items()
        if name in theirs and theirs[name] != here
    }


def unknown_parent(
    merged: Mapping[str, Any], known: Collection[str], expansion: Expansion
) -> list[ConfigProblem]:
    """Return the problem of an experiment that cannot be read and names a parent not `known`."""
    decoder = merged.get("decoder")
    init = decoder.get("init") if isinstance(decoder, Mapping) else None
    if not isinstance(init, str) or not init or init in known or names_file(init, known):
        return []
    return [] if expansion.may_have(init) else [unknown_experiment(INIT, init, known, expansion)]


def parent_problems(
    name: str,
    experiments: Mapping[str, ExperimentConfig],
    expansion: Expansion,
    unread: Collection[str],
) -> Iterator[ConfigProblem]:
    """Yield the problems of the parent of a valid experiment.

    It must be a pretraining with a decoder of the same sizes and cycles, or one of the experiments
    that are `unread`. Whether its weights have seen held-out tasks is checked where the tasks are
    known: before training.
    """
    config = experiments[name]
    init = config.decoder.init
    if init is None or init in unread or expansion.may_have(init):
        return
    if names_file(init, {*experiments, *expansion.sweeps}):
        return
    known = [other for other, config in experiments.items() if config.is_trm]
    if init not in known:
        yield unknown_experiment(INIT, init, known, expansion, "pretraining experiment")
        return
    parent = experiments[init]
    differences = decoder_differences(vars(parent.model), config.model).items()
    differ = [text for name, text in differences if name not in config.decoder.init_differs]
    if differ:
        expected = f"the decoder sizes of {init!r}, whose weights it starts from"
        yield ConfigProblem(INIT, ", ".join(differ), expected)
    absent = [str(seed) for seed in config.seeds if seed not in parent.seeds]  # of init_seed: same
    if config.decoder.init_seed == "same" and absent:
        text = f"same, but {init!r} has no seed {', '.join(absent)}"
        yield ConfigProblem("decoder.init_seed", text, "first, or these among its seeds")
    if _starts_from_itself(name, experiments):
        expected = "null, or a pretraining that does not start from this one"
        yield ConfigProblem(INIT, f"a circle back to {name!r}", expected)


def unknown_experiment(
    path: str, name: str, known: Collection[str], expansion: Expansion, noun: str = "experiment"
) -> ConfigProblem:
    """Return the problem of a name, in the key at `path`, that is none of the `known` ones."""
    points = [point for point in expansion.sweeps.get(name, ()) if point in known]
    if points:
        expected = f"one of its points: {', '.join(points)}"
        return ConfigProblem(path, f"the sweep {name!r}", expected)
    return unknown_key(path, name, known, noun=noun)


def _starts_from_itself(name: str, experiments: Mapping[str, ExperimentConfig]) -> bool:
    at = experiments[name].decoder.init
    for _ in experiments:  # a circle that leaves out `name` would never end
        if at is None or at == name or at not in experiments:
            break
        at = experiments[at].decoder.init
    return at == name
