"""Peers compute our loss and our gradients: the ratios are of time alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks.mix import Mix
from benchmarks.peers import evaluation_peers, make_peer, training_peers
from benchmarks.setups import PADDED, Setting, run_config
from etrm.models.act import act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.losses import sample_losses
from tests.tiny import make_tasks, make_variants

BLOCKS = {
    "model": {
        **{"width": 16, "heads": 2, "layers": 2, "context_tokens": 3},
        **{"H_cycles": 2, "L_cycles": 2},
    },
    "context": {"width": 16, "heads": 2, "layers": 2, "set_layers": 2},
    "halting": {"max_steps": 3},
}


@pytest.fixture
def setting() -> Setting:
    tasks = make_tasks(4, side=5)
    mix = Mix("tiny", tasks, tasks[:1], make_variants(tasks))
    return Setting(torch.device("cpu"), mix, blocks=BLOCKS, slots=2, matmul_side=16)


@pytest.mark.parametrize("model", ["trm", "etrm-standard"])
def test_a_peer_computes_our_loss_and_our_gradients(setting, model) -> None:
    peer = make_peer(setting, model, "fp32", 2)
    ours = build_model(run_config(setting, model, PADDED, "fp32", 2), len(setting.mix.training) * 4)
    ours.load_state_dict(peer.weights)
    carry = empty_carry(ours, peer.incoming, torch.float32)
    assert peer.incoming.demo_inputs.shape[1:] == (10, 900)
    for _ in range(2):  # of the same samples: the second step starts from the first one's states
        carry, output = act_step(ours, carry, peer.incoming)
        carry.halted = torch.zeros_like(carry.halted)
        expected = sample_losses(output, carry.batch.labels)
        expected = expected.total(peer.run.halting.loss_weight, {"contrastive": 0.0})
        found = peer.loss()  # float64, as ours
        peer.halted = torch.zeros_like(peer.halted)
        assert torch.allclose(found, expected, rtol=1e-5)
    found.mean().backward()
    expected.mean().backward()
    for name, parameter in ours.named_parameters():
        gradient = peer.weights[name].grad
        assert gradient is not None, name
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-7), name


def test_a_peer_trains(setting) -> None:
    peer = make_peer(setting, "trm", "fp32", 2)
    before = {name: tensor.clone() for name, tensor in peer.weights.items()}
    peer.step()
    moved = {name for name, tensor in peer.weights.items() if not torch.equal(tensor, before[name])}
    assert moved == set(peer.weights) - {"decoder.H_init", "decoder.L_init"}


def test_rows_of_peers(setting) -> None:
    for rows in (
        training_peers(setting, "trm", "bf16", 1),
        evaluation_peers(setting, "etrm-standard", "bf16", 1),
    ):
        theirs, ours = rows
        assert (theirs.layout, ours.layout) == ("peer", "lanes")
        assert ours.speedup == pytest.approx(
            ours.examples_per_second / theirs.examples_per_second, rel=1e-6
        )
        assert theirs.peak_memory_bytes > 1e6
