"""Hybrid encoders: a deep CLS encoder for each pair, cross-attention across pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etrm.config.schema import option
from etrm.models.encoders.lpn import ClsEncoder
from etrm.models.encoders.pairs import Sequences
from etrm.models.encoders.shared import EncoderOptions, SetEncoder, VariationalSet
from etrm.models.layers import rms_norm


@dataclass(frozen=True)
class HybridOptions(EncoderOptions):
    """`source: hybrid`: the pairs of `lpn_deep`, the aggregation of `standard`."""

    source: str = option("the source", "hybrid", choices=("hybrid",))
    layers: int = option("blocks over the tokens of a pair", 4, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class HybridEncoder(SetEncoder):
    """CLS vectors of a deep encoder, read by P learned queries."""

    Options: ClassVar[type] = HybridOptions

    def build(self) -> None:
        self.encode = ClsEncoder(self, learned=False)

    def encode_pair(self, pairs: Sequences, rows: Tensor) -> Tensor:
        vectors: Tensor = self.encode(pairs, rows)
        return vectors


@dataclass(frozen=True)
class HybridVariationalOptions(HybridOptions):
    """`source: hybrid_variational`: a normal latent behind the aggregation."""

    source: str = option("the source", "hybrid_variational", choices=("hybrid_variational",))
    latent: int = option("size of the latent", 256, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)


class HybridVariationalEncoder(VariationalSet, HybridEncoder):
    """The aggregate, pooled and normalised, through a normal latent."""

    Options: ClassVar[type] = HybridVariationalOptions

    def pool(self, aggregate: Tensor) -> Tensor:
        return rms_norm(super().pool(aggregate))
