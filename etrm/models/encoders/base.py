"""What every context source is.

Shapes: B batch, K demos, S cells of the canvas, P context tokens, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    # Where tokens are cells of demos: which exist [B, P] bool, and where they stand on the canvas
    # [B, P] int64, -1 for a token that is no cell. None: P tokens of no place, all real.
    real: Tensor | None = None
    places: Tensor | None = None

    def summary(self) -> Tensor:
        """[B, P, D], or the mean of the real tokens [B, 1, D] where their number varies."""
        if self.real is None:
            return self.tokens
        weights = self.real[..., None].to(self.tokens.dtype)
        total = (self.tokens * weights).sum(dim=1, keepdim=True)
        return total / weights.sum(dim=1, keepdim=True)


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

    def context_size(self, most_cells: Mapping[str, int]) -> int:
        """Context tokens P of a lane: the decoder's own number, or what its demos need.

        `most_cells`: the most cells that all demos of a sample of the lane have, by pairing.
        """
        return self.model.context_tokens

    def noise_size(self, demos: int) -> int:
        """Normal numbers that a sample with room for `demos` demos needs, in training."""
        return 0

    def activation_bytes(self, tokens: float, item: int) -> float:
        """What the backward pass keeps of a sample whose demos have `tokens` cells in all.

        `item`: bytes of a number. Micro-batches are cut by it.
        """
        return 0.0

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
