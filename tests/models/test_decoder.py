"""TRM's decoder: shapes, cycles, gradients, lanes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import make_batch, make_run
from torch import Tensor

from etrm.config.lanes import Lane
from etrm.data.batch import Batch
from etrm.models.build import build_model, num_parameters
from etrm.models.decoder import Decoder
from etrm.models.layers import rms_norm


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(make_run(model=changes).model)


def inputs_of(model: Decoder, batch: int = 2, side: int = 3) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    config = model.config
    tokens = torch.randint(0, 12, (batch, side * side), generator=generator)
    context = torch.randn(batch, config.context_tokens, config.width, generator=generator)
    z_H, z_L = model.initial_states(batch, side * side)
    return tokens, context, z_H, z_L, Lane(side, side)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_shapes(side: int) -> None:
    model = decoder(context_tokens=3, width=16)
    z_H, z_L, logits, q = model(*inputs_of(model, 2, side))
    assert z_H.shape == z_L.shape == (2, 3 + side * side, 16)
    assert logits.shape == (2, side * side, 12)
    assert q.shape == (2, 2)
    assert logits.dtype == q.dtype == torch.float32


def test_one_step_is_the_published_recursion() -> None:
    """H_cycles × (L_cycles updates of z_L with z_H + x, then one of z_H with z_L)."""
    model = decoder(H_cycles=3, L_cycles=2, layers=2)
    tokens, context, z_H, z_L, lane = inputs_of(model)
    embedded = model.embed_tokens.embedding_weight[tokens] * math.sqrt(16)
    x = torch.cat([context, embedded], dim=1)
    rotary = model.rotary(lane)

    def network(state: Tensor, injection: Tensor) -> Tensor:
        y = state + injection
        for block in model.L_level.layers:
            y = rms_norm(y + block.self_attn(y, rotary, None))
            y = rms_norm(y + block.mlp(y))
        return y

    high, low = z_H, z_L
    for _ in range(3):
        for _ in range(2):
            low = network(low, high + x)
        high = network(high, low)
    found = model(tokens, context, z_H, z_L, lane)
    assert torch.allclose(found[0], high, atol=1e-5)
    assert torch.allclose(found[1], low, atol=1e-5)
    assert torch.allclose(found[2], high[:, 2:] @ model.lm_head.weight.T, atol=1e-5)
    assert torch.allclose(found[3], model.q_head(high[:, 0]), atol=1e-5)


def test_gradients_flow_through_the_last_cycle_only() -> None:
    model = decoder(H_cycles=3, L_cycles=2)
    tokens, context, *start, lane = inputs_of(model)

    def gradients(H_cycles: int, z_H: Tensor, z_L: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        model.config = make_run(model={"H_cycles": H_cycles, "L_cycles": 2}).model
        logits = model(tokens, context, z_H, z_L, lane)[2]
        logits.square().sum().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return logits, found

    model.config = make_run(model={"H_cycles": 2, "L_cycles": 2}).model
    with torch.no_grad():
        middle = model(tokens, context, *start, lane)[:2]
    logits, expected = gradients(1, *middle)
    whole, found = gradients(3, *start)
    assert torch.allclose(whole, logits, atol=1e-5)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-4), name


def test_a_decoder_starts_alike_at_every_position_and_unlikely_to_halt() -> None:
    model = decoder()
    z_H, z_L = model.initial_states(2, 9)
    assert model(*inputs_of(model))[3].tolist() == [[-5.0, -5.0]] * 2
    assert z_H.shape == (2, 11, 16)
    assert torch.equal(z_H, model.H_init.expand(2, 11, 16))
    assert torch.equal(z_L, model.L_init.expand(2, 11, 16))
    assert not torch.equal(model.H_init, model.L_init)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rope_2d"},
        {"rope_theta": 10.0},
        {"H_cycles": 3},
        {"L_cycles": 2},
        {"heads": 4},
    ],
    ids=str,
)
def test_sizes_and_positions_change_the_logits(changes: dict[str, Any]) -> None:
    base, other = decoder(), decoder(**changes)
    inputs = inputs_of(base)
    assert not torch.allclose(other(*inputs)[2], base(*inputs)[2])


def on_canvas(batch: Batch, side: int) -> Batch:
    """The same grids at the top left of a larger canvas, without the EOS that would fit there."""

    def pad(tokens: Tensor) -> Tensor:
        old = math.isqrt(tokens.shape[-1])
        canvas = tokens.new_zeros(*tokens.shape[:-1], side, side)
        canvas[..., :old, :old] = tokens.unflatten(-1, (old, old))
        return canvas.flatten(-2)

    values = batch.tensors()
    for name in ("inputs", "labels", "demo_inputs", "demo_outputs"):
        values[name] = pad(values[name])
    return Batch(**values, lane=Lane(side, side))


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_padded_batch_is_another_question_to_the_decoder(source: str) -> None:
    """PAD cells attend and are attended to, as in official TRM: only the same canvas is equal."""
    model = build_model(make_run(source), 8).eval()
    batch = make_batch(2)
    answers = []
    for each in (batch, on_canvas(batch, 3), on_canvas(batch, 4)):
        context = model.context(each, None).tokens
        states = model.decoder.initial_states(*each.inputs.shape)
        logits = model.decoder(each.inputs, context, *states, each.lane)[2]
        answers.append(logits[each.labels > 0])
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2], atol=1e-3)


@pytest.mark.parametrize("pairing", ["aligned", "concat"])
@pytest.mark.parametrize("positions", ["rope", "rope_2d"])
def test_a_padded_canvas_changes_no_encoding(positions: str, pairing: str) -> None:
    """The encoder masks PAD, and a cell's position is the same on every lane."""
    run = make_run(context={"pairing": pairing}, model={"positions": positions})
    model, batch = build_model(run, 8).eval(), make_batch(2)
    first = model.context(batch, None).tokens
    assert torch.allclose(model.context(on_canvas(batch, 6), None).tokens, first, atol=1e-5)


def test_first_weights_are_drawn_from_the_seed_alone() -> None:
    run = make_run()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(run, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_model(run, 8)
    other = build_model(make_run(seed=1), 8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)
    assert not torch.equal(other.decoder.lm_head.weight, first.decoder.lm_head.weight)


def test_parameters_are_counted_with_the_table_of_embeddings() -> None:
    model = build_model(make_run("embedding"), 7)
    weights = sum(p.numel() for p in model.parameters())
    assert num_parameters(model) == weights + 7 * 16
    encoder = build_model(make_run(), 7)
    assert num_parameters(encoder) == sum(p.numel() for p in encoder.parameters())
