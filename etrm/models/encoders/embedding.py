"""TRM's learned puzzle embedding: one row per augmented puzzle (arXiv 2510.04871)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.config.schema import option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import ContextSource, Encoded


@dataclass(frozen=True)
class EmbeddingOptions:
    """`source: embedding`: TRM's table, zero at the start; position 0 of P, the rest zero."""

    source: str = option("the source", "embedding", choices=("embedding",))


class PuzzleEmbedding(ContextSource):
    """A table [puzzles, D], a buffer and no parameter.

    Its gradient is sparse, one row per sample; `take_gradients` hands the rows used since the
    last call to the optimizer, so that no dense gradient of the table ever exists.
    """

    Options: ClassVar[type] = EmbeddingOptions
    needs_demos: ClassVar[bool] = False
    order_invariant: ClassVar[bool] = True
    weights: Tensor

    def __init__(self, options: EmbeddingOptions, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.register_buffer("weights", torch.zeros(num_puzzles, model.width))
        self._used: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        rows = self.weights[batch.puzzle]
        if self.training and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()
            self._used.append((batch.puzzle, rows))
        # TRM scales embeddings of tokens and of puzzles alike as they enter the stream.
        scaled = math.sqrt(self.model.width) * rows
        tokens = F.pad(scaled[:, None, :], (0, 0, 0, self.model.context_tokens - 1))
        return Encoded(tokens)

    def take_gradients(self) -> tuple[Tensor, Tensor]:
        """Puzzles [n] and gradients [n, D] of the rows used since the last call."""
        puzzles = torch.cat([puzzle for puzzle, _ in self._used])
        gradients = torch.cat([_gradient(rows) for _, rows in self._used])
        self._used = []
        return puzzles, gradients


def _gradient(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows) if rows.grad is None else rows.grad
