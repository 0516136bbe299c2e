"""Attention between demonstrations at the level of cells: what do the pairs share?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import PairTokens, Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions, SetAggregator


@dataclass(frozen=True)
class CrossAttentionOptions(EncoderOptions):
    """`source: cross_attention`: cells attend within their pair, then to those of all pairs."""

    source: str = option("the source", "cross_attention", choices=("cross_attention",))
    layers: int = option("times that a block within pairs and one across them follow", 1, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class CrossAttentionEncoder(Encoder):
    """All cells of a sample's demos in one sequence, pooled by pair, read by P queries."""

    Options: ClassVar[type] = CrossAttentionOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o = options
        self.cells = PairTokens(o.pairing, o.width, o.heads, model, rows="sample")
        self.within = nn.ModuleList(self.block() for _ in range(o.layers))
        self.across = nn.ModuleList(self.block() for _ in range(o.layers))
        self.set = SetAggregator(self, o.set_layers)
        self.project = self.projection()

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        demos = batch.demo_mask.shape[1]
        pooled = self.cells.vectors(batch, lambda cells, rows: self._encode(cells, demos))
        return self.finish(self.project(self.set(pooled, batch.demo_mask)))

    def _encode(self, cells: Sequences, demos: int) -> Tensor:
        """[n, T, E] → the mean of each demo [n, K, E]."""
        x, same = cells.tokens, cells.same_demo()
        for within, across in zip(self.within, self.across, strict=True):
            x = within(x, cells.rotary, same)
            x = across(x, cells.rotary, cells.mask)
        number = torch.arange(demos, device=x.device)
        member = (cells.demos[:, None] == number[:, None]) & cells.real[:, None]  # [n, K, T]
        weights = member.to(x.dtype)
        return weights @ x / weights.sum(dim=-1, keepdim=True).clamp(min=1)

    def activation_bytes(self, tokens: float, item: int) -> float:
        return 2 * super().activation_bytes(tokens, item)
