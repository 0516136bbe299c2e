"""The building blocks that encoders and decoder share.

Shapes: B batch, N tokens (of the sequence that attends), M tokens attended to, D width, H heads.
Initial values, all drawn here: linear weights 1/√fan_in, embeddings 1/√D, both truncated at two
standard deviations (TRM, arXiv 2510.04871, after JAX's initialisers).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.arc.grid import MAX_SIDE, VOCAB_SIZE

NORM_EPS = 1e-5
# Standard deviation of a unit normal cut at ±2: dividing by it keeps the spread that was asked for.
CUT_STD = 0.8796256610342398

Branch = Callable[[Tensor], Tensor]


def init_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal of standard deviation `std`, cut at two standard deviations."""
    with torch.no_grad():
        bound = 2.0 * std / CUT_STD
        return nn.init.trunc_normal_(tensor, std=std / CUT_STD, a=-bound, b=bound)


class Linear(nn.Linear):
    """A linear map whose float32 weights are used in the number format of what comes in.

    `hoisted` is the weight cast once for many uses (`etrm.models.compute`); without it, each use
    casts anew.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.hoisted: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.dtype) if self.hoisted is None else self.hoisted
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, weight, bias)


def linear(inputs: int, outputs: int, bias: bool = False) -> Linear:
    """A linear map with weights of standard deviation 1/√inputs and zero bias."""
    layer = Linear(inputs, outputs, bias=bias)
    init_normal_(layer.weight, 1.0 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by its root mean square over the last axis, in float32, without weights."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


class TokenEmbedding(nn.Module):
    """Token ids [...] → [..., D], in the number format that the model computes in (`dtype`)."""

    dtype = torch.float32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(torch.empty(VOCAB_SIZE, width))
        init_normal_(self.embedding_weight, 1.0 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding_weight.to(self.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32, whatever comes in."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class Rotary(nn.Module):
    """Rotary positions of P context tokens and the cells of a canvas (Su et al., 2104.09864).

    A cell's position is that of the 30×30 canvas whatever the lane, so that weights mean the same
    in all lanes. `rope`: P + 30·row + column. `rope_2d`: the first half of a head turns with the
    row, the second with the column; context token p stands at row 30, column p.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, context_tokens: int, kind: str, theta: float) -> None:
        super().__init__()
        self.context_tokens = context_tokens
        part = head_width if kind == "rope" else head_width // 2
        frequencies = 1.0 / theta ** (torch.arange(0, part, 2, dtype=torch.float32) / part)
        row, column = torch.meshgrid(torch.arange(MAX_SIDE), torch.arange(MAX_SIDE), indexing="ij")
        context = torch.arange(context_tokens)
        if kind == "rope":
            cells = context_tokens + MAX_SIDE * row + column
            angles = torch.cat([context, cells.flatten()])[:, None].float() * frequencies
        else:
            rows = torch.cat([torch.full_like(context, MAX_SIDE), row.flatten()])
            columns = torch.cat([context, column.flatten()])
            angles = torch.cat([p[:, None].float() * frequencies for p in (rows, columns)], dim=-1)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, side: int) -> tuple[Tensor, Tensor]:
        """cos and sin [P + side², head width] for a canvas of `side` cells."""
        cells = torch.arange(side, device=self.cos.device)
        index = (self.context_tokens + MAX_SIDE * cells[:, None] + cells).flatten()
        index = torch.cat([torch.arange(self.context_tokens, device=index.device), index])
        return self.cos[index], self.sin[index]

    def beside(self, places: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B, C + side², head width] of cells of a canvas after C others of its cells.

        `places` [B, C]: their numbers on the canvas; -1 for the first context token.
        """
        row, column = places // side, places % side
        index = self.context_tokens + MAX_SIDE * row + column
        index = torch.where(places < 0, 0, index)
        own = self.context_tokens + torch.arange(side * side, device=places.device)
        cos, sin = self(side)
        own = own.expand(len(places), -1)
        pairs = ((self.cos, cos), (self.sin, sin))
        return tuple(torch.cat([table[index], mine[own]], dim=1) for table, mine in pairs)  # type: ignore[return-value]


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + half) of each head of `x` [B, N, H, head width].

    `rotary` is cos and sin, [N, head width] or, where sequences differ, [B, N, head width].
    """
    cos, sin = (t.unsqueeze(-2) for t in rotary)
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    turned = torch.cat([-right, left], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)  # in float32, as cos and sin are


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] → [B, N, D]; no bias, not causal."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv_proj = linear(width, 3 * width)
        self.o_proj = linear(width, width)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`mask` [B, N] or [B, N, N] is true where a token may be attended to."""
        qkv = self.qkv_proj(x).unflatten(-1, (3 * self.heads, -1))
        both, v = qkv.split([2 * self.heads, self.heads], dim=2)  # queries and keys, values
        if self.qk_norm:
            both = rms_norm(both)
        if rotary is not None:
            both = rotate(both, rotary)
        q, k = both.chunk(2, dim=2)
        return self.o_proj(attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, N, D] to tokens [B, M, D]."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.q_proj = linear(width, width)
        self.kv_proj = linear(width, 2 * width)
        self.o_proj = linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [B, M] is true where a token may be attended to."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv_proj(tokens).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        return self.o_proj(attend(q, k, v, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention [B, N, H, D/H] → [B, N, D].

    `mask` is [B, M], or [B, N, M] where it differs by query; each row of it needs one true.
    """
    full = None if mask is None else mask[:, None] if mask.dim() == 3 else mask[:, None, None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=full).transpose(1, 2).flatten(-2)


