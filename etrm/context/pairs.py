"""How encoders read demonstration pairs: tokens of a pair, and pooling of tokens.

Shapes: B batch, K demos, S cells of the canvas, T tokens of a pair, D width of the encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from etrm.arc.grid import PAD
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.layers import CrossAttention, Rotary, TokenEmbedding, linear

PAIRINGS = ("aligned", "concat")
POOLINGS = ("mean", "max", "attention", "weighted")


class PairTokens(nn.Module):
    """Demos of a batch as token sequences [B·K, T, D] with a mask [B·K, T] and positions.

    `aligned`: the embeddings of input and output at the same cell are added, on the union of the
    two grids (T = S). `concat`: the input's tokens, then the output's (T = 2S), the two told apart
    by a learned vector each.
    """

    def __init__(self, pairing: str, width: int, heads: int, model: ModelConfig) -> None:
        super().__init__()
        self.pairing = pairing
        self.scale = math.sqrt(width)
        self.embed_inputs = TokenEmbedding(width)
        self.embed_outputs = TokenEmbedding(width)
        self.rotary = Rotary(width // heads, 0, model.positions, model.rope_theta)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Tokens, mask (true for real cells) and rotary positions of all demos."""
        inputs, outputs = batch.demo_inputs.flatten(0, 1), batch.demo_outputs.flatten(0, 1)
        left, right = self.embed_inputs(inputs), self.embed_outputs(outputs)
        cos, sin = self.rotary(math.isqrt(inputs.shape[-1]))
        real_in, real_out = inputs != PAD, outputs != PAD
        if self.pairing == "aligned":
            tokens, mask = (left + right) / math.sqrt(2.0), real_in | real_out
        else:
            tokens, mask = torch.cat([left, right], dim=1), torch.cat([real_in, real_out], dim=1)
            cos, sin = torch.cat([cos, cos]), torch.cat([sin, sin])
        # Attention needs one token to look at: demos that do not exist show their first cell, and
        # are masked out where demos meet.
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        mask = mask | (first & ~mask.any(dim=1, keepdim=True))
        return self.scale * tokens, mask, (cos, sin)


class Pooling(nn.Module):
    """Masked pooling of tokens [N, T, D] → [N, D].

    `mean`; `max`; `attention`: one learned query attends to the tokens; `weighted`: a softmax of
    a learned score per token.
    """

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(width))
            self.attention = CrossAttention(width, heads)
        elif kind == "weighted":
            self.score = linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`mask` [N, T] is true for real tokens, at least one in each row."""
        if self.kind == "attention":
            query = self.query.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            return self.attention(query, tokens, mask)[:, 0]
        if self.kind == "max":
            return tokens.masked_fill(~mask[..., None], -math.inf).amax(dim=1)
        if self.kind == "weighted":
            scores = self.score(tokens).masked_fill(~mask[..., None], -math.inf)
            return (scores.softmax(dim=1) * tokens).sum(dim=1)
        weights = mask[..., None].to(tokens.dtype)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
