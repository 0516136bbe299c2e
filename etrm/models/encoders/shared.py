"""What encoders share: their options, the aggregation of demos, the bottleneck, the output.

Shapes: B batch, K demos, P context tokens, D width of the decoder, E of the encoder, Z latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etrm.config.schema import ConfigProblem, option
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.models.encoders.base import ContextSource, Encoded
from etrm.models.encoders.pairs import PAIRINGS, PairTokens, Sequences
from etrm.models.layers import Block, CrossBlock, block_bytes, init_normal_, linear, rms_norm

LOG_VAR_BOUND = 10.0


@dataclass(frozen=True)
class EncoderOptions:
    """Options of every encoder; a family declares its own `source` and other defaults."""

    source: str = option("the source", "")
    pairing: str = option(
        "how a demo's input and output meet: `aligned` cell by cell, `concat` one after the other",
        "concat",
        choices=PAIRINGS,
    )
    width: int = option("hidden size of the encoder", 512, ge=4)
    heads: int = option("attention heads; width / heads must be a multiple of 4", 8, ge=1)
    layers: int = option("blocks over the tokens of a pair", 2, ge=1)
    expansion: float = option(
        "SwiGLU expansion; its inner width, 2/3 · expansion · width, is rounded up to 256s",
        4.0,
        gt=0,
    )
    norm: str = option(
        "`post`: RMS norm after a branch; `pre`: LayerNorm before", "post", choices=("post", "pre")
    )
    layer_scale: float | None = option(
        "first value of a learned scale of branches; null: none", None
    )
    qk_norm: bool = option("RMS norm of queries and keys", False)
    output_scale: float | None = option(
        "RMS of the context tokens in the decoder's stream, where token embeddings have 1;"
        " null: √width of the decoder, as TRM scales its puzzle embeddings",
        None,
        gt=0,
    )
    contrastive_weight: float = option(
        "weight of the supervised contrastive loss: contexts of the same task are pulled together,"
        " those of other tasks apart",
        0.0,
        ge=0,
    )
    contrastive_temperature: float = option("temperature of the contrastive loss", 0.1, gt=0)

    def problems(self) -> list[ConfigProblem]:
        """Head sizes that the rotary positions cannot divide."""
        if self.width % self.heads == 0 and (self.width // self.heads) % 4 == 0:
            return []
        found = f"width {self.width} with {self.heads} heads"
        return [ConfigProblem("width", found, "a multiple of 4 × heads")]


class Encoder(ContextSource):
    """A context source that reads demonstration pairs."""

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.scale = math.sqrt(model.width)
        if options.output_scale is not None:
            self.scale = options.output_scale

    @property
    def loss_weights(self) -> dict[str, float]:
        weights = {"contrastive": self.options.contrastive_weight}
        if hasattr(self.options, "kl_weight"):
            weights["kl"] = self.options.kl_weight
        return weights

    def block(self) -> Block:
        """A self-attention block of the encoder's style."""
        o = self.options
        return Block(o.width, o.heads, o.expansion, o.norm, o.layer_scale, o.qk_norm)

    def cross_block(self) -> CrossBlock:
        """A cross-attention block of the encoder's style."""
        o = self.options
        return CrossBlock(o.width, o.heads, o.expansion, o.norm, o.layer_scale, o.qk_norm)

    def projection(self) -> nn.Module:
        """The encoder's width to the decoder's."""
        same = self.options.width == self.model.width
        return nn.Identity() if same else linear(self.options.width, self.model.width)

    def finish(self, x: Tensor, **rest: Any) -> Encoded:
        """Context tokens [B, P, D] at the scale of the decoder's stream."""
        return Encoded(self.scale * rms_norm(x), **rest)

    def activation_bytes(self, tokens: float, item: int) -> float:
        o = self.options
        queries = self.model.context_tokens * getattr(o, "set_layers", 1)
        return (tokens * o.layers + queries) * block_bytes(o.width, o.expansion, item)


