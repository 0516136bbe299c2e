"""Hybrid encoders: the deep CLS encoder of `lpn_deep` for each pair, attention across pairs.

CLS vectors [B, K, E], after LPN (2411.08706), are read by P learned queries as in `standard`,
[B, P, D]; the variational form pools these, normalises them, and samples a latent [B, Z].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.lpn import ClsEncoder, with_cls
from etrm.models.encoders.shared import EncoderOptions, LatentOptions, SetEncoder, VariationalSet
from etrm.models.flops import Work
from etrm.models.layers import rms_norm


@dataclass(frozen=True)
class HybridOptions(EncoderOptions):
    """`source: hybrid`: the pairs of `lpn_deep`, the aggregation of `standard`."""

    source: str = option("the source", "hybrid", choices=("hybrid",))
    layers: int = option("blocks over the tokens of a pair", 4, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class HybridEncoder(SetEncoder):
    """CLS vectors of a deep encoder, read by P learned queries."""

    Options = HybridOptions

    def build(self) -> None:
        """Create the CLS encoder of a pair."""
        self.pairs = self.pair_tokens()
        self.encode = ClsEncoder(self, learned_positions=False)

    def demos_work(self, demos: TokenBounds) -> Work:
        """Count the blocks over CLS and the tokens of pairs."""
        return self.blocks_work(with_cls(demos.of(self.options.pairing)))

    def demos(self, batch: Batch) -> Tensor:
        """Return the CLS vectors [B, K, E]."""
        return self.pairs.vectors(batch, self.encode)


@dataclass(frozen=True)
class HybridVariationalOptions(LatentOptions, HybridOptions):
    """`source: hybrid_variational`: a normal latent behind the aggregation."""

    source: str = option("the source", "hybrid_variational", choices=("hybrid_variational",))


class HybridVariationalEncoder(VariationalSet, HybridEncoder):
    """The aggregate, pooled and normalised, through a normal latent."""

    Options = HybridVariationalOptions

    def pool(self, aggregate: Tensor) -> Tensor:
        """Average and normalise the queries, [B, P, E] → [B, E]."""
        return rms_norm(super().pool(aggregate))
