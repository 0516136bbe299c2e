"""A Set Transformer over demos (Lee et al., 2019, 1810.00825).

Pairs become vectors [B, K, E] as in `standard`. Induced set attention (the paper's ISAB) lets them
see each other through M learned points, and P seeds pool them by attention (PMA), [B, P, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.shared import Encoder
from etrm.models.encoders.standard import StandardEncoder, StandardOptions
from etrm.models.flops import Work
from etrm.models.layers import CrossBlock, Stack, learned


@dataclass(frozen=True)
class SetTransformerOptions(StandardOptions):
    """`source: set_transformer`: induced set attention over pairs, pooled by attention."""

    source: str = option("the source", "set_transformer", choices=("set_transformer",))
    induced_layers: int = option("blocks of induced set attention over the pairs", 2, ge=1)
    inducing_points: int = option("learned points through which pairs see each other", 8, ge=1)
    set_layers: int = option("blocks in which the P seeds pool the pairs", 1, ge=1)


class InducedSetAttention(nn.Module):
    """M learned points read the set, and the set reads them, [B, K, E] → [B, K, E]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.points = learned(encoder.options.inducing_points, encoder.options.width)  # [M, E]
        self.gather, self.spread = encoder.block(CrossBlock), encoder.block(CrossBlock)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`mask` [B, K] is true for real demos."""
        points = self.points.to(x.dtype).expand(len(x), -1, -1)  # I in the paper
        return self.spread(x, self.gather(points, x, mask))  # MAB(X, MAB(I, X))


class SetTransformerEncoder(StandardEncoder):
    """Pairs as in `standard`; between them and the P seeds, induced set attention."""

    Options = SetTransformerOptions

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.induced = Stack(InducedSetAttention(self) for _ in range(self.options.induced_layers))

    def demos_work(self, demos: TokenBounds) -> Work:
        """Count the pairs, and how the points read them and are read."""
        (samples, count), points = demos.concat.shape, self.options.inducing_points
        induced = self.reading_work(points, count) + self.reading_work(count, points)
        return super().demos_work(demos) + induced * samples * self.options.induced_layers

    def demos(self, batch: Batch) -> Tensor:
        """Return the pairs after they saw each other [B, K, E]."""
        return self.induced(super().demos(batch), batch.demo_mask)
