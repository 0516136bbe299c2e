"""The standard encoder of the experiment guide, and its variational form.

Each pair goes through a transformer and masked pooling; P learned queries attend across pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from etrm.config.schema import option
from etrm.models.encoders.pairs import POOLINGS, Pooling, Sequences
from etrm.models.encoders.shared import EncoderOptions, SetEncoder, VariationalSet


@dataclass(frozen=True)
class StandardOptions(EncoderOptions):
    """`source: standard`: per pair a transformer and masked pooling, then P learned queries."""

    source: str = option("the source", "standard", choices=("standard",))
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    pooling: str = option("tokens of a pair to one vector", "mean", choices=POOLINGS)


class StandardEncoder(SetEncoder):
    """Blocks over the tokens of a pair, then their pooling."""

    Options: ClassVar[type] = StandardOptions

    def build(self) -> None:
        o = self.options
        self.blocks = nn.ModuleList(self.block() for _ in range(o.layers))
        self.pooling = Pooling(o.pooling, o.width, o.heads)

    def encode_pair(self, pairs: Sequences, rows: Tensor) -> Tensor:
        tokens = pairs.tokens
        for block in self.blocks:
            tokens = block(tokens, pairs.rotary, pairs.mask)
        return self.pooling(tokens, pairs.real)


@dataclass(frozen=True)
class VariationalOptions(StandardOptions):
    """`source: variational`: the standard encoder, then a variational bottleneck."""

    source: str = option("the source", "variational", choices=("variational",))
    latent: int = option("size of the latent", 256, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)


class VariationalEncoder(VariationalSet, StandardEncoder):
    """The standard encoder's aggregate through a normal latent."""

    Options: ClassVar[type] = VariationalOptions
