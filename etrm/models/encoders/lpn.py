"""Encoders after the Latent Program Network (arXiv 2411.08706): a CLS token a pair, then the mean.

`lpn` as in the paper (small, pre-norm, learned positions), `lpn_deep` at the decoder's width with
rotary positions; the variational forms have a normal latent per demo, or of all demos together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.arc.grid import MAX_SIDE
from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import PairTokens, Sequences
from etrm.models.encoders.shared import (
    Bottleneck,
    Encoder,
    EncoderOptions,
    Expand,
    mean_over,
    noise_of,
)
from etrm.models.layers import LayerNorm, init_normal_, rms_norm


class ClsEncoder(nn.Module):
    """Blocks over a learned CLS token and the tokens of a pair; the vector of CLS, [n, E].

    `learned`: a vector for each row, column and grid (input or output) is added to the tokens;
    otherwise positions are rotary, and CLS stands before the first cell.
    """

    def __init__(self, encoder: Encoder, learned: bool) -> None:
        super().__init__()
        width, self.learned = encoder.options.width, learned
        self.cls = nn.Parameter(init_normal_(torch.empty(width), 1.0))
        self.blocks = nn.ModuleList(encoder.block() for _ in range(encoder.options.layers))
        self.norm: nn.Module | None = LayerNorm(width) if encoder.options.norm == "pre" else None
        if learned:
            self.rows = nn.Parameter(init_normal_(torch.empty(MAX_SIDE, width), 0.5))
            self.columns = nn.Parameter(init_normal_(torch.empty(MAX_SIDE, width), 0.5))
            self.channels = nn.Parameter(init_normal_(torch.empty(2, width), 0.5))

    def forward(self, pairs: Sequences, rows: Tensor) -> Tensor:
        x, n = pairs.tokens, len(pairs.tokens)
        rotary: tuple[Tensor, Tensor] | None = None
        if self.learned:
            x = x + self._positions(pairs).to(x.dtype)
        else:
            cos, sin = pairs.rotary
            still = torch.ones_like(cos[:, :1]), torch.zeros_like(sin[:, :1])
            rotary = torch.cat([still[0], cos], dim=1), torch.cat([still[1], sin], dim=1)
        x = torch.cat([self.cls.to(x.dtype).expand(n, 1, -1), x], dim=1)
        mask = None
        if pairs.mask is not None:
            mask = torch.cat([torch.ones_like(pairs.mask[:, :1]), pairs.mask], dim=1)
        for block in self.blocks:
            x = block(x, rotary, mask)
        return x[:, 0] if self.norm is None else self.norm(x[:, 0])

    def _positions(self, pairs: Sequences) -> Tensor:
        """[n, T, E]; a cell of both grids has the channels of both."""
        place = self.rows[pairs.places // pairs.side] + self.columns[pairs.places % pairs.side]
        return place + self.channels[pairs.outputs.long()]


@dataclass(frozen=True)
class LpnOptions(EncoderOptions):
    """`source: lpn`: the encoder of the LPN paper."""

    source: str = option("the source", "lpn", choices=("lpn",))
    width: int = option("hidden size of the encoder", 128, ge=4)
    norm: str = option(
        "`post`: RMS norm after a branch; `pre`: LayerNorm before", "pre", choices=("post", "pre")
    )


class LpnEncoder(Encoder):
    """CLS vectors of the pairs, their mean, and a linear map to P × D."""

    Options: ClassVar[type] = LpnOptions
    order_invariant: ClassVar[bool] = True
    learned_positions: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.pairs = PairTokens(options.pairing, options.width, options.heads, model)
        self.encode = ClsEncoder(self, self.learned_positions)
        self.expand = Expand(self.inputs, model)

    @property
    def inputs(self) -> int:
        """Size of the vector that is expanded to context tokens."""
        return int(self.options.width)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        demos = self.pairs.vectors(batch, self.encode)
        return self.finish(self.expand(mean_over(demos, batch.demo_mask)))


class VariationalLpn(LpnEncoder):
    """Behind the CLS vectors a normal latent: of each demo, before the mean, or of their mean."""

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.bottleneck = Bottleneck(options.width, options.latent)

    @property
    def inputs(self) -> int:
        return int(self.options.latent)

    @property
    def per_demo(self) -> bool:
        """A latent for each demo?"""
        return bool(getattr(self.options, "bottleneck", "per_demo") == "per_demo")

    def noise_size(self, demos: int) -> int:
        return int(self.options.latent) * (demos if self.per_demo else 1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        demos, mask = self.pairs.vectors(batch, self.encode), batch.demo_mask
        latent = self.options.latent
        if self.per_demo:
            noise = noise_of(batch, self.training, mask.shape[1], latent)
            samples, kls = self.bottleneck(demos, noise)
            sample, kl = mean_over(samples, mask), mean_over(kls, mask)
        else:
            noise = noise_of(batch, self.training, latent)
            sample, kl = self.bottleneck(rms_norm(mean_over(demos, mask)), noise)
        return self.finish(self.expand(sample), losses={"kl": kl})


@dataclass(frozen=True)
class LpnVariationalOptions(LpnOptions):
    """`source: lpn_variational`: μ and log σ² for each demo, sampled, then averaged."""

    source: str = option("the source", "lpn_variational", choices=("lpn_variational",))
    latent: int = option("size of the latent", 32, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)


class LpnVariationalEncoder(VariationalLpn):
    """LPN's own encoder: a latent for each demo."""

    Options: ClassVar[type] = LpnVariationalOptions


@dataclass(frozen=True)
class LpnDeepOptions(EncoderOptions):
    """`source: lpn_deep`: 4 to 8 layers at the decoder's width, rotary positions."""

    source: str = option("the source", "lpn_deep", choices=("lpn_deep",))
    layers: int = option("blocks over the tokens of a pair", 4, ge=1)


class LpnDeepEncoder(LpnEncoder):
    """CLS vectors of a deep encoder, their mean, and a linear map to P × D."""

    Options: ClassVar[type] = LpnDeepOptions
    learned_positions: ClassVar[bool] = False


@dataclass(frozen=True)
class LpnDeepVariationalOptions(LpnDeepOptions):
    """`source: lpn_deep_variational`: the same with a normal latent."""

    source: str = option("the source", "lpn_deep_variational", choices=("lpn_deep_variational",))
    latent: int = option("size of the latent", 256, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)
    bottleneck: str = option(
        "`per_demo`: a latent for each demo, then their mean; `aggregated`: one for their mean",
        "per_demo",
        choices=("per_demo", "aggregated"),
    )


class LpnDeepVariationalEncoder(VariationalLpn):
    """A deep encoder with a latent for each demo, or of all."""

    Options: ClassVar[type] = LpnDeepVariationalOptions
    learned_positions: ClassVar[bool] = False
