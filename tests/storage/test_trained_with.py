"""Settings that a checkpoint was trained with, and checkpoints of Lightning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import MODEL, make_run
from torch import Tensor, nn

from etrm.config.parents import DECODER_SIZES, FIXED
from etrm.config.study import MAY_DIFFER
from etrm.models.build import build_model
from etrm.storage.checkpoint import CheckpointError
from etrm.storage.trained_with import NOTED
from etrm.training.initial_weights import Parent, load_initial_weights, read_parent

# As `config/arch/trm.yaml` of official TRM, at the size of these tests.
ARCH: dict[str, Any] = yaml.safe_load("""
name: recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1
loss: {name: losses@ACTLossHead, loss_type: stablemax_cross_entropy}
halt_exploration_prob: 0.1
halt_max_steps: 3
H_cycles: 2
L_cycles: 1
H_layers: 0
L_layers: 1
hidden_size: 16
num_heads: 2
expansion: 4
puzzle_emb_ndim: 16
pos_encodings: rope
forward_dtype: float32
mlp_t: false
puzzle_emb_len: 2
no_ACT_continue: true
""")
# As `TRMModule.save_hyperparameters` of nano-trm.
HYPER: dict[str, Any] = {
    **{"hidden_size": 16, "num_layers": 1, "num_heads": 2, "H_cycles": 2, "L_cycles": 1},
    **{"N_supervision": 3, "ffn_expansion": 4, "puzzle_emb_dim": 16, "puzzle_emb_len": 2},
    **{"rope_theta": 10000, "pos_emb_type": "1d", "use_mlp_t": False, "vocab_size": 12},
    **{"pad_value": 0, "seq_len": 900, "output_dir": None, "forward_dtype": torch.float32},
}


def weights() -> dict[str, Tensor]:
    state = build_model(make_run(seed=3), 1).decoder.state_dict()
    state["q_head.weight"] = torch.full_like(state["q_head.weight"], 0.25)
    return state


def official(folder: Path, **arch: Any) -> Path:
    """Lay out a checkpoint folder as official TRM does."""
    path = folder / "step_7"
    torch.save({f"_orig_mod.model.inner.{n}": t for n, t in weights().items()}, path)
    (folder / "all_config.yaml").write_text(yaml.safe_dump({"arch": {**ARCH, **arch}, "lr": 1e-4}))
    return path


def nano(folder: Path, prefix: str = "", ema: bool = False, **hyper: Any) -> Path:
    """Write a checkpoint as Lightning does of nano-trm, whose q-head has the one logit."""
    names = {"embed_tokens": "input_embedding", "L_level": "lenet"}
    names |= {"H_init": "z_H_init", "L_init": "z_L_init"}
    state = {}
    for name, tensor in weights().items():
        top, dot, rest = name.partition(".")
        state[f"{prefix}{names.get(top, top)}{dot}{rest}"] = (
            tensor[:1] if top == "q_head" else tensor
        )
    state[f"{prefix}puzzle_emb.weights"] = torch.zeros(5, 16)
    shadow = {n: t + 1.0 for n, t in state.items() if "init" not in n and "puzzle" not in n}
    callbacks = {"EMACallback": {"shadow": shadow, "decay": 0.999}} if ema else {}
    content = {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": state}
    content |= {"callbacks": callbacks, "hparams_name": "kwargs", "loops": {"fit_loop": {"a": 1}}}
    content |= {"optimizer_states": [{"state": {}}], "hyper_parameters": {**HYPER, **hyper}}
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def start(
    path: Path, accepted: tuple[str, ...] = (), which: str = "ema", **blocks: Any
) -> tuple[nn.Module, dict[str, Any]]:
    init = {"init_differs": list(accepted), "weights": which}
    run = make_run(decoder=init, **blocks)
    decoder = build_model(make_run(seed=5), 1).decoder
    return decoder, load_initial_weights(decoder, read_parent(path, None), run)


def test_a_checkpoint_of_the_same_settings_has_nothing_to_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder, report = start(official(tmp_path))
    assert (report["differs"], report["unchecked"]) == ([], [])
    assert caplog.records == []
    assert all(torch.equal(t, weights()[n]) for n, t in decoder.state_dict().items())


DIFFERENT: list[tuple[dict[str, Any], str, bool]] = [
    ({"pos_encodings": "none"}, "positions none there and rope here", True),
    ({"no_ACT_continue": False}, "no_ACT_continue False there and True here", True),
    ({"H_cycles": 3}, "H_cycles 3 there and 2 here", True),
    ({"L_cycles": 6}, "L_cycles 6 there and 1 here", True),
    ({"num_heads": 4}, "heads 4 there and 2 here", True),
    ({"rope_theta": 500.0}, "rope_theta 500.0 there and 10000.0 here", True),
    ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 there and 1e-05 here", True),
    (
        {"loss": {"loss_type": "softmax_cross_entropy"}},
        "loss_type softmax_cross_entropy there and stablemax_cross_entropy here",
        True,
    ),
    ({"mlp_t": True}, "mlp_t True there and False here", False),
    (
        {"name": "recursive_reasoning.trm_singlez@Tiny"},
        "architecture trm_singlez there and trm here",
        False,
    ),
]


@pytest.mark.parametrize(("arch", "text", "acceptable"), DIFFERENT)
def test_a_setting_that_no_shape_tells_is_refused_until_it_is_named(
    tmp_path: Path, arch: dict[str, Any], text: str, acceptable: bool
) -> None:
    path = official(tmp_path, **arch)
    with pytest.raises(CheckpointError) as refused:
        start(path)
    assert text in str(refused.value)
    name = text.split()[0]
    assert (f"decoder.init_differs: [{name}]" in str(refused.value)) == acceptable
    assert (name in MAY_DIFFER) == acceptable
    if acceptable:
        assert start(path, (name,))[1]["differs"] == [text]
        with pytest.raises(CheckpointError):
            start(path, tuple(each for each in MAY_DIFFER if each != name))


def test_turned_positions_over_a_checkpoint_of_reading_order(tmp_path: Path) -> None:
    model = {"positions": "rope_2d"}
    with pytest.raises(CheckpointError, match="positions rope there and rope_2d here"):
        start(official(tmp_path), model=model)
    start(tmp_path / "step_7", ("positions",), model=model)


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ({"puzzle_emb_len": 16}, "context_tokens 16 there and 2 here"),
        ({"puzzle_emb_len": 0}, "context_tokens 1 there and 2 here"),
        ({"puzzle_emb_len": 0, "puzzle_emb_ndim": 33}, "context_tokens 3 there and 2 here"),
        ({"halt_max_steps": 16}, "max_steps 16 there and 3 here"),
        ({"forward_dtype": "bfloat16"}, "dtype bf16 there and fp32 here"),
    ],
)
def test_what_an_encoder_or_a_run_chooses_is_said_once(
    tmp_path: Path, arch: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert start(official(tmp_path, **arch))[1]["differs"] == [text]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert text in record.getMessage()


def test_without_the_config_the_log_says_once_what_nobody_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = official(tmp_path)
    (tmp_path / "all_config.yaml").unlink()
    unchecked = start(path)[1]["unchecked"]
    [record] = caplog.records
    assert set(unchecked) <= {*DECODER_SIZES, *FIXED, *NOTED}
    assert {"heads", "H_cycles", "positions", "no_ACT_continue", "context_tokens"} <= set(unchecked)
    assert all(name in record.getMessage() for name in unchecked)


def test_a_run_of_another_study_is_held_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"ema.decoder.{n}": t for n, t in weights().items()}, path)
    config = {"model": {**MODEL, "expansion": 4.0, "positions": "rope_2d", "rope_theta": 10000.0}}
    config |= {"halting": {"max_steps": 16}, "train": {"dtype": "bf16"}}
    config["model"]["context_tokens"] = 9
    parent = Parent(tmp_path, path, "", {"config": config})
    decoder = build_model(make_run(seed=5), 1).decoder
    with pytest.raises(CheckpointError, match=r"positions rope_2d there.*init_differs: \[positi"):
        load_initial_weights(decoder, parent, make_run())
    run = make_run(decoder={"init_differs": ["positions"]})
    texts = ("positions rope_2d", "context_tokens 9", "max_steps 16", "dtype bf16")
    found = load_initial_weights(decoder, parent, run)["differs"]
    assert [" ".join(each.split()[:2]) for each in found] == list(texts)


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod."])
def test_a_checkpoint_of_nano_trm(tmp_path: Path, prefix: str) -> None:
    decoder, report = start(nano(tmp_path, prefix))
    theirs, fresh = weights(), build_model(make_run(seed=5), 1).decoder.state_dict()
    for name, tensor in decoder.state_dict().items():
        if name.startswith("q_head"):  # their one logit is q-halt; q-continue is not used
            assert torch.equal(tensor, torch.cat([theirs[name][:1], fresh[name][1:]]))
        else:
            assert torch.equal(tensor, theirs[name])
    assert report["skipped"] == ["puzzle_emb.weights"]
    assert report["new"] == report["differs"] == []
    assert report["weights"] == "as in the file"
    assert set(report["unchecked"]) == {"architecture", "rms_norm_eps"}


def test_its_averages_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    path, theirs = nano(tmp_path, ema=True), weights()
    averaged, report = start(path)
    raw, _ = start(path, which="raw")
    assert report["weights"] == "ema"
    for name in ("lm_head.weight", "L_level.layers.0.mlp.down_proj.weight"):
        assert torch.equal(averaged.state_dict()[name], theirs[name] + 1.0)
        assert torch.equal(raw.state_dict()[name], theirs[name])
    assert torch.equal(averaged.state_dict()["H_init"], theirs["H_init"])  # is not averaged


@pytest.mark.parametrize(
    ("hyper", "name"),
    [
        ({"pos_emb_type": "2d"}, "positions"),
        ({"pad_value": 10}, "pad_value"),
        ({"seq_len": 81}, "seq_len"),
        ({"L_cycles": 6}, "L_cycles"),
        ({"num_heads": 4}, "heads"),
    ],
)
def test_its_hyperparameters_are_compared(tmp_path: Path, hyper: Any, name: str) -> None:
    path = nano(tmp_path, **hyper)
    with pytest.raises(CheckpointError, match=rf"{name} .* there and .*init_differs: \[{name}\]"):
        start(path)
    [text] = start(path, (name,))[1]["differs"]
    assert text.startswith(name)


def test_lightning_around_the_official_model(tmp_path: Path) -> None:
    path = tmp_path / "epoch=1-step=2.ckpt"
    state = {f"net.wrapped.model.inner.{name}": tensor for name, tensor in weights().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 1.0}, "callbacks": {}}, path)
    decoder, _ = start(path)
    assert all(torch.equal(t, weights()[n]) for n, t in decoder.state_dict().items())


def test_another_vocabulary_is_named(tmp_path: Path) -> None:
    path = nano(tmp_path)
    content = torch.load(path, weights_only=True)
    for name in ("input_embedding.embedding_weight", "lm_head.weight"):
        content["state_dict"][name] = content["state_dict"][name][:11]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="vocabulary 11 there and 12 here"):
        start(path)
