"""Norm, rotary positions, attention, feed-forward and blocks against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import lanes_of
from torch import Tensor, nn

from etrm.config.lanes import Lane
from etrm.models.layers import (
    NORM_EPS,
    Attention,
    Block,
    CrossAttention,
    CrossBlock,
    Linear,
    Residuals,
    Rotary,
    SwiGLU,
    TokenEmbedding,
    init_normal_,
    rms_norm,
    rotate,
)

FULL = Lane(30, 30)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def positions(kind: str, context: int, side: int, width: int = 8) -> tuple[Tensor, Tensor]:
    return Rotary(width, context, kind, 100.0)(Lane(side, side))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Softmax attention, one sample and head at a time; [B, N, D], mask [B, M]."""
    out = torch.zeros_like(q)
    width = q.shape[-1] // heads
    for b in range(q.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[b, :, part] @ k[b, mask[b]][:, part].T / math.sqrt(width)
            out[b, :, part] = scores.softmax(dim=-1) @ v[b, mask[b]][:, part]
    return out


# --- initial values ---


@pytest.mark.parametrize("std", [1.0, 0.125])
def test_initial_values_have_the_spread_asked_for_and_no_tail(std: float) -> None:
    x = init_normal_(torch.empty(200_000), std)
    assert float(x.std()) == pytest.approx(std, rel=0.01)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.01 * std)
    assert float(x.abs().max()) <= 2 * std / 0.8796256610342398


def test_linear_weights_are_scaled_by_their_inputs() -> None:
    layer = Linear(64, 4096, bias=True)
    assert float(layer.weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    assert not layer.bias.any()
    assert Linear(2, 3).bias is None
    table = TokenEmbedding(4096)
    assert float(table.embedding_weight.detach().std()) == pytest.approx(1 / 64, rel=0.02)


# --- norm ---


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x = torch.randn(3, 5, 16) * 7
    expected = x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + NORM_EPS)
    assert torch.allclose(rms_norm(x), expected, atol=1e-6)
    x = (torch.randn(4, 64) * 3).bfloat16()
    found = rms_norm(x)  # computed in float32
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rms_norm(x.float()).bfloat16())


# --- rotary positions ---


@pytest.mark.parametrize("kind", ["rope", "rope_2d"])
@pytest.mark.parametrize("context", [0, 3])
def test_a_cell_has_the_same_position_on_every_lane(kind: str, context: int) -> None:
    rotary = Rotary(8, context, kind, 100.0)
    whole = [t[context:].reshape(30, 30, -1) for t in rotary(FULL)]
    for lane in lanes_of(1, 3, 10, 29, (1, 12), (7, 2)):
        cos, sin = rotary(lane)
        assert cos.shape == (context + lane.cells, 8)
        for found, full in zip((cos, sin), whole, strict=True):
            cells = found[context:].reshape(lane.rows, lane.columns, -1)
            assert torch.equal(cells, full[: lane.rows, : lane.columns])
        for found, full in zip((cos, sin), rotary(FULL), strict=True):
            assert torch.equal(found[:context], full[:context])


def test_rope_counts_context_tokens_then_cells_in_reading_order() -> None:
    cos, sin = positions("rope", 2, 30)
    frequencies = 100.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.arange(902)[:, None] * frequencies
    assert torch.allclose(cos, torch.cat([angles, angles], dim=1).cos(), atol=1e-4)
    assert torch.allclose(sin, torch.cat([angles, angles], dim=1).sin(), atol=1e-4)


def test_rope_2d_turns_one_half_by_row_the_other_by_column() -> None:
    cos, _ = positions("rope_2d", 2, 30)
    cells = cos[2:].reshape(30, 30, 2, 2, 2)  # two equal halves of (row, column) × frequencies
    frequencies = 100.0 ** (-torch.arange(0, 4, 2) / 4)
    line = (torch.arange(30)[:, None] * frequencies).cos()
    for half in range(2):
        assert torch.allclose(cells[:, :, half, 0], line[:, None].expand(30, 30, 2), atol=1e-5)
        assert torch.allclose(cells[:, :, half, 1], line.expand(30, 30, 2), atol=1e-5)


@pytest.mark.parametrize("kind", ["rope", "rope_2d"])
def test_positions_are_all_different_and_turn_by_their_base(kind: str) -> None:
    cos, sin = Rotary(16, 4, kind, 10000.0)(FULL)
    assert len(torch.cat([cos, sin], dim=1).unique(dim=0)) == 904
    assert not torch.equal(Rotary(16, 4, kind, 10.0).cos, cos)


@pytest.mark.parametrize("lane", lanes_of(3, (1, 9), (9, 1)), ids=str)
@pytest.mark.parametrize("kind", ["rope", "rope_2d"])
def test_cells_in_front_of_a_canvas_have_the_positions_of_their_places(
    kind: str, lane: Lane
) -> None:
    rotary = Rotary(8, 2, kind, 100.0)
    places = torch.tensor([[-1, 0, 8], [4, -1, 3]])  # on a canvas of nine cells
    for found, whole in zip(rotary.beside(places, lane), rotary(lane), strict=True):
        assert found.shape == (2, 3 + 9, 8)
        assert torch.equal(found[:, 3:], whole[2:].expand(2, 9, 8))
        assert torch.equal(found[:, :3], whole[torch.where(places < 0, 0, places + 2)])