def inner_width(width: int, expansion: float) -> int:
    """Inner width of a SwiGLU: 2/3 · expansion · width, rounded up to 256s as in TRM."""
    return -(-round(expansion * width * 2 / 3) // 256) * 256


def block_bytes(width: int, expansion: float, item: int) -> int:
    """What the backward pass of a `Block` keeps of a token, in bytes, with `item` bytes a number.

    Kept are: its input, q and k before and after rotation with v, the attention's output, the
    input of the feed-forward, its gate, up, activation and product, and both norms' inputs, these
    in float32.
    """
    return item * (8 * width + 4 * inner_width(width, expansion)) + 8 * width


class SwiGLU(nn.Module):
    """Gated feed-forward [.., D] → [.., D]."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = inner_width(width, expansion)
        self.gate_up_proj = linear(width, 2 * inner)
        self.down_proj = linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Self-attention and SwiGLU with residuals.

    `norm`: `post` (TRM: RMS norm after each residual) or `pre` (LayerNorm before each branch);
    `layer_scale`: a learned factor per channel on each branch, starting there (2103.17239).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        expansion: float,
        norm: str = "post",
        layer_scale: float | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, qk_norm)
        self.mlp = SwiGLU(width, expansion)
        self.residuals = Residuals(width, 2, norm, layer_scale)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = self.residuals(0, x, lambda y: self.self_attn(y, rotary, mask))
        return self.residuals(1, x, self.mlp)


class CrossBlock(nn.Module):
    """Queries [B, N, D] read tokens [B, M, D] by cross-attention, then a SwiGLU."""

    def __init__(
        self,
        width: int,
        heads: int,
        expansion: float,
        norm: str = "post",
        layer_scale: float | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(width, heads, qk_norm)
        self.mlp = SwiGLU(width, expansion)
        self.residuals = Residuals(width, 2, norm, layer_scale)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.residuals(0, x, lambda y: self.cross_attn(y, tokens, mask))
        return self.residuals(1, x, self.mlp)


class Residuals(nn.Module):
    """Norm placement and layer scale of a block's branches, written once."""

    def __init__(self, width: int, branches: int, norm: str, layer_scale: float | None) -> None:
        super().__init__()
        self.norm = norm
        pre = norm == "pre"
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(branches if pre else 0))
        scales = [] if layer_scale is None else [layer_scale] * branches
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), s)) for s in scales)

    def forward(self, branch: int, x: Tensor, function: Branch) -> Tensor:
        y = function(self.norms[branch](x) if self.norm == "pre" else x)
        if self.scales:
            y = y * self.scales[branch]
        return x + y if self.norm == "pre" else rms_norm(x + y)
