"""Attention between demos at the level of cells, to find the cells that pairs share.

All cells of a sample's demos are one sequence [B, T, E]: a block within each pair and one across
all pairs alternate. Their means by pair [B, K, E] are read by P learned queries, [B, P, D].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.pairs import Sequences
from etrm.models.encoders.shared import EncoderOptions, SetEncoder
from etrm.models.flops import Work


@dataclass(frozen=True)
class CrossAttentionOptions(EncoderOptions):
    """`source: cross_attention`: cells attend within their pair, then to those of all pairs."""

    source: str = option("the source", "cross_attention", choices=("cross_attention",))
    layers: int = option("times that a block within pairs and one across them follow", 1, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class CrossAttentionEncoder(SetEncoder):
    """All cells of a sample's demos in one sequence, pooled by pair, read by P queries."""

    Options = CrossAttentionOptions

    def build(self) -> None:
        """Create the blocks over the cells of a sample."""
        self.cells = self.pair_tokens(rows="sample")
        self.within, self.across = (self.stack(self.options.layers) for _ in range(2))

    def demos(self, batch: Batch) -> Tensor:
        """Return the mean of each demo's cells [B, K, E]."""

        def encode(cells: Sequences, rows: Tensor) -> Tensor:
            x, same = cells.tokens, cells.same_demo()  # [n, T, E], [n, T, T]
            for within, across in zip(self.within, self.across, strict=True):
                x = across(within(x, cells.rotary, same), cells.rotary, cells.mask)
            return cells.demo_means(x, batch.demo_mask.shape[1])

        return self.cells.vectors(batch, encode)

    def demos_work(self, demos: TokenBounds) -> Work:
        """Count two blocks for each of `layers`; attention within pairs is masked, not skipped."""
        return self.cells_work(demos) * 2

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Count two blocks for each of `layers`."""
        return 2 * super().activation_bytes(tokens, item)
