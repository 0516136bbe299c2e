"""No bottleneck: every real cell of the demos is a context token of the decoder.

A learned token, from which the halting head reads, then the cells of all demos, each with the code
of its demo, after blocks across them: context [B, 1 + cells, D]. Cells keep their places on the
canvas, as those of the query do, so the decoder compares demos and query by position, and finds the
input of an output by its place and code (in-context learning; no paper's encoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import DemoCodes
from etrm.models.encoders.shared import Encoder, EncoderOptions, default
from etrm.models.flops import Work, maps
from etrm.models.layers import STD_POSITION, learned, rms_norm


@dataclass(frozen=True)
class InContextOptions(EncoderOptions):
    """`source: in_context`: the decoder itself reads the demos' cells, after blocks across them."""

    source: str = option("the source", "in_context", choices=("in_context",))
    pairing: str = default("pairing", "aligned")
    layers: int = option("blocks over the cells of all demos; 0: none", 1, ge=0)
    output_scale: float | None = default("output_scale", 1.0)


class InContextEncoder(Encoder):
    """A learned token, then the cells of all demos; P varies by lane."""

    Options = InContextOptions

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cells = self.pair_tokens(rows="sample")
        self.codes = DemoCodes(self.options.width, self.options.heads)
        self.blocks = self.stack(self.options.layers)
        self.first = learned(self.options.width)
        self.project = self.projection()

    def context_size(self, most_cells: Mapping[str, int]) -> int:
        """Return the most cells of a sample in this lane, and one."""
        return 1 + most_cells[self.options.pairing]

    def work(self, demos: TokenBounds) -> Work:
        """Count the blocks over cells and the projection; the decoder counts its context itself."""
        tokens = len(demos.concat) * self.context_size(demos.most_cells())
        codes = maps(self.codes, demos.concat.size)
        return self.cells_work(demos) + codes + maps(self.project, tokens)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode the cells of each group of samples, padded to P."""
        size, count = self.context_size(batch.cells), len(batch)
        places = batch.puzzle.new_full((count, size), -1)  # [B, P]
        demos = places.clone()
        real = torch.zeros_like(places, dtype=torch.bool)
        real[:, 0] = True
        parts = []
        for rows, cells in self.cells.groups(batch):
            codes = self.codes(cells, batch.demo_mask[rows])  # [n, T, E]
            # As light as learned positions: cells' content is learned later under heavy codes.
            tokens = rms_norm(cells.tokens + STD_POSITION * codes)
            tokens = self.blocks(tokens, cells.rotary, cells.mask)
            pad = (1, size - tokens.shape[1] - 1)  # the learned token before, PAD behind
            parts.append((rows, F.pad(tokens, (0, 0, *pad))))
            real[rows] = F.pad(cells.real, pad) | real[rows]
            places[rows] = F.pad(cells.places, pad, value=-1)
            demos[rows] = F.pad(cells.demos, pad, value=-1)
        out = parts[0][1].new_zeros(count, size, self.options.width)
        for rows, tokens in parts:
            out = out.index_copy(0, rows, tokens)
        first = self.first.to(out.dtype).expand(count, 1, -1)
        x = self.project(torch.cat([first, out[:, 1:]], dim=1))
        return self.finish(x, real=real, places=places, demos=demos)