def test_rotation_turns_pairs_of_channels() -> None:
    cos, sin = positions("rope", 0, 3)
    x = torch.randn(2, 9, 4, 8)
    found = rotate(x, (cos, sin))
    for i in range(4):
        z = torch.complex(x[..., i], x[..., i + 4])
        turned = z * torch.complex(cos[:, i], sin[:, i])[:, None]
        assert torch.allclose(found[..., i], turned.real, atol=1e-5)
        assert torch.allclose(found[..., i + 4], turned.imag, atol=1e-5)


def test_every_sequence_can_have_positions_of_its_own() -> None:
    cos, sin = positions("rope", 0, 3)
    x, order = torch.randn(2, 9, 4, 8), torch.stack([torch.randperm(9), torch.arange(9)])
    found = rotate(x, (cos[order], sin[order]))
    for i in range(2):
        assert torch.equal(found[i], rotate(x[i : i + 1], (cos[order[i]], sin[order[i]]))[0])


def test_scores_depend_on_relative_positions() -> None:
    rotary = positions("rope", 0, 30)
    q, k = torch.randn(2, 1, 1, 1, 8)
    turned_q = rotate(q.expand(1, 900, 1, 8), rotary)[0, :, 0]
    turned_k = rotate(k.expand(1, 900, 1, 8), rotary)[0, :, 0]
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores.diagonal(7), scores[0, 7].expand(893), atol=1e-3)


# --- attention ---


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_self_attention_is_masked_softmax_attention(qk_norm: bool, turned: bool) -> None:
    layer = Attention(16, 2, qk_norm)
    x = torch.randn(3, 9, 16)
    mask = torch.rand(3, 9) < 0.6
    mask[:, 4] = True
    rotary = positions("rope", 0, 3) if turned else None

    def prepare(t: Tensor) -> Tensor:
        heads = t.unflatten(-1, (2, 8))
        heads = rms_norm(heads) if qk_norm else heads
        return (heads if rotary is None else rotate(heads, rotary)).flatten(-2)

    q, k, v = F.linear(x, layer.qkv_proj.weight).chunk(3, dim=-1)
    expected = reference_attention(prepare(q), prepare(k), v, 2, mask)
    expected = F.linear(expected, layer.o_proj.weight)
    assert torch.allclose(layer(x, rotary, mask), expected, atol=1e-5)
    pairs = mask[:, None].expand(3, 9, 9)  # a mask that could differ by query
    assert torch.allclose(layer(x, rotary, pairs), expected, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_is_masked_softmax_attention(qk_norm: bool) -> None:
    layer = CrossAttention(16, 2, qk_norm)
    x, tokens = torch.randn(2, 4, 16), torch.randn(2, 7, 16)
    mask = torch.rand(2, 7) < 0.5
    mask[:, 0] = True
    q = F.linear(x, layer.q_proj.weight)
    k, v = F.linear(tokens, layer.kv_proj.weight).chunk(2, dim=-1)
    if qk_norm:
        q, k = (rms_norm(t.unflatten(-1, (2, 8))).flatten(-2) for t in (q, k))
    expected = F.linear(reference_attention(q, k, v, 2, mask), layer.o_proj.weight)
    assert torch.allclose(layer(x, tokens, mask), expected, atol=1e-5)


# --- feed-forward and blocks ---


@pytest.mark.parametrize(
    ("width", "expansion", "inner"),
    [(512, 4.0, 1536), (64, 4.0, 256), (16, 4.0, 256), (128, 4.0, 512), (96, 4.0, 256)],
)
def test_swiglu_has_the_official_inner_width(width: int, expansion: float, inner: int) -> None:
    layer = SwiGLU(width, expansion)
    assert layer.down_proj.weight.shape == (width, inner)
    x = torch.randn(3, width)
    gate, up = F.linear(x, layer.gate_up_proj.weight).chunk(2, dim=-1)
    expected = F.linear(gate * torch.sigmoid(gate) * up, layer.down_proj.weight)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("cross", [False, True])
def test_a_block_places_norms_and_scales(norm: str, layer_scale: float | None, cross: bool) -> None:
    block = (CrossBlock if cross else Block)(16, 2, 4.0, norm=norm, layer_scale=layer_scale)
    x, tokens = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    scale = 1.0 if layer_scale is None else layer_scale

    def attention(y: Tensor) -> Tensor:
        return block.cross_attn(y, tokens, None) if cross else block.self_attn(y, None, None)

    expected = x
    for branch in (attention, block.mlp):
        if norm == "pre":
            expected = expected + scale * branch(F.layer_norm(expected, (16,)))
        else:
            expected = rms_norm(expected + scale * branch(expected))
    found = block(x, tokens) if cross else block(x)
    assert torch.allclose(found, expected, atol=1e-5)
    names = {name for name, _ in block.named_parameters() if "residuals" in name}
    assert any("scales" in name for name in names) == (layer_scale is not None)
    assert any("norms" in name for name in names) == (norm == "pre")


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_learned_scale_keeps_the_number_format(norm: str) -> None:
    x = torch.randn(2, 9, 16).bfloat16()
    assert Block(16, 2, 4.0, norm=norm, layer_scale=0.3)(x).dtype == torch.bfloat16


def test_each_branch_has_its_own_norm_and_scale() -> None:
    residuals = Residuals(4, "pre", 0.5)
    with torch.no_grad():
        residuals.scales[1].fill_(2.0)
        residuals.norms[1].bias.fill_(1.0)
    x = torch.randn(3, 4)
    identity = nn.Identity()
    first, second = residuals(0, x, identity), residuals(1, x, identity)
    normed = F.layer_norm(x, (4,))
    assert torch.allclose(first, x + 0.5 * normed, atol=1e-6)
    assert torch.allclose(second, x + 2.0 * (normed + 1.0), atol=1e-6)
