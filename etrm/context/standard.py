"""The standard encoder of the experiment guide: encode each pair, then attend across pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import Problem, option
from etrm.config.study import ModelConfig
from etrm.context.base import ContextSource, Encoded
from etrm.context.pairs import PAIRINGS, POOLINGS, Pairs, PairTokens, Pooling
from etrm.data.batch import Batch
from etrm.models.layers import (
    Block,
    CrossBlock,
    block_bytes,
    init_normal_,
    linear,
    rms_norm,
)


@dataclass(frozen=True)
class StandardOptions:
    """`source: standard`: per pair a transformer and masked pooling, then P learned queries."""

    source: str = option("the source", "standard", choices=("standard",))
    pairing: str = option(
        "how a demo's input and output meet: `aligned` cell by cell, `concat` one after the other",
        "concat",
        choices=PAIRINGS,
    )
    width: int = option("hidden size of the encoder", 512, ge=4)
    heads: int = option("attention heads; width / heads must be even", 8, ge=1)
    layers: int = option("blocks over the tokens of a pair", 2, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    expansion: float = option(
        "SwiGLU expansion; its inner width, 2/3 · expansion · width, is rounded up to 256s",
        4.0,
        gt=0,
    )
    norm: str = option(
        "`post`: RMS norm after a branch; `pre`: LayerNorm before", "post", choices=("post", "pre")
    )
    layer_scale: float | None = option(
        "first value of a learned scale of branches; null: none", None
    )
    qk_norm: bool = option("RMS norm of queries and keys", False)
    output_scale: float | None = option(
        "RMS of the context tokens in the decoder's stream, where token embeddings have 1;"
        " null: √width of the decoder, as TRM scales its puzzle embeddings",
        None,
        gt=0,
    )
    pooling: str = option("tokens of a pair to one vector", "mean", choices=POOLINGS)

    def problems(self) -> list[Problem]:
        """Head sizes that the rotary positions cannot divide."""
        if self.width % self.heads == 0 and (self.width // self.heads) % 4 == 0:
            return []
        found = f"width {self.width} with {self.heads} heads"
        return [Problem("width", found, "a multiple of 4 × heads")]


class StandardEncoder(ContextSource):
    """[B, K, S] inputs and outputs → [B, P, D]; the order of demos does not matter."""

    Options: ClassVar[type] = StandardOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: StandardOptions, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o, blocks = options, (options.width, options.heads, options.expansion)
        style = (o.norm, o.layer_scale, o.qk_norm)
        self.scale = math.sqrt(model.width) if o.output_scale is None else o.output_scale
        self.pairs = PairTokens(o.pairing, o.width, o.heads, model)
        self.blocks = nn.ModuleList(Block(*blocks, *style) for _ in range(o.layers))
        self.pooling = Pooling(o.pooling, o.width, o.heads)
        self.queries = nn.Parameter(torch.empty(model.context_tokens, o.width))
        init_normal_(self.queries, 1.0)
        self.set_blocks = nn.ModuleList(CrossBlock(*blocks, *style) for _ in range(o.set_layers))
        same = o.width == model.width
        self.project = nn.Identity() if same else linear(o.width, model.width)

    def activation_bytes(self, tokens: float, item: int) -> float:
        o = self.options
        queries = self.model.context_tokens * o.set_layers
        return (tokens * o.layers + queries) * block_bytes(o.width, o.expansion, item)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        pooled = self.pairs.vectors(batch, self._encode)  # [B, K, width]
        x = self.queries.to(pooled.dtype).expand(len(batch), -1, -1)
        for block in self.set_blocks:
            x = block(x, pooled, batch.demo_mask)
        return Encoded(self.scale * rms_norm(self.project(x)))

    def _encode(self, pairs: Pairs) -> Tensor:
        """[n, T, width] → [n, width]."""
        tokens = pairs.tokens
        for block in self.blocks:
            tokens = block(tokens, pairs.rotary, pairs.mask)
        return self.pooling(tokens, pairs.real)
