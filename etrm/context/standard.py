"""The standard encoder of the experiment guide, and its variational form.

Each pair goes through a transformer and masked pooling; P learned queries attend across pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.context.base import Encoded
from etrm.context.encoder import (
    Bottleneck,
    Encoder,
    EncoderOptions,
    Expand,
    SetAggregator,
    noise_of,
)
from etrm.context.pairs import POOLINGS, PairTokens, Pooling, Sequences
from etrm.data.batch import Batch


@dataclass(frozen=True)
class StandardOptions(EncoderOptions):
    """`source: standard`: per pair a transformer and masked pooling, then P learned queries."""

    source: str = option("the source", "standard", choices=("standard",))
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)
    pooling: str = option("tokens of a pair to one vector", "mean", choices=POOLINGS)


class StandardEncoder(Encoder):
    """[B, K, S] inputs and outputs → [B, P, D]; the order of demos does not matter."""

    Options: ClassVar[type] = StandardOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: StandardOptions, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o = options
        self.pairs = PairTokens(o.pairing, o.width, o.heads, model)
        self.blocks = nn.ModuleList(self.block() for _ in range(o.layers))
        self.pooling = Pooling(o.pooling, o.width, o.heads)
        self.set = SetAggregator(self, o.set_layers)
        self.project = self.make_project()

    def make_project(self) -> nn.Module:
        """What stands behind the aggregation."""
        return self.projection()

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        return self.finish(self.project(self.aggregate(batch)))

    def aggregate(self, batch: Batch) -> Tensor:
        """The pairs, read by the context queries [B, P, E]."""
        return self.set(self.pairs.vectors(batch, self._encode), batch.demo_mask)

    def _encode(self, pairs: Sequences, rows: Tensor) -> Tensor:
        """[n, T, E] → [n, E]."""
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


class VariationalEncoder(StandardEncoder):
    """The pooled aggregate → μ, log σ² → a sample (in training; the mean otherwise) → P × D."""

    Options: ClassVar[type] = VariationalOptions

    def __init__(self, options: VariationalOptions, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.bottleneck = Bottleneck(options.width, options.latent)

    def make_project(self) -> nn.Module:
        return Expand(self.options.latent, self.model)

    def noise_size(self, demos: int) -> int:
        return int(self.options.latent)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        pooled = self.aggregate(batch).mean(dim=1)
        noise = noise_of(batch, self.training, self.options.latent)
        sample, kl = self.bottleneck(pooled, noise)
        return self.finish(self.project(sample), losses={"kl": kl})
