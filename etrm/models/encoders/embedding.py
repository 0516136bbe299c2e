"""TRM's learned puzzle embedding: one row per augmented puzzle (arXiv 2510.04871).

It reads no demos: puzzle numbers [B] → rows [B, D] → context [B, P, D], the first token a row of
the table, the rest zero. It is the baseline that an encoder replaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.config.schema import option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import ContextSource, Encoded
from etrm.models.flops import Work


@dataclass(frozen=True)
class EmbeddingOptions:
    """`source: embedding`: TRM's table, zero at the start; position 0 of P, the rest zero."""

    source: str = option("the source", "embedding", choices=("embedding",))
    unseen: str = option(
        "held-out tasks of a strict run, which have no row of the table: `none`, it is not"
        " evaluated on them; `mean`, all of them have the mean of its rows, which says nothing of"
        " their rules: the least that an encoder must beat",
        "none",
        choices=("none", "mean"),
    )


class PuzzleEmbedding(ContextSource):
    """A table [puzzles, D], a buffer and no parameter.

    Its gradient is sparse, one row per sample; `take_gradients` hands the rows used since the
    last call to the optimizer, so that no dense gradient of the table ever exists.
    """

    Options = EmbeddingOptions
    needs_demos = False
    order_invariant = True
    weights: Tensor  # [puzzles, D]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("weights", torch.zeros(self.num_puzzles, self.model.width))
        self._used: list[tuple[Tensor, Tensor]] = []  # puzzles [B] and their rows [B, D]

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Look up the rows of `batch.puzzle`, and remember them in training."""
        rows = self.weights[batch.puzzle]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self._used.append((batch.puzzle, rows))
        # TRM scales embeddings of tokens and of puzzles alike as they enter the stream.
        scaled = math.sqrt(self.model.width) * rows
        return Encoded(F.pad(scaled[:, None, :], (0, 0, 0, self.model.context_tokens - 1)))

    def work(self, demos: TokenBounds) -> Work:
        """Count nothing: rows are looked up."""
        return Work()

    def meet_unseen(self, puzzles: int) -> None:
        """Replace the table by `puzzles` copies of its mean row."""
        self.weights = self.weights.mean(dim=0).expand(puzzles, -1)

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Return puzzles [n] and gradients [n, D] of the rows used since the last call."""
        puzzles = torch.cat([puzzle for puzzle, _ in self._used])
        rows = [rows for _, rows in self._used]
        self._used = []
        return puzzles, torch.cat([torch.zeros_like(r) if r.grad is None else r.grad for r in rows])
