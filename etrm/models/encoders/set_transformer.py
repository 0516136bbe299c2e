"""A Set Transformer over demonstrations (Lee et al., 2019, 1810.00825)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.shared import Encoder
from etrm.models.encoders.standard import StandardEncoder, StandardOptions
from etrm.models.layers import init_normal_


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
        o = encoder.options
        self.points = nn.Parameter(init_normal_(torch.empty(o.inducing_points, o.width), 1.0))
        self.gather, self.spread = encoder.cross_block(), encoder.cross_block()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        points = self.points.to(x.dtype).expand(len(x), -1, -1)
        return self.spread(x, self.gather(points, x, mask))


class SetTransformerEncoder(StandardEncoder):
    """Pairs as in `standard`; between them and the P seeds, induced set attention."""

    Options: ClassVar[type] = SetTransformerOptions

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        layers = range(options.induced_layers)
        self.induced = nn.ModuleList(InducedSetAttention(self) for _ in layers)

    def aggregate(self, batch: Batch) -> Tensor:
        pairs = self.pairs.vectors(batch, self.encode_pair)
        for block in self.induced:
            pairs = block(pairs, batch.demo_mask)
        return self.set(pairs, batch.demo_mask)
