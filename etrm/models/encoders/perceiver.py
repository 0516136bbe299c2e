"""Learned queries that read the cells of all demos, and no vector of a pair between.

Blocks over the cells of each pair, then P learned queries that cross-attend to the real cells of
all demos, [B, P, D]: Perceiver IO's output queries (Jaegle et al., 2107.14795), the pooling by
attention of a Set Transformer (Lee et al., 1810.00825) over cells. A query can look up one cell,
as the new colour of an old one, where a pooled pair is one mixture of all its cells. As in the
Perceiver, each cell has features of its place; and it has the code of its demo, by which a query
that has read one cell finds the others of the same demo in the next layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.pairs import DemoCodes, LearnedPlaces, Sequences
from etrm.models.encoders.shared import EncoderOptions, SetEncoder, default
from etrm.models.flops import Work, maps
from etrm.models.layers import STD_POSITION, rms_norm


@dataclass(frozen=True)
class PerceiverOptions(EncoderOptions):
    """`source: perceiver`: blocks over a pair's cells, then queries read the cells of all pairs."""

    source: str = option("the source", "perceiver", choices=("perceiver",))
    pairing: str = default("pairing", "aligned")
    set_layers: int = option("blocks in which the context queries read the cells", 2, ge=1)


class PerceiverEncoder(SetEncoder):
    """All cells of a sample's demos in one sequence, read by P queries."""

    Options = PerceiverOptions

    def build(self) -> None:
        """Create the blocks over cells, and the codes that tell the cells of all demos apart."""
        o = self.options
        self.cells = self.pair_tokens(rows="sample")
        self.places = LearnedPlaces(o.width)
        self.codes = DemoCodes(o.width, o.heads)
        self.blocks = self.stack(o.layers)

    def aggregate(self, batch: Batch) -> Tensor:
        """Return the context queries after they read the cells [B, P, E]."""

        def read(cells: Sequences, rows: Tensor) -> Tensor:
            codes = self.codes(cells, batch.demo_mask[rows])  # [n, T, E]
            tokens = rms_norm(cells.tokens + self.places(cells) + STD_POSITION * codes)
            tokens = self.blocks(tokens, cells.rotary, cells.same_demo())
            return self.set(tokens, cells.mask)

        return self.cells.vectors(batch, read)

    def aggregate_work(self, demos: TokenBounds) -> Work:
        """Count the blocks over cells, and how the queries read all of them."""
        samples, cells = len(demos.concat), self.mean_cells(demos)
        read = self.reading_work(self.model.context_tokens, cells) * self.options.set_layers
        return self.cells_work(demos) + maps(self.codes, demos.concat.size) + read * samples

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Count the keys and values of all cells in each of `set_layers`, beside the blocks."""
        o = self.options
        read = 2 * item * o.width * tokens * o.set_layers
        return super().activation_bytes(tokens, item) + read
