"""Optimizers, averaged weights, warm-up and norms against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import make_batch, make_options, make_run
from torch import nn

from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.training.optim import EMA, AdamATan2, FlatParameters, SignSGD, warmup_factor


def table(rows: int = 6) -> PuzzleEmbedding:
    source = PuzzleEmbedding(make_options("embedding"), make_run("embedding").model, rows)
    nn.init.normal_(source.weights, generator=torch.Generator().manual_seed(0))
    return source.train()


def test_adam_atan2_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    gradients = rng.normal(size=(7, 3, 4))
    gradients[:, 0, 0] = 0.0
    lr, (b1, b2), decay = 0.1, (0.9, 0.95), 0.2
    p, m, v = start.copy(), np.zeros((3, 4)), np.zeros((3, 4))
    parameter = nn.Parameter(torch.from_numpy(start))
    optimizer = AdamATan2([parameter], lr, (b1, b2), decay)
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        p = p * (1 - lr * decay) - lr / (1 - b1**t) * np.arctan2(m, np.sqrt(v / (1 - b2**t)))
        parameter.grad = torch.from_numpy(g)
        optimizer.step()
        assert np.allclose(parameter.detach().numpy(), p, atol=1e-12)


def test_a_parameter_without_a_gradient_stays_and_starts_counting_later() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamATan2([first, second], 0.1, (0.9, 0.95), 0.5)
    first.grad = torch.ones(2)
    optimizer.step()
    assert second.tolist() == [1.0, 1.0]
    second.grad = torch.ones(2)
    optimizer.step()
    alone = nn.Parameter(torch.ones(2))
    alone.grad = torch.ones(2)
    AdamATan2([alone], 0.1, (0.9, 0.95), 0.5).step()
    assert torch.equal(second, alone)


def test_the_state_of_the_optimizer_is_complete() -> None:
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def run(optimizer: AdamATan2, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        for row in rows:
            parameter.grad = row.clone()
            optimizer.step()

    whole, half = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    run(AdamATan2([whole], 0.1, (0.9, 0.95), 0.1), whole, gradients)
    first = AdamATan2([half], 0.1, (0.9, 0.95), 0.1)
    run(first, half, gradients[:3])
    second = AdamATan2([half], 0.7, (0.5, 0.5), 0.3)
    second.load_state_dict(first.state_dict())
    run(second, half, gradients[3:])
    assert torch.equal(whole, half)


def test_sign_sgd_moves_used_rows_once_by_the_sign_of_their_summed_gradient() -> None:
    source = table()
    before = source.weights.clone()
    batch = make_batch(5)
    gradients = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    gradients[:, 3] = 0.0
    batch.puzzle = torch.tensor([4, 1, 4, 2, 4])
    tokens = source(batch, None).tokens
    (tokens[:, 0] * gradients / 4.0).sum().backward()  # 4: √width, by which rows are scaled
    SignSGD(source, weight_decay=0.2).step(0.1, torch.ones(5, dtype=torch.float64))
    expected = before.clone() * 1.0
    for row in (1, 2, 4):
        total = gradients[batch.puzzle == row].sum(dim=0)
        expected[row] = before[row] * (1 - 0.1 * 0.2) - 0.1 * total.sign()
    assert torch.allclose(source.weights, expected, atol=1e-6)
    assert torch.equal(source.weights[[0, 3, 5]], before[[0, 3, 5]])


def test_gradients_are_handed_over_once_and_only_in_training() -> None:
    source = table()
    batch = make_batch(3)
    source(batch, None).tokens.sum().backward()
    puzzles, gradients = source.take_gradients()
    assert puzzles.tolist() == batch.puzzle.tolist()
    assert bool((gradients != 0).all())
    with torch.no_grad():
        source(batch, None)
    source.eval()
    source(batch, None)
    source.train()
    source(batch, None)  # used, and no gradient came back
    puzzles, gradients = source.take_gradients()
    assert puzzles.tolist() == batch.puzzle.tolist()
    assert not gradients.any()


def test_an_embedding_stands_at_the_first_context_token() -> None:
    source = table().eval()
    tokens = source(make_batch(3), None).tokens
    assert torch.allclose(tokens[:, 0], source.weights[:3] * 4.0)
    assert not tokens[:, 1:].any()
    fresh = PuzzleEmbedding(make_options("embedding"), make_run("embedding").model, 6)
    assert not fresh.weights.any()


def test_averaged_weights_are_copies_that_follow_the_formula() -> None:
    layer = nn.Linear(3, 2)
    ema = EMA(layer, 0.75)
    expected = {n: p.detach().double().clone() for n, p in layer.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for name, p in layer.named_parameters():
                p.add_(step + 1.0)
                assert torch.allclose(ema.values[name].double(), expected[name], atol=1e-5)
        ema.update(layer)
        for name, p in layer.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach().double()
    for name, value in expected.items():
        assert torch.allclose(ema.values[name].double(), value, atol=1e-5)
        assert not ema.values[name].requires_grad


@pytest.mark.parametrize(
    ("step", "warmup", "expected"),
    [(1, 4, 0.25), (2, 4, 0.5), (4, 4, 1.0), (9, 4, 1.0), (1, 0, 1.0), (1, 1, 1.0)],
)
def test_warm_up_is_linear_then_one(step: int, warmup: int, expected: float) -> None:
    assert warmup_factor(step, warmup) == expected


def test_flat_parameters_share_their_numbers_with_the_module() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(2, 1, bias=False)
    before = [p.detach().clone() for layer in (first, second) for p in layer.parameters()]
    flat = FlatParameters({"a": list(first.parameters()), "b": list(second.parameters()), "c": []})
    given = [*first.parameters(), *second.parameters()]
    assert all(torch.equal(p, old) for p, old in zip(given, before, strict=True))
    second(first(torch.ones(4, 3))).sum().backward()
    grads = [p.grad.flatten() for p in given if p.grad is not None]
    assert torch.equal(flat.gradient, torch.cat(grads))
    assert torch.equal(flat.gradient_of("a"), torch.cat(grads[:2]))
    assert flat.gradient_of("c").numel() == 0
    assert set(flat.flat) == {"a", "b"}
    AdamATan2([flat.flat["a"]], 0.1, (0.9, 0.95), 0.0).step()
    assert not torch.equal(first.weight, before[0])
    assert torch.equal(second.weight, before[2])
    flat.gradient.zero_()
    second(first(torch.ones(1, 3))).sum().backward()
    assert torch.equal(flat.gradient_of("b"), given[-1].grad.flatten())


def test_one_flat_tensor_is_updated_as_its_parts_are() -> None:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    flat = FlatParameters({"a": list(layers[1].parameters())})
    apart = AdamATan2(layers[0].parameters(), 0.1, (0.9, 0.95), 0.1)
    whole = AdamATan2([flat.flat["a"]], 0.1, (0.9, 0.95), 0.1)
    for step in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip(layers, (apart, whole), strict=True):
            layer(x).square().sum().backward()
            optimizer.step()
        apart.zero_grad()
        flat.gradient.zero_()
    for p, q in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)
