"""No bottleneck: every real cell of the demos is a context token of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import PAIRINGS, PairTokens, Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions
from etrm.models.layers import init_normal_, rms_norm


@dataclass(frozen=True)
class InContextOptions(EncoderOptions):
    """`source: in_context`: the decoder itself reads the demos' cells, after blocks across them."""

    source: str = option("the source", "in_context", choices=("in_context",))
    pairing: str = option(
        "how a demo's input and output meet: `aligned` cell by cell, `concat` one after the other",
        "aligned",
        choices=PAIRINGS,
    )
    layers: int = option("blocks over the cells of all demos; 0: none", 1, ge=0)
    output_scale: float | None = option(
        "RMS of the context tokens in the decoder's stream, where token embeddings have 1;"
        " null: √width of the decoder, as TRM scales its puzzle embeddings",
        1.0,
        gt=0,
    )


class InContextEncoder(Encoder):
    """Context [B, 1 + cells, D]: a learned token, from which the halting head reads, then cells.

    Cells stand where they stand on the canvas, as those of the query do.
    """

    Options: ClassVar[type] = InContextOptions
    order_invariant: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o = options
        self.cells = PairTokens(o.pairing, o.width, o.heads, model, rows="sample")
        self.blocks = nn.ModuleList(self.block() for _ in range(o.layers))
        self.first = nn.Parameter(init_normal_(torch.empty(o.width), 1.0))
        self.project = self.projection()

    def context_size(self, most_cells: Mapping[str, int]) -> int:
        return 1 + most_cells[self.options.pairing]

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        size, count = self.context_size(batch.cells), len(batch)
        places = batch.puzzle.new_full((count, size), -1)
        real = torch.zeros_like(places, dtype=torch.bool)
        real[:, 0] = True
        parts = []
        for rows, cells in self.cells.groups(batch):
            tokens, room = self._encode(cells), size - cells.tokens.shape[1]
            parts.append((rows, F.pad(tokens, (0, 0, 1, room - 1))))
            real[rows] = F.pad(cells.real, (1, room - 1)) | real[rows]
            places[rows] = F.pad(cells.places, (1, room - 1), value=-1)
        out = parts[0][1].new_zeros(count, size, self.options.width)
        for rows, tokens in parts:
            out = out.index_copy(0, rows, tokens)
        first = self.first.to(out.dtype).expand(count, 1, -1)
        x = self.project(torch.cat([first, out[:, 1:]], dim=1))
        return Encoded(self.scale * rms_norm(x), real=real, places=places)

    def _encode(self, cells: Sequences) -> Tensor:
        """[n, T, E] → [n, T, E], across all demos."""
        tokens = cells.tokens
        for block in self.blocks:
            tokens = block(tokens, cells.rotary, cells.mask)
        return tokens
