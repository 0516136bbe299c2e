"""The reading of pairs: tokens of both pairings, and the kinds of pooling, by formula."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import make_batch, make_run
from torch import Tensor

from etrm.data.batch import Batch
from etrm.models.encoders.pairs import POOLINGS, PairTokens, Pooling

WIDTH, HEADS = 16, 2


def pooling(kind: str) -> tuple[Pooling, Tensor, Tensor]:
    """A pooling, tokens of four sequences, and a mask of real ones (at least one each)."""
    torch.manual_seed(0)
    tokens, mask = torch.randn(4, 7, WIDTH), torch.rand(4, 7) < 0.5
    mask[:, 2] = True
    mask[3] = torch.arange(7) == 5
    return Pooling(kind, WIDTH, HEADS), tokens, mask


def reference(layer: Pooling, real: Tensor) -> Tensor:
    """One sequence of real tokens [n, D] to a vector."""
    if layer.kind == "mean":
        return real.mean(dim=0)
    if layer.kind == "max":
        return real.max(dim=0).values
    if layer.kind == "weighted":
        return layer.score(real).softmax(dim=0).T[0] @ real
    attention, part = layer.attention, WIDTH // HEADS
    q = attention.q_proj(layer.query)
    k, v = attention.kv_proj(real).chunk(2, dim=-1)
    heads = []
    for h in range(HEADS):
        cut = slice(h * part, (h + 1) * part)
        weights = (k[:, cut] @ q[cut] / math.sqrt(part)).softmax(dim=0)
        heads.append(weights @ v[:, cut])
    return attention.o_proj(torch.cat(heads))


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_is_over_real_tokens_by_its_formula(kind: str) -> None:
    layer, tokens, mask = pooling(kind)
    found = layer(tokens, mask)
    for i in range(4):
        assert torch.allclose(found[i], reference(layer, tokens[i][mask[i]]), atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_no_gradient_reaches_tokens_that_are_not_real(kind: str) -> None:
    layer, tokens, mask = pooling(kind)
    tokens.requires_grad_()
    layer(tokens, mask).square().sum().backward()
    assert tokens.grad is not None
    assert bool(torch.isfinite(tokens.grad).all())
    assert not tokens.grad[~mask].any()
    assert tokens.grad[mask].any()


def plain(pairs: PairTokens, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Tokens, masks of real ones, and positions of all demos, without packing."""
    pairs.packing = "none"
    ((rows, found),) = pairs.groups(batch)
    assert rows.tolist() == list(range(batch.demo_mask.numel()))
    return found.tokens, found.real, found.rotary


@pytest.mark.parametrize("pairing", ["aligned", "concat"])
def test_tokens_of_a_pair(pairing: str) -> None:
    torch.manual_seed(0)
    batch = make_batch(2, demos=2)
    batch.demo_inputs[0, 0, 4:] = 0  # an input smaller than its output
    batch.demo_outputs[0, 0, 6:] = 0
    pairs = PairTokens(pairing, WIDTH, HEADS, make_run().model)
    tokens, mask, (cos, sin) = plain(pairs, batch)
    left = pairs.embed_inputs.embedding_weight[batch.demo_inputs.flatten(0, 1)] * 4.0
    right = pairs.embed_outputs.embedding_weight[batch.demo_outputs.flatten(0, 1)] * 4.0
    real_in, real_out = (t.flatten(0, 1) > 0 for t in (batch.demo_inputs, batch.demo_outputs))
    if pairing == "aligned":
        assert torch.allclose(tokens, (left + right) / math.sqrt(2), atol=1e-6)
        assert torch.equal(mask, real_in | real_out)
        assert cos.shape[:2] == sin.shape[:2] == (4, 9)
    else:
        assert torch.allclose(tokens, torch.cat([left, right], dim=1), atol=1e-6)
        assert torch.equal(mask, torch.cat([real_in, real_out], dim=1))
        assert torch.equal(cos[:, :9], cos[:, 9:])
        assert torch.equal(sin[:, :9], sin[:, 9:])


@pytest.mark.parametrize("pairing", ["aligned", "concat"])
def test_a_demo_that_does_not_exist_shows_one_cell(pairing: str) -> None:
    """Attention over nothing is not a number."""
    batch = make_batch(2, demos=2)
    batch.demo_inputs[1, 1] = batch.demo_outputs[1, 1] = 0
    _, mask, _ = plain(PairTokens(pairing, WIDTH, HEADS, make_run().model), batch)
    assert mask.sum(dim=1).tolist()[-1] == 1
    assert bool(mask[3, 0])
    assert bool(mask[:3].all())
