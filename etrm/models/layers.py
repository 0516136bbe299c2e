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


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear map with weights of standard deviation 1/√inputs and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    init_normal_(layer.weight, 1.0 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def rms_norm(x: Tensor) -> Tensor:
    """`x` divided by its root mean square over the last axis, in float32, without weights."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


class TokenEmbedding(nn.Module):
    """Token ids [...] → [..., D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(torch.empty(VOCAB_SIZE, width))
        init_normal_(self.embedding_weight, 1.0 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding_weight)


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


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + half) of each head of `x` [B, H, N, head width]."""
    cos, sin = rotary
    left, right = x.float().chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (x.float() * cos + turned * sin).to(x.dtype)


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
        """`mask` [B, N] is true where a token may be attended to."""
        q, k, v = (split_heads(t, self.heads) for t in self.qkv_proj(x).chunk(3, dim=-1))
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
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
        q = split_heads(self.q_proj(x), self.heads)
        k, v = (split_heads(t, self.heads) for t in self.kv_proj(tokens).chunk(2, dim=-1))
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        return self.o_proj(attend(q, k, v, mask))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, D] → [B, H, N, D/H]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention [B, H, N, D/H] → [B, N, D]; rows of `mask` need one true."""
    full = None if mask is None else mask[:, None, None, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=full)
    return y.transpose(1, 2).flatten(-2)


class SwiGLU(nn.Module):
    """Gated feed-forward [.., D] → [.., D]; inner width 2/3 · expansion · D, up to 256s as TRM."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = -(-round(expansion * width * 2 / 3) // 256) * 256
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
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(branches if pre else 0))
        scales = [] if layer_scale is None else [layer_scale] * branches
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), s)) for s in scales)

    def forward(self, branch: int, x: Tensor, function: Branch) -> Tensor:
        y = function(self.norms[branch](x) if self.norm == "pre" else x)
        if self.scales:
            y = y * self.scales[branch]
        return x + y if self.norm == "pre" else rms_norm(x + y)
