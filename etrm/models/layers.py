"""The building blocks that encoders and decoder share, and the initial values of all weights.

Shape suffixes: B batch, N tokens that attend, M tokens attended to, P context tokens, D width,
H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.arc.grid import VOCAB_SIZE
from etrm.config.lanes import MAX_SIDE, Lane

NORM_EPS = 1e-5
Angles = tuple[Tensor, Tensor]  # cos and sin of rotary positions, [N, D/H] or [B, N, D/H]

STD_VECTOR = 1.0  # first states, learned queries, CLS tokens: as long as an RMS-normed token
STD_POSITION = 0.5  # learned rows, columns and grids: three of them are added to a token
Q_BIAS = -5.0  # halting starts improbable, so samples use their steps before they learn to stop
# A unit normal cut at ±2 has this standard deviation: dividing by it restores the one asked for.
CUT_STD = 0.8796256610342398


def init_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill `tensor` with a normal of deviation `std`, cut at two deviations of the uncut normal.

    | weights | standard deviation |
    |---|---|
    | linear maps | 1/√fan_in; biases are 0 |
    | token embeddings [V, D] | 1/√D; the stream multiplies them by √D, to an RMS of 1 |
    | H_init, L_init, learned vectors of encoders | `STD_VECTOR` |
    | learned positions of encoders | `STD_POSITION` |
    | q-head, table of puzzle embeddings | 0; the q-head's bias is `Q_BIAS` |
    | query of attention pooling | 1, uncut |
    | layer scale | 0, at the value of the option |

    The initialisers of TRM (2510.04871), which follow JAX's.
    """
    with torch.no_grad():
        bound = 2.0 * std / CUT_STD
        return nn.init.trunc_normal_(tensor, std=std / CUT_STD, a=-bound, b=bound)


def learned(*shape: int, std: float = STD_VECTOR) -> nn.Parameter:
    """Return a parameter of `shape` with initial values of `init_normal_`."""
    return nn.Parameter(init_normal_(torch.empty(shape), std))


class Linear(nn.Linear):
    """A linear map whose float32 weights are cast to the number format of its input."""

    hoisted: Tensor | None = None  # the weight cast once for many uses, by `models.compute`

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        init_normal_(self.weight, 1.0 / math.sqrt(inputs))
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        weight = self.weight.to(input.dtype) if self.hoisted is None else self.hoisted
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, weight, bias)


def rms_norm(x: Tensor) -> Tensor:
    """Divide `x` [..., D] by its root mean square over the last axis (1910.07467, no weights)."""
    y = x.float()  # squares of bfloat16 would lose most digits
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


class TokenEmbedding(nn.Module):
    """Embed token ids [...] to [..., D]."""

    dtype = torch.float32  # the number format of the stream, set by `models.compute`

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_weight = learned(VOCAB_SIZE, width, std=1.0 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of `tokens`."""
        return F.embedding(tokens, self.embedding_weight.to(self.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm, computed in float32 for inputs of every number format."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [..., D] over the last axis."""
        return super().forward(input.float()).to(input.dtype)


class Rotary(nn.Module):
    """Rotary positions of P context tokens and the cells of a canvas (Su et al., 2104.09864).

    A cell has its position on the 30×30 canvas in every lane, so that weights mean the same in all
    lanes. `rope`: position P + 30·row + column. `rope_2d`: the first half of a head turns with the
    row, the second with the column; context token p stands at row 30, column p.
    """

    cos: Tensor  # [P + 900, head width]
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
            positions = [torch.cat([context, cells.flatten()])]
        else:
            rows = torch.cat([torch.full_like(context, MAX_SIDE), row.flatten()])
            positions = [rows, torch.cat([context, column.flatten()])]
        angles = torch.cat([p[:, None].float() * frequencies for p in positions], dim=-1)
        angles = torch.cat([angles, angles], dim=-1)  # `rotate` pairs channel i with i + half
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, lane: Lane) -> Angles:
        """Return cos and sin [P + S, head width] for a canvas of `lane`."""
        rows, columns = (torch.arange(n, device=self.cos.device) for n in (lane.rows, lane.columns))
        index = (self.context_tokens + MAX_SIDE * rows[:, None] + columns).flatten()
        index = torch.cat([torch.arange(self.context_tokens, device=index.device), index])
        return self.cos[index], self.sin[index]

    def beside(self, places: Tensor, lane: Lane) -> Angles:
        """Return cos and sin [B, C + S, head width] for C tokens in front of a canvas.

        `places` [B, C] int64: their cells on the canvas, in reading order; -1 for no cell, which
        has the position of the first context token.
        """
        row, column = places // lane.columns, places % lane.columns
        index = self.context_tokens + MAX_SIDE * row + column  # [B, C]
        index = torch.where(places < 0, 0, index)
        cos, sin = (t[self.context_tokens :].expand(len(places), -1, -1) for t in self(lane))
        return torch.cat([self.cos[index], cos], dim=1), torch.cat([self.sin[index], sin], dim=1)


