"""From cells to grids, from grids to pairs, from pairs to the pattern, pooled at each level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import POOLINGS, PairTokens, Pooling, Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions, SetAggregator
from etrm.models.layers import init_normal_


@dataclass(frozen=True)
class HierarchicalOptions(EncoderOptions):
    """`source: hierarchical`: a grid, then a pair of grids, then the set of pairs.

    `aligned`: a cell of a grid also shows what the other grid has there.
    """

    source: str = option("the source", "hierarchical", choices=("hierarchical",))
    layers: int = option("blocks over the cells of a grid", 2, ge=1)
    pair_layers: int = option("blocks over the two grids of a pair", 1, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    pooling: str = option("cells of a grid to one vector", "mean", choices=POOLINGS)


class HierarchicalEncoder(Encoder):
    """Cells → grids [B, K, 2, E] → pairs [B, K, E] → context [B, P, D]."""

    Options: ClassVar[type] = HierarchicalOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o = options
        self.grids = PairTokens(o.pairing, o.width, o.heads, model, rows="grid")
        self.blocks = nn.ModuleList(self.block() for _ in range(o.layers))
        self.pooling = Pooling(o.pooling, o.width, o.heads)
        self.roles = nn.Parameter(init_normal_(torch.empty(2, o.width), 1.0))
        self.pair_blocks = nn.ModuleList(self.block() for _ in range(o.pair_layers))
        self.set = SetAggregator(self, o.set_layers)
        self.project = self.projection()

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        grids = self.grids.vectors(batch, self._encode)  # [B, K, 2, E]
        pairs = (grids + self.roles.to(grids.dtype)).flatten(0, 1)
        for block in self.pair_blocks:
            pairs = block(pairs)
        pairs = pairs.mean(dim=1).unflatten(0, batch.demo_mask.shape)
        return self.finish(self.project(self.set(pairs, batch.demo_mask)))

    def _encode(self, grids: Sequences, rows: Tensor) -> Tensor:
        """[n, T, E] → [n, E]."""
        tokens = grids.tokens
        for block in self.blocks:
            tokens = block(tokens, grids.rotary, grids.mask)
        return self.pooling(tokens, grids.real)
