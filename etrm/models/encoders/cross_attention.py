"""Attention between demos at the level of cells, to find the cells that pairs share.

All cells of a sample's demos are one sequence [B, T, E]: a block within each pair and one across
all pairs alternate. Their means by pair [B, K, E] are read by P learned queries, [B, P, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions, SetAggregator


@dataclass(frozen=True)
class CrossAttentionOptions(EncoderOptions):
    """`source: cross_attention`: cells attend within their pair, then to those of all pairs."""

    source: str = option("the source", "cross_attention", choices=("cross_attention",))
    layers: int = option("times that a block within pairs and one across them follow", 1, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class CrossAttentionEncoder(Encoder):
    """All cells of a sample's demos in one sequence, pooled by pair, read by P queries."""

    Options = CrossAttentionOptions

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cells = self.pair_tokens(rows="sample")
        self.within, self.across = (self.stack(self.options.layers) for _ in range(2))
        self.set = SetAggregator(self, self.options.set_layers)
        self.project = self.projection()

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode the cells, average by demo, aggregate, project."""
        demos = batch.demo_mask.shape[1]
        pooled = self.cells.vectors(batch, lambda cells, rows: self._encode(cells, demos))
        return self.finish(self.project(self.set(pooled, batch.demo_mask)))

    def _encode(self, cells: Sequences, demos: int) -> Tensor:
        """Map cells [n, T, E] to the mean of each demo [n, K, E]."""
        x, same = cells.tokens, cells.same_demo()
        for within, across in zip(self.within, self.across, strict=True):
            x = across(within(x, cells.rotary, same), cells.rotary, cells.mask)
        number = torch.arange(demos, device=x.device)
        member = (cells.demos[:, None] == number[:, None]) & cells.real[:, None]  # [n, K, T]
        weights = member.to(x.dtype)
        return weights @ x / weights.sum(dim=-1, keepdim=True).clamp(min=1)

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Count two blocks for each of `layers`."""
        return 2 * super().activation_bytes(tokens, item)