def rotate(x: Tensor, rotary: Angles) -> Tensor:
    """Turn the pairs of channels (i, i + half) of each head of `x` [B, N, H, head width].

    `rotary`: cos and sin, [N, head width] or, where sequences differ, [B, N, head width].
    """
    cos, sin = (t.unsqueeze(-2) for t in rotary)  # the same for all heads
    left, right = x.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)  # in float32, as cos and sin are


@dataclass(frozen=True)
class Segments:
    """Rows of tokens cut into segments, of which each attends within itself.

    Flash kernels take no mask, but sequences of any lengths. The padding of a row is a segment as
    well, so shapes are those of the rows, and the host need not know the lengths.
    """

    ends: Tensor  # [B, G] int32: tokens of a row up to the end of each segment; the last at N

    @staticmethod
    def of(lengths: Tensor, tokens: int) -> Segments:
        """Return segments of `lengths` [B, G - 1], and the rest of a row of so many `tokens`."""
        return Segments(F.pad(lengths.cumsum(dim=1), (0, 1), value=tokens).int())

    def behind(self, tokens: int) -> Segments:
        """Return the segments after so many `tokens` were put in front of the first of each row."""
        return Segments(self.ends + tokens)

    def first(self, tokens: int) -> Tensor:
        """Return bool [B, N]: true for the `tokens` of a row that are of its first segment."""
        return torch.arange(tokens, device=self.ends.device) < self.ends[:, :1]

    def sequences(self, tokens: int) -> Tensor:
        """Return where the segments of all rows begin and end [B·G + 1] in B·N tokens."""
        rows = torch.arange(len(self.ends), dtype=torch.int32, device=self.ends.device)
        return F.pad((rows[:, None] * tokens + self.ends).flatten(), (1, 0))


Mask = Tensor | Segments | None  # of keys; None: all tokens attend to all


