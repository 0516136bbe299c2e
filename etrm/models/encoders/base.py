"""The contract of a context source: the part of the model that a study varies.

A context source reads the demos of a task and gives the decoder context tokens, in place of TRM's
learned puzzle embedding. To add one, write

1. one file in this folder with a frozen dataclass of options (`source: str = option("the source",
   "mine", choices=("mine",))` and its own) and a `ContextSource` whose `Options` is that class and
   that implements `forward`; `shared.Encoder` brings the usual options, blocks and output scale,
   `pairs.PairTokens` the tokens of the demos;
2. one line in `CONTEXT_SOURCES` of `etrm/config/registry.py`.

Everything else of a `ContextSource` has a default that a stateless, deterministic source keeps.
`tests/models/encoders/test_contract.py` holds every registered source to this contract: shapes of
outputs; padded demos and PAD cells change nothing; the order of demos changes nothing where
`order_invariant` claims so, but cells moved from one demo to another change the output; every
parameter gets a gradient from the task's loss; every option changes something; evaluation is
deterministic; `work` equals PyTorch's count. A source from outside the package may leave `work`
out: `etrm plan` then counts the decoder alone, and says so.

Shape suffixes: B batch, K demos, S grid tokens, P context tokens, D width of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.flops import Work


@dataclass
class Encoded:
    """The context of a batch, in units of the decoder's stream (token embeddings: RMS about 1).

    Most sources give P tokens without a position of their own, as TRM's embedding (2510.04871)
    does. A context of cells has as many tokens as there are cells, so `real`, `places` and `demos`
    tell them apart.
    """

    tokens: Tensor  # [B, P, D]
    state: Tensor | None = None  # [B, ...]: carried to the sample's next ACT step, detached there
    losses: dict[str, Tensor] = field(default_factory=dict)  # by name, per sample [B], unweighted
    real: Tensor | None = None  # [B, P] bool: tokens that exist; None: all
    places: Tensor | None = None  # [B, P] int64: cells of the canvas, -1 for none; None: no cells
    demos: Tensor | None = None  # [B, P] int64: the demo of a cell, -1 for none; None: no cells
    raw: Tensor | None = None  # [B, P, D]: the tokens before normalisation and scale

    def summary(self) -> Tensor:
        """Return [B, P, D], or the mean of the real tokens [B, 1, D] where their number varies."""
        return self.tokens if self.real is None else mean_of_real(self.tokens, self.real)[:, None]


@dataclass
class Representation:
    """The vectors that an encoder is judged by, in its own units: not those of the stream.

    Without `real`, token t is the same of every sample, and samples are compared token by token.
    With `real`, a sample is a set of vectors of any number, as the cells of its demos are: their
    meaning lies in their differences, so all vectors of a batch are compared with one another.
    """

    vectors: Tensor  # [B, T, D], normalised: RMS 1
    raw: Tensor  # [B, T, D], before normalisation
    real: Tensor | None = None  # [B, T] bool: vectors that exist

    def mean(self) -> Tensor:
        """Return the mean vector of each sample [B, D]."""
        return self.vectors.mean(1) if self.real is None else mean_of_real(self.vectors, self.real)


def mean_of_real(x: Tensor, real: Tensor) -> Tensor:
    """Return the means [B, D] of the vectors of `x` [B, T, D] where `real` [B, T] is true."""
    weights = real[..., None].to(x.dtype)  # [B, T, 1]
    return (x * weights).sum(dim=1) / weights.sum(dim=1)


class ContextSource(nn.Module):
    """Map a batch and the source's own state to context tokens, a new state and named losses."""

    Options: ClassVar[Any]  # frozen dataclass: the `context` block of a study's configuration
    needs_demos: ClassVar[bool] = True
    order_invariant: ClassVar[bool] = False  # claims that the order of demos changes nothing

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        """Build from `Options` and the decoder's sizes, with weights drawn from torch's generator.

        `num_puzzles`: rows of the augmentation table, for a source with a vector for each.
        """
        super().__init__()
        self.options, self.model, self.num_puzzles = options, model, num_puzzles

    @property
    def loss_weights(self) -> dict[str, float]:
        """Return the weight of every loss that `forward` gives, by name, in the total loss."""
        return {}

    def initial_state(self, batch: int) -> Tensor | None:
        """Return the state [B, ...] of `batch` new samples; None for a source without one."""
        return None

    def context_size(self, most_cells: Mapping[str, int]) -> int:
        """Return P for a lane: the decoder's own number, or as many as its demos need.

        `most_cells`: the most cells that all demos of a sample of the lane have, by pairing.
        """
        return self.model.context_tokens

    def noise_size(self, demos: int) -> int:
        """Return how many normal numbers `Batch.noise` needs for a sample of `demos` demos."""
        return 0

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Return the bytes saved for the backward pass of a sample, by which batches are cut.

        `tokens`: cells of all its demos; `item`: bytes of a number.
        """
        return 0.0

    def work(self, demos: TokenBounds) -> Work | None:
        """Return the FLOPs of encoding B samples once; None: they are not counted.

        `demos`: tokens of each demo [B, K], by pairing; 0 where there is none.
        """
        return None

    def meet_unseen(self, puzzles: int) -> None:
        """Prepare for `puzzles` that were not trained on; whoever reads demos has nothing to do."""

    def representation(self, encoded: Encoded) -> Representation | None:
        """Return the vectors whose statistics are logged; None where no encoder is to be judged."""
        return None

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode the demos of `batch`, never its query or labels; called at every ACT step."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
