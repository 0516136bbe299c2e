"""Hybrid encoders: a deep CLS encoder for each pair, cross-attention across pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
from etrm.context.lpn import ClsEncoder
from etrm.context.pairs import PairTokens
from etrm.data.batch import Batch
from etrm.models.layers import rms_norm


@dataclass(frozen=True)
class HybridOptions(EncoderOptions):
    """`source: hybrid`: the pairs of `lpn_deep`, the aggregation of `standard`."""

    source: str = option("the source", "hybrid", choices=("hybrid",))
    layers: int = option("blocks over the tokens of a pair", 4, ge=1)
    set_layers: int = option("blocks in which the context queries read the pairs", 2, ge=1)


class HybridEncoder(Encoder):
    """CLS vectors of a deep encoder, read by P learned queries."""

    Options: ClassVar[type] = HybridOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.pairs = PairTokens(options.pairing, options.width, options.heads, model)
        self.encode = ClsEncoder(self, learned=False)
        self.set = SetAggregator(self, options.set_layers)
        self.project = self.make_project()

    def make_project(self) -> nn.Module:
        """What stands behind the aggregation."""
        return self.projection()

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        return self.finish(self.project(self.aggregate(batch)))

    def aggregate(self, batch: Batch) -> Tensor:
        """The pairs, read by the context queries [B, P, E]."""
        return self.set(self.pairs.vectors(batch, self.encode), batch.demo_mask)


@dataclass(frozen=True)
class HybridVariationalOptions(HybridOptions):
    """`source: hybrid_variational`: a normal latent behind the aggregation."""

    source: str = option("the source", "hybrid_variational", choices=("hybrid_variational",))
    latent: int = option("size of the latent", 256, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)


class HybridVariationalEncoder(HybridEncoder):
    """The aggregate, pooled and normalised, → μ, log σ² → a sample → P × D."""

    Options: ClassVar[type] = HybridVariationalOptions

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.bottleneck = Bottleneck(options.width, options.latent)

    def make_project(self) -> nn.Module:
        return Expand(self.options.latent, self.model)

    def noise_size(self, demos: int) -> int:
        return int(self.options.latent)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        pooled = rms_norm(self.aggregate(batch).mean(dim=1))
        noise = noise_of(batch, self.training, self.options.latent)
        sample, kl = self.bottleneck(pooled, noise)
        return self.finish(self.project(sample), losses={"kl": kl})