class SetAggregator(nn.Module):
    """P learned queries read the vectors of all demos, [B, K, E] → [B, P, E]."""

    def __init__(self, encoder: Encoder, layers: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(
            torch.empty(encoder.model.context_tokens, encoder.options.width)
        )
        init_normal_(self.queries, 1.0)
        self.blocks = nn.ModuleList(encoder.cross_block() for _ in range(layers))

    def forward(self, demos: Tensor, mask: Tensor) -> Tensor:
        """`mask` [B, K] is true for real demos."""
        x = self.queries.to(demos.dtype).expand(len(demos), -1, -1)
        for block in self.blocks:
            x = block(x, demos, mask)
        return x


class Bottleneck(nn.Module):
    """A normal distribution in a latent space, [.., E] → a sample [.., Z] and its KL [..].

    Kingma and Welling, 2013 (1312.6114); log σ² is held within ±10. Without noise it gives the
    mean. KL is to the standard normal, summed over the latent.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.mean = linear(width, latent, bias=True)
        self.log_var = linear(width, latent, bias=True)

    def forward(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """`noise` [.., Z]: normal numbers, in training."""
        mean, log_var = self.mean(x).float(), self.log_var(x).float()
        log_var = log_var.clamp(-LOG_VAR_BOUND, LOG_VAR_BOUND)
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1)
        sample = mean if noise is None else mean + (0.5 * log_var).exp() * noise
        return sample.to(x.dtype), kl


class Expand(nn.Module):
    """One vector to P context tokens, [B, Z] → [B, P, D]."""

    def __init__(self, inputs: int, model: ModelConfig) -> None:
        super().__init__()
        self.tokens = model.context_tokens
        self.project = linear(inputs, self.tokens * model.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).unflatten(-1, (self.tokens, -1))


class SetEncoder(Encoder):
    """Each pair to a vector, and P learned queries that read them: [B, K, S] grids → [B, P, D].

    A family builds what encodes a pair, and says how.
    """

    order_invariant: ClassVar[bool] = True

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.pairs = PairTokens(options.pairing, options.width, options.heads, model)
        self.build()
        self.set = SetAggregator(self, options.set_layers)
        self.project = self.make_project()

    def build(self) -> None:
        """Make what encodes a pair."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    def encode_pair(self, pairs: Sequences, rows: Tensor) -> Tensor:
        """Pairs [n, T, E], the demos numbered `rows` [n], to vectors [n, E]."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode_pair")

    def make_project(self) -> nn.Module:
        """What stands behind the aggregation."""
        return self.projection()

    def aggregate(self, batch: Batch) -> Tensor:
        """The pairs, read by the context queries [B, P, E]."""
        return self.set(self.pairs.vectors(batch, self.encode_pair), batch.demo_mask)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        return self.finish(self.project(self.aggregate(batch)))


class VariationalSet(SetEncoder):
    """The pooled aggregate → μ, log σ² → a sample (in training; the mean otherwise) → P × D."""

    def __init__(self, options: Any, model: ModelConfig, num_puzzles: int) -> None:
        super().__init__(options, model, num_puzzles)
        self.bottleneck = Bottleneck(options.width, options.latent)

    def make_project(self) -> nn.Module:
        return Expand(self.options.latent, self.model)

    def noise_size(self, demos: int) -> int:
        return int(self.options.latent)

    def pool(self, aggregate: Tensor) -> Tensor:
        """[B, P, E] → [B, E]."""
        return aggregate.mean(dim=1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        noise = noise_of(batch, self.training, self.options.latent)
        sample, kl = self.bottleneck(self.pool(self.aggregate(batch)), noise)
        return self.finish(self.project(sample), losses={"kl": kl})


def mean_over(demos: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, K, ..] over real demos [B, K]."""
    weights = mask.reshape(*mask.shape, *[1] * (demos.dim() - 2)).to(demos.dtype)
    return (demos * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def noise_of(batch: Batch, training: bool, *shape: int) -> Tensor | None:
    """This step's normal numbers as [B, *shape]; None in evaluation, where means are used."""
    if batch.noise is None or not training:
        return None
    return batch.noise.reshape(len(batch), *shape)
