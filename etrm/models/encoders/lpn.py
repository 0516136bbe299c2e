"""Encoders after the Latent Program Network (arXiv 2411.08706): a CLS token a pair, then the mean.

`lpn` is LPN's (pre-norm, learned positions), `lpn_deep` one at the decoder's width with rotary
positions. CLS vectors [B, K, E] → mean [B, E] → linear map [B, P, D]; the variational forms have a
normal latent [B, K, Z] of each demo, before the mean, or [B, Z] of all demos, behind it.

| | layers | heads × width | MLP | latent | encoder |
|---|---|---|---|---|---|
| the paper's for ARC-AGI (table 16) | 8 | 8 × 64 | 4 | 256, KL weight 1e-4 | 25.5 M |
| defaults of its code (`src/models/utils.py`) | 2 | 8 × 16 | 4 | 32 | 0.4 M |

The defaults of `lpn` and `lpn_variational` are the small ones. `lpn_variational` with `layers: 8`,
`width: 512`, `latent: 256` has the paper's sizes: 27.6 M, and 2.1 M for the map to P × D.
Parameters are counted from sizes: with table 16's decoder they are 44.6 M, where the paper says
178M, which is the number of their bytes in float32. Differences here: SwiGLU for SiLU in the MLP
(2 M more); no tokens for the shapes of grids, which EOS marks; learned rows and columns, as in
LPN's code and in the paper's first version (rotary in the last).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import LearnedPlaces, Sequences
from etrm.models.encoders.shared import (
    Encoder,
    EncoderOptions,
    Expand,
    LatentOptions,
    Variational,
    default,
    mean_over,
)
from etrm.models.flops import Work, maps
from etrm.models.layers import STD_POSITION, Angles, LayerNorm, Segments, learned, rms_norm


class ClsEncoder(nn.Module):
    """Blocks over a learned CLS token and the tokens of a pair; the vector of CLS, [n, E].

    `learned_positions`: a vector for each row, column and grid (input or output) is added to the
    tokens; otherwise positions are rotary, and CLS stands before the first cell.
    """

    def __init__(self, encoder: Encoder, learned_positions: bool) -> None:
        super().__init__()
        width, self.learned_positions = encoder.options.width, learned_positions
        self.cls = learned(width)
        self.blocks = encoder.stack(encoder.options.layers)
        # Pre-norm blocks leave their sum unnormed.
        self.norm = LayerNorm(width) if encoder.options.norm == "pre" else nn.Identity()
        if learned_positions:
            self.places = LearnedPlaces(width)
            self.channels = learned(2, width, std=STD_POSITION)  # input, output

    def forward(self, pairs: Sequences, rows: Tensor) -> Tensor:
        """Encode pairs [n, T, E], the demos numbered `rows` [n]."""
        x, mask = pairs.tokens, pairs.mask
        rotary: Angles | None = None
        if self.learned_positions:
            channels = pairs.grids.to(self.channels.dtype) @ self.channels  # both, where aligned
            x = x + self.places(pairs) + channels.to(x.dtype)
        else:
            cos, sin = pairs.rotary  # padded to [n, 1+T, head width]: CLS is not turned
            rotary = F.pad(cos, (0, 0, 1, 0), value=1.0), F.pad(sin, (0, 0, 1, 0))
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1)  # [n, 1+T, E]
        if isinstance(mask, Segments):
            mask = mask.behind(1)
        elif mask is not None:
            mask = F.pad(mask, (1, 0), value=True)
        return self.norm(self.blocks(x, rotary, mask)[:, 0])


def with_cls(lengths: np.ndarray) -> np.ndarray:
    """Return the lengths of pairs with a CLS token; those that do not exist have none."""
    return np.where(lengths > 0, lengths + 1, 0)


@dataclass(frozen=True)
class LpnOptions(EncoderOptions):
    """`source: lpn`: LPN's encoder without its latent; small, 2 layers of width 128, by default."""

    source: str = option("the source", "lpn", choices=("lpn",))
    width: int = default("width", 128)
    norm: str = default("norm", "pre")


class LpnEncoder(Encoder):
    """CLS vectors of the pairs, their mean, and a linear map to P × D."""

    Options: ClassVar[Any] = LpnOptions
    learned_positions = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pairs = self.pair_tokens()
        self.encode = ClsEncoder(self, self.learned_positions)
        self.expand = Expand(getattr(self.options, "latent", self.options.width), self.model)

    def work(self, demos: TokenBounds) -> Work:
        """Count the blocks over CLS and the tokens of pairs, and the map to all tokens."""
        pairs = self.blocks_work(with_cls(demos.of(self.options.pairing)))
        return pairs + maps(self.expand, len(demos.concat))

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode the pairs, average, expand."""
        demos = self.pairs.vectors(batch, self.encode)
        return self.finish(self.expand(mean_over(demos, batch.demo_mask)))


@dataclass(frozen=True)
class LpnVariationalOptions(LatentOptions, LpnOptions):
    """`source: lpn_variational`: LPN's encoder, small by default; a latent for each demo, averaged.

    The LPN paper's sizes are `layers: 8`, `width: 512`, `latent: 256`.
    """

    source: str = option("the source", "lpn_variational", choices=("lpn_variational",))
    latent: int = option("size of the latent", 32, ge=1)


class LpnVariationalEncoder(Variational, LpnEncoder):
    """LPN's own encoder: μ and log σ² for each demo, sampled, then averaged."""

    Options: ClassVar[Any] = LpnVariationalOptions

    @property
    def per_demo(self) -> bool:
        """Return whether each demo has a latent, or their mean has one."""
        return getattr(self.options, "bottleneck", "per_demo") == "per_demo"

    def noise_size(self, demos: int) -> int:
        """Return K·Z or Z."""
        return int(self.options.latent) * (demos if self.per_demo else 1)

    def work(self, demos: TokenBounds) -> Work:
        """Count the latents as well."""
        latents = demos.concat.size if self.per_demo else len(demos.concat)
        return super().work(demos) + maps(self.bottleneck, latents)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Sample each demo and average, or average and sample."""
        demos, mask = self.pairs.vectors(batch, self.encode), batch.demo_mask
        if self.per_demo:
            z, kl = (mean_over(x, mask) for x in self.sample(demos, batch))  # [B, Z], [B]
        else:
            z, kl = self.sample(rms_norm(mean_over(demos, mask)), batch)
        return self.finish(self.expand(z), losses={"kl": kl})


@dataclass(frozen=True)
class LpnDeepOptions(EncoderOptions):
    """`source: lpn_deep`: 4 to 8 layers at the decoder's width, rotary positions."""

    source: str = option("the source", "lpn_deep", choices=("lpn_deep",))
    layers: int = default("layers", 4)


class LpnDeepEncoder(LpnEncoder):
    """CLS vectors of a deep encoder, their mean, and a linear map to P × D."""

    Options = LpnDeepOptions
    learned_positions = False


@dataclass(frozen=True)
class LpnDeepVariationalOptions(LatentOptions, LpnDeepOptions):
    """`source: lpn_deep_variational`: the same with a normal latent."""

    source: str = option("the source", "lpn_deep_variational", choices=("lpn_deep_variational",))
    bottleneck: str = option(
        "`per_demo`: a latent for each demo, then their mean; `aggregated`: one for their mean",
        "per_demo",
        choices=("per_demo", "aggregated"),
    )


class LpnDeepVariationalEncoder(LpnVariationalEncoder):
    """A deep encoder with a latent for each demo, or of all."""

    Options = LpnDeepVariationalOptions
    learned_positions = False
