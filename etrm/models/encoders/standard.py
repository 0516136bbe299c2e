"""The standard encoder, and its variational form.

Each pair goes through a transformer and masked pooling to one vector [B, K, E]; P learned queries
attend across pairs, [B, P, D]. `variational` sends their mean through a normal latent [B, Z]
(Kingma and Welling, 1312.6114).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.pairs import POOLINGS, Pooling, Sequences
from etrm.models.encoders.shared import EncoderOptions, LatentOptions, SetEncoder, VariationalSet
from etrm.models.flops import Work


@dataclass(frozen=True)
class StandardOptions(EncoderOptions):
    """`source: standard`: per pair a transformer and masked pooling, then P learned queries."""

    source: str = option("the source", "standard", choices=("standard",))
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    pooling: str = option("tokens of a pair to one vector", "mean", choices=POOLINGS)


class StandardEncoder(SetEncoder):
    """Blocks over the tokens of a pair, then their pooling."""

    Options = StandardOptions

    def build(self) -> None:
        """Create the blocks over a pair, and their pooling."""
        o = self.options
        self.pairs = self.pair_tokens()
        self.blocks = self.stack(o.layers)
        self.pooling = Pooling(o.pooling, o.width, o.heads)

    def demos_work(self, demos: TokenBounds) -> Work:
        """Count the blocks over the tokens of pairs, and their pooling."""
        lengths = demos.of(self.options.pairing)
        return self.blocks_work(lengths) + self.pooling.work(lengths.sum(), (lengths > 0).sum())

    def demos(self, batch: Batch) -> Tensor:
        """Return the pooled tokens of each pair [B, K, E]."""

        def encode(pairs: Sequences, rows: Tensor) -> Tensor:
            tokens = self.blocks(pairs.tokens, pairs.rotary, pairs.mask)  # [n, T, E]
            return self.pooling(tokens, pairs.real)  # [n, E]

        return self.pairs.vectors(batch, encode)


@dataclass(frozen=True)
class VariationalOptions(LatentOptions, StandardOptions):
    """`source: variational`: the standard encoder, then a variational bottleneck."""

    source: str = option("the source", "variational", choices=("variational",))


class VariationalEncoder(VariationalSet, StandardEncoder):
    """The standard encoder's aggregate through a normal latent."""

    Options = VariationalOptions
