"""What every context source is.

Shapes: B batch, K demos, S cells of the canvas, P context tokens, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from etrm.config.study import ModelConfig
from etrm.data.batch import Batch


@dataclass
class Encoded:
    """Context of a batch, in units of the decoder's stream (token embeddings: RMS about 1)."""

    tokens: Tensor  # [B, P, D]
    state: Tensor | None = None  # [B, ...]: carried to the sample's next ACT step, detached there
    losses: dict[str, Tensor] = field(default_factory=dict)  # by name, each a per-sample [B] value


class ContextSource(nn.Module):
    """Maps (batch, own state) to context tokens, a new state and named losses."""

    Options: ClassVar[type]
    needs_demos: ClassVar[bool] = True
    order_invariant: ClassVar[bool] = False  # claims that the order of demos changes nothing

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        """`num_puzzles`: rows of the augmentation table, for sources that learn one by one."""
        super().__init__()
        self.options, self.model, self.num_puzzles = options, model, num_puzzles

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight in the total loss of every loss that `forward` gives, by name."""
        return {}

    def initial_state(self, batch: int) -> Tensor | None:
        """The state of `batch` samples that begin; None for a source without one."""
        return None

    def activation_bytes(self, tokens: float, item: int) -> float:
        """What the backward pass keeps of a sample whose demos have `tokens` cells in all.

        `item`: bytes of a number. Micro-batches are cut by it.
        """
        return 0.0

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
