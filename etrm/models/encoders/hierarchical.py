"""From cells to grids, from grids to pairs, from pairs to the pattern, pooled at each level.

Blocks over the cells of a grid, pooled [B, K, 2, E]; blocks over the two grids of a pair, averaged
[B, K, E]; P learned queries over the pairs [B, P, D].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.pairs import POOLINGS, Pooling, Sequences
from etrm.models.encoders.shared import EncoderOptions, SetEncoder
from etrm.models.flops import Work, blocks
from etrm.models.layers import learned


@dataclass(frozen=True)
class HierarchicalOptions(EncoderOptions):
    """`source: hierarchical`: a grid, then a pair of grids, then the set of pairs.

    `aligned`: a cell of a grid also shows the other grid's cell at its place.
    """

    source: str = option("the source", "hierarchical", choices=("hierarchical",))
    layers: int = option("blocks over the cells of a grid", 2, ge=1)
    pair_layers: int = option("blocks over the two grids of a pair", 1, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    pooling: str = option("cells of a grid to one vector", "mean", choices=POOLINGS)


class HierarchicalEncoder(SetEncoder):
    """Cells → grids [B, K, 2, E] → pairs [B, K, E] → context [B, P, D]."""

    Options = HierarchicalOptions

    def build(self) -> None:
        """Create the modules of all levels below the set of pairs."""
        o = self.options
        self.grids = self.pair_tokens(rows="grid")
        self.blocks = self.stack(o.layers)
        self.pooling = Pooling(o.pooling, o.width, o.heads)
        self.roles = learned(2, o.width)  # tells the input's vector from the output's
        self.pair_blocks = self.stack(o.pair_layers)

    def demos_work(self, demos: TokenBounds) -> Work:
        """Count grids, each with half of a pair's tokens, their pooling, and the pairs of grids."""
        o, grids = self.options, np.repeat(demos.concat[..., None] / 2, 2, axis=-1)  # [B, K, 2]
        pairs = np.full(demos.concat.shape, 2)  # tokens: the two grids
        cells = self.blocks_work(grids) + self.pooling.work(grids.sum(), (grids > 0).sum())
        return cells + blocks(pairs, o.width, o.expansion) * o.pair_layers

    def demos(self, batch: Batch) -> Tensor:
        """Return a vector for each pair of grids [B, K, E]."""

        def encode(grids: Sequences, rows: Tensor) -> Tensor:
            tokens = self.blocks(grids.tokens, grids.rotary, grids.mask)  # [n, T, E]
            return self.pooling(tokens, grids.real)  # [n, E]

        grids = self.grids.vectors(batch, encode)  # [B, K, 2, E]
        pairs = (grids + self.roles.to(grids.dtype)).flatten(0, 1)  # [B·K, 2, E]
        return self.pair_blocks(pairs).mean(dim=1).unflatten(0, batch.demo_mask.shape)
