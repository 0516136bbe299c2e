"""Encoders with a state of their own, refined at every ACT step: ETRM², and its TRM-like form.

P state vectors z_E [B, states, P, E] read the demos' cells and give the context [B, P, D]. The
state is carried with z_H and z_L, and is detached with them, at the end of an ACT step: the context
is made of the state before that, so that its gradient reaches the recurrence. `recurrent_trm` has
the two levels of TRM (2510.04871).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions
from etrm.models.flops import Work, block, maps
from etrm.models.layers import CrossBlock, Mask, block_bytes, learned


@dataclass(frozen=True)
class RecurrentOptions(EncoderOptions):
    """`source: recurrent` (ETRM²): P state vectors read the demos' cells at every ACT step."""

    source: str = option("the source", "recurrent", choices=("recurrent",))
    layers: int = option("blocks over the cells of a pair, before they are read", 1, ge=1)
    refinement_steps: int = option("refinements of the state in an ACT step", 2, ge=1)


class RecurrentEncoder(Encoder):
    """z_E [B, 1, P, E] → refined by the demos' cells → context [B, P, D]."""

    Options: ClassVar[Any] = RecurrentOptions
    states = 1
    start: Tensor  # [states, P, E]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cells = self.pair_tokens(rows="sample")
        self.blocks = self.stack(self.options.layers)
        self.read, self.think = self.block(CrossBlock), self.block()
        start = learned(self.states, self.model.context_tokens, self.options.width)
        if self.states == 1:
            self.start = start
        else:  # a buffer, as in TRM: no gradient reaches back to the first states
            self.register_buffer("start", start.data)
        self.project = self.projection()

    def initial_state(self, batch: int) -> Tensor:
        """Return [B, states, P, E]."""
        return self.start.expand(batch, -1, -1, -1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Refine the state by the demos, and project its first level."""
        z = self.initial_state(len(batch)) if state is None else state

        def refine(cells: Sequences, rows: Tensor) -> Tensor:
            tokens = self.blocks(cells.tokens, cells.rotary, cells.same_demo())  # [n, T, E]
            return self.refine(z[rows].to(tokens.dtype), tokens, cells.mask)

        after = self.cells.vectors(batch, refine)  # [B, states, P, E]
        return self.finish(self.project(after[:, 0]), state=after.float())

    def refine(self, state: Tensor, tokens: Tensor, mask: Mask) -> Tensor:
        """Refine states [n, states, P, E] by tokens [n, T, E]: read them, then think."""
        z = state[:, 0]
        for _ in range(self.options.refinement_steps):
            z = self.think(self.read(z, tokens, mask))  # attention among the P vectors
        return z[:, None]

    def work(self, demos: TokenBounds) -> Work:
        """Count the blocks over cells, the refinements of P vectors, and their projection."""
        samples, P = len(demos.concat), self.model.context_tokens
        think = block(P, P**2, self.options.width, self.options.expansion)
        refined = self.refinement_work(self.reading_work(P, self.mean_cells(demos)) + think, think)
        return self.cells_work(demos) + refined * samples + maps(self.project, samples * P)

    def refinement_work(self, read: Work, think: Work) -> Work:
        """Return the FLOPs of `refine` on one sample; `read`: a reading and a thought after it."""
        return read * self.options.refinement_steps

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Count the blocks over cells, and each reading of all their keys and values."""
        o = self.options  # readings with gradients; TRM's high level counts as one
        readings = getattr(o, "refinement_steps", 0) or 1 + o.L_cycles
        queries = 2 * self.model.context_tokens * readings  # a cross-attention and a block each
        read = 2 * item * o.width * tokens * readings
        return (tokens * o.layers + queries) * block_bytes(o.width, o.expansion, item) + read


@dataclass(frozen=True)
class RecurrentTrmOptions(EncoderOptions):
    """`source: recurrent_trm`: TRM's two-level recursion inside the encoder."""

    source: str = option("the source", "recurrent_trm", choices=("recurrent_trm",))
    layers: int = option("blocks over the cells of a pair, before they are read", 1, ge=1)
    H_cycles: int = option(
        "high-level cycles of an ACT step; the last has gradients", 2, unit="cycles", ge=1
    )
    L_cycles: int = option("low-level cycles in each high-level cycle", 2, unit="cycles", ge=1)


class RecurrentTrmEncoder(RecurrentEncoder):
    """Two states of P vectors: the low level reads the demos, the high level gives the context."""

    Options = RecurrentTrmOptions
    states = 2

    def refinement_work(self, read: Work, think: Work) -> Work:
        """Count the H-cycles; only the last has gradients."""
        cycle = read * self.options.L_cycles + think
        return cycle.detach() * (self.options.H_cycles - 1) + cycle

    def refine(self, state: Tensor, tokens: Tensor, mask: Mask) -> Tensor:
        """Run TRM's recursion, with gradients in the last H-cycle, as `Decoder.refine`."""
        z_H, z_L = state.unbind(dim=1)
        for cycle in range(self.options.H_cycles):
            last = cycle == self.options.H_cycles - 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and last):
                for _ in range(self.options.L_cycles):
                    z_L = self.think(self.read(z_L + z_H, tokens, mask))  # sees the demos
                z_H = self.think(z_H + z_L)  # sees them through z_L alone
        return torch.stack([z_H, z_L], dim=1)