def has_flash(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Return whether attention has flash kernels there: `Segments` are then faster than a mask."""
    if device.type != "cuda" or dtype not in {torch.bfloat16, torch.float16} or head_width % 8:
        return False
    known = torch.version.cuda is not None and head_width <= 256
    return known and torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] → [B, N, D]; no bias, not causal."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv_proj = Linear(width, 3 * width)
        self.o_proj = Linear(width, width)

    def forward(self, x: Tensor, rotary: Angles | None, mask: Mask) -> Tensor:
        """Attend where `mask`, bool [B, N] of keys or [B, N, N] of pairs, is true.

        Or within `Segments`, where attention on the device has flash kernels.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (3 * self.heads, -1))  # [B, N, 3H, D/H]
        qk, v = qkv.split([2 * self.heads, self.heads], dim=2)  # q and k are treated alike
        if self.qk_norm:
            qk = rms_norm(qk)
        if rotary is not None:
            qk = rotate(qk, rotary)
        q, k = qk.chunk(2, dim=2)
        if isinstance(mask, Segments):
            return self.o_proj(attend_within(q, k, v, mask))
        return self.o_proj(attend(q, k, v, mask))


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, N, D] to tokens [B, M, D]."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.q_proj = Linear(width, width)
        self.kv_proj = Linear(width, 2 * width)
        self.o_proj = Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, mask: Mask) -> Tensor:
        """Attend to the tokens where `mask`, bool [B, M], is true, or to the first segment."""
        if isinstance(mask, Segments):  # queries are few: a mask costs them little
            mask = mask.first(tokens.shape[1])
        q = self.q_proj(x).unflatten(-1, (self.heads, -1))  # [B, N, H, D/H]
        k, v = self.kv_proj(tokens).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        return self.o_proj(attend(q, k, v, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, [B, N, H, D/H] → [B, N, D].

    `mask` is bool [B, M], or [B, N, M] where it differs by query; each row of it needs one true.
    """
    if mask is not None:  # to [B, heads, queries, keys]
        mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, N, D/H]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


def attend_within(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Scaled dot-product attention of tokens to those of their segment, as `attend`."""
    from torch.nn.attention.varlen import varlen_attn  # takes seconds, and only GPUs need it

    size, tokens = q.shape[:2]
    ends = segments.sequences(tokens)
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # [B·N, H, D/H]
    out: Any = varlen_attn(q, k, v, ends, ends, tokens, tokens)
    joined: Tensor = out.unflatten(0, (size, tokens)).flatten(-2)
    return joined


def inner_width(width: int, expansion: float) -> int:
    """Return the inner width of a SwiGLU: 2/3 · expansion · width, rounded up to 256s as in TRM."""
    return -(-round(expansion * width * 2 / 3) // 256) * 256


def block_bytes(width: int, expansion: float, item: int) -> int:
    """Return the bytes of a token that a `Block` saves for its backward pass.

    `item`: bytes of a number. Saved are the block's input, q and k before and after rotation, v,
    the attention's output, the input of the feed-forward, its gate, up, activation and product,
    and, in float32, the inputs of both norms.
    """
    return item * (8 * width + 4 * inner_width(width, expansion)) + 8 * width


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer, 2002.05202), [..., D] → [..., D]."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = inner_width(width, expansion)
        self.gate_up_proj = Linear(width, 2 * inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return down(silu(gate(x)) · up(x))."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Residuals(nn.Module):
    """Norm placement and layer scale of the branches of a block.

    `norm`: `post` (TRM: RMS norm after each residual) or `pre` (LayerNorm before each branch);
    `layer_scale`: first value of a learned factor per channel of each branch (2103.17239).
    """

    def __init__(
        self, width: int, norm: str = "post", layer_scale: float | None = None, branches: int = 2
    ) -> None:
        super().__init__()
        self.norm, self.branches = norm, branches
        self.open_end = False  # the last branch's sum is not normalised: the next layer does that
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(branches * (norm == "pre")))
        scales = [] if layer_scale is None else [layer_scale] * branches
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), s)) for s in scales)

    def forward(self, branch: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Add branch number `branch`, computed by `function`, to `x` [..., D]."""
        y = function(self.norms[branch](x) if self.norm == "pre" else x)
        if self.scales:
            y = y * self.scales[branch].to(y.dtype)  # the stream keeps its number format
        is_last = branch == self.branches - 1
        return x + y if self.norm == "pre" or (self.open_end and is_last) else rms_norm(x + y)


class Block(nn.Module):
    """Self-attention and SwiGLU with residuals, [B, N, D] → [B, N, D]; `style` of `Residuals`."""

    branch = "self_attn"  # its name in checkpoints
    attention: type[nn.Module] = Attention

    def __init__(
        self, width: int, heads: int, expansion: float, qk_norm: bool = False, **style: Any
    ) -> None:
        super().__init__()
        self.add_module(self.branch, self.attention(width, heads, qk_norm))
        self.mlp = SwiGLU(width, expansion)
        self.residuals = Residuals(width, **style)

    def forward(self, x: Tensor, read: Any = None, mask: Mask = None) -> Tensor:
        """Return `x` after both branches; `read`, `mask`: arguments of the attention."""
        attention = getattr(self, self.branch)
        x = self.residuals(0, x, lambda y: attention(y, read, mask))
        return self.residuals(1, x, self.mlp)


class CrossBlock(Block):
    """Queries [B, N, D] that read tokens [B, M, D] by cross-attention, then a SwiGLU."""

    branch, attention = "cross_attn", CrossAttention


class Stack(nn.ModuleList):
    """Blocks one after the other, each with the same further arguments."""

    def leave_last_sum(self) -> None:
        """Give the last block's sum as it is, for the next layer to normalise."""
        last = self[-1]
        assert isinstance(last, Block)
        last.residuals.open_end = True

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Return `x` [B, N, D] after all blocks."""
        for block in self:
            x = block(x, *rest)
        return x
