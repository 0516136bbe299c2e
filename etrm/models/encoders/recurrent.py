"""Encoders with a state of their own, refined at every ACT step: ETRM², and its TRM-like form.

The state z_E is carried with z_H and z_L, and is detached with them, at the end of an ACT step: the
context is made of the state before that, so that its gradient reaches the recurrence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import Encoded
from etrm.models.encoders.pairs import PairTokens, Sequences
from etrm.models.encoders.shared import Encoder, EncoderOptions
from etrm.models.layers import block_bytes, init_normal_


@dataclass(frozen=True)
class RecurrentOptions(EncoderOptions):
    """`source: recurrent` (ETRM²): P state vectors read the demos' cells at every ACT step."""

    source: str = option("the source", "recurrent", choices=("recurrent",))
    layers: int = option("blocks over the cells of a pair, before they are read", 1, ge=1)
    refinement_steps: int = option("refinements of the state in an ACT step", 2, ge=1)


class RecurrentEncoder(Encoder):
    """z_E [B, P, E] → refined by the demos' cells → context [B, P, D]."""

    Options: ClassVar[type] = RecurrentOptions
    order_invariant: ClassVar[bool] = True
    states: ClassVar[int] = 1
    start: Tensor

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        o = options
        self.cells = PairTokens(o.pairing, o.width, o.heads, model, rows="sample")
        self.blocks = nn.ModuleList(self.block() for _ in range(o.layers))
        self.read, self.think = self.cross_block(), self.block()
        start = init_normal_(torch.empty(self.states, model.context_tokens, o.width), 1.0)
        self.set_start(start)
        self.project = self.projection()

    def set_start(self, start: Tensor) -> None:
        """Where states begin [states, P, E]: learned."""
        self.start = nn.Parameter(start)

    def initial_state(self, batch: int) -> Tensor:
        return self.start.expand(batch, -1, -1, -1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        z = self.initial_state(len(batch)) if state is None else state
        z = self.cells.vectors(batch, lambda cells, rows: self._refine(cells, z[rows]))
        return self.finish(self.project(z[:, 0]), state=z.float())

    def _refine(self, cells: Sequences, state: Tensor) -> Tensor:
        """State [n, states, P, E] after one ACT step with the demos' cells [n, T, E]."""
        tokens, same = cells.tokens, cells.same_demo()
        for block in self.blocks:
            tokens = block(tokens, cells.rotary, same)
        return self.refine(state.to(tokens.dtype), tokens, cells.mask)

    def refine(self, state: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """`refinement_steps` times: read the demos, then attend among the P vectors."""
        z = state[:, 0]
        for _ in range(self.options.refinement_steps):
            z = self.think(self.read(z, tokens, mask))
        return z[:, None]

    def activation_bytes(self, tokens: float, item: int) -> float:
        o = self.options
        steps = getattr(o, "refinement_steps", 0) or 1 + o.L_cycles
        queries = 2 * self.model.context_tokens * steps
        # Every reading keeps the keys and values of all cells.
        read = 2 * item * o.width * tokens * steps
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

    Options: ClassVar[type] = RecurrentTrmOptions
    states: ClassVar[int] = 2

    def set_start(self, start: Tensor) -> None:
        """A buffer, as in TRM: the gradient does not reach back to it."""
        self.register_buffer("start", start)

    def refine(self, state: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        z_H, z_L = state.unbind(dim=1)
        with torch.no_grad():
            for _ in range(self.options.H_cycles - 1):
                z_H, z_L = self._cycle(z_H, z_L, tokens, mask)
        z_H, z_L = self._cycle(z_H, z_L, tokens, mask)
        return torch.stack([z_H, z_L], dim=1)

    def _cycle(
        self, z_H: Tensor, z_L: Tensor, tokens: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        for _ in range(self.options.L_cycles):
            z_L = self.think(self.read(z_L + z_H, tokens, mask))
        return self.think(z_H + z_L), z_L
