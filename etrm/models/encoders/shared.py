"""The shared parts of encoders: options, blocks, aggregation of demos, bottleneck, output.

Shape suffixes: B batch, K demos, P context tokens, D width of the decoder, E width of the encoder,
Z latent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from etrm.config.schema import ConfigProblem, option
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.encoders.base import ContextSource, Encoded, Representation
from etrm.models.encoders.pairs import PAIRINGS, PairTokens
from etrm.models.flops import Work, blocks, cross_block, maps
from etrm.models.layers import (
    Block,
    CrossBlock,
    Linear,
    Mask,
    Stack,
    block_bytes,
    learned,
    rms_norm,
)

LOG_VAR_BOUND = 10.0  # of log σ²: e¹⁰ neither overflows nor vanishes in float32


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
        "weight of the contrastive loss: a context is pulled to that of its query's own pair (the"
        " same puzzle through another demo), away from those of other puzzles",
        0.0,
        ge=0,
    )
    contrastive_positives: str = option(
        "`puzzle`: the query's pair alone, other variants of the task being among the others;"
        " `task`: these variants too, which takes their colours and orientation out of contexts",
        "puzzle",
        choices=("puzzle", "task"),
    )
    contrastive_temperature: float = option("temperature of the contrastive loss", 0.1, gt=0)

    def problems(self) -> list[ConfigProblem]:
        """Return the head sizes that the rotary positions cannot divide."""
        if self.width % self.heads == 0 and (self.width // self.heads) % 4 == 0:
            return []
        found = f"width {self.width} with {self.heads} heads"
        return [ConfigProblem("width", found, "a multiple of 4 × heads")]


def default(name: str, value: Any) -> Any:
    """Return the option `name` of every encoder with another default."""
    (field,) = (f for f in dataclasses.fields(EncoderOptions) if f.name == name)
    return dataclasses.field(default=value, metadata=field.metadata)


@dataclass(frozen=True)
class LatentOptions:
    """Options of a variational form, behind those of its family."""

    latent: int = option("size of the latent", 256, ge=1)
    kl_weight: float = option("weight of the KL divergence from a standard normal", 1.0e-4, ge=0)


class Encoder(ContextSource):
    """A context source that reads demos, with blocks and output scale as its options say."""

    order_invariant = True  # a set of demos; the contract tests hold every family to it

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        scale = self.options.output_scale
        self.scale = math.sqrt(self.model.width) if scale is None else scale

    @property
    def loss_weights(self) -> dict[str, float]:
        """Return the weight of the contrastive loss, computed in training (`Contrast`)."""
        return {"contrastive": self.options.contrastive_weight}

    def pair_tokens(self, rows: str = "pair") -> PairTokens:
        """Return the reader of the demos, see `PairTokens`."""
        o = self.options
        return PairTokens(o.pairing, o.width, o.heads, self.model, rows)

    def block(self, kind: type[nn.Module] = Block) -> nn.Module:
        """Return a block of the encoder's style."""
        o = self.options
        style = {"qk_norm": o.qk_norm, "norm": o.norm, "layer_scale": o.layer_scale}
        return kind(o.width, o.heads, o.expansion, **style)

    def stack(self, layers: int, kind: type[nn.Module] = Block) -> Stack:
        """Return `layers` blocks of the encoder's style, one after the other."""
        return Stack(self.block(kind) for _ in range(layers))

    def projection(self) -> nn.Module:
        """Return a linear map E → D, or the identity where they are equal."""
        same = self.options.width == self.model.width
        return nn.Identity() if same else Linear(self.options.width, self.model.width)

    def finish(self, x: Tensor, **rest: Any) -> Encoded:
        """Bring context tokens [B, P, D] to the scale of the decoder's stream."""
        return Encoded(self.scale * rms_norm(x), raw=x, **rest)  # an RMS of `scale`

    def representation(self, encoded: Encoded) -> Representation:
        """Return the context tokens or, of a context of cells, the vectors of the real cells.

        They are normalised but not scaled: the same at every `output_scale`.
        """
        assert encoded.raw is not None, "found an encoding that is not of `finish`"
        real, places = encoded.real, encoded.places
        if real is not None and places is not None:
            real = real & (places >= 0)  # learned tokens beside the cells are of no demo
        return Representation(encoded.tokens / self.scale, encoded.raw, real)

    def activation_bytes(self, tokens: float, item: int) -> float:
        """Count all demo tokens in `layers` blocks, and P queries in `set_layers`."""
        o = self.options  # one pass over the cells, then the queries over K vectors
        queries = self.model.context_tokens * getattr(o, "set_layers", 1)
        return (tokens * o.layers + queries) * block_bytes(o.width, o.expansion, item)

    def blocks_work(self, lengths: np.ndarray) -> Work:
        """Return the FLOPs of `layers` blocks over rows of `lengths` tokens."""
        return blocks(lengths, self.options.width, self.options.expansion) * self.options.layers

    def reading_work(self, queries: float, keys: float) -> Work:
        """Return the FLOPs of a cross-attention block of one sample."""
        return cross_block(queries, keys, self.options.width, self.options.expansion)

    def cells_work(self, demos: TokenBounds) -> Work:
        """Return the FLOPs of `layers` blocks over all demos of a sample in one row."""
        return self.blocks_work(demos.of(self.options.pairing).sum(axis=1))

    def mean_cells(self, demos: TokenBounds) -> float:
        """Return the mean number of tokens of all demos of a sample."""
        return float(demos.of(self.options.pairing).sum(axis=1).mean())


class SetAggregator(nn.Module):
    """P learned queries that read vectors of all demos, or their cells, [B, M, E] → [B, P, E]."""

    def __init__(self, encoder: Encoder, layers: int) -> None:
        super().__init__()
        self.queries = learned(encoder.model.context_tokens, encoder.options.width)  # [P, E]
        self.blocks = encoder.stack(layers, CrossBlock)

    def forward(self, read: Tensor, mask: Mask) -> Tensor:
        """`mask` [B, M] is true for real demos or cells; None: all are real."""
        return self.blocks(self.queries.to(read.dtype).expand(len(read), -1, -1), read, mask)


class Bottleneck(nn.Module):
    """A normal distribution in a latent space (Kingma and Welling, 1312.6114)."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.mean = Linear(width, latent, bias=True)
        self.log_var = Linear(width, latent, bias=True)

    def forward(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map [..., E] to a sample [..., Z] and its KL to the standard normal [...].

        `noise` [..., Z]: normal numbers, in training; None gives the mean.
        """
        mean, log_var = self.mean(x).float(), self.log_var(x).float()  # [..., Z]: μ, log σ²
        log_var = log_var.clamp(-LOG_VAR_BOUND, LOG_VAR_BOUND)
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=-1)
        sample = mean if noise is None else mean + (0.5 * log_var).exp() * noise  # μ + σ ε
        return sample.to(x.dtype), kl


class Expand(nn.Module):
    """One vector to P context tokens, [B, Z] → [B, P, D]."""

    def __init__(self, inputs: int, model: Any) -> None:
        super().__init__()
        self.tokens = model.context_tokens
        self.project = Linear(inputs, self.tokens * model.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of `x`, cut into tokens."""
        return self.project(x).unflatten(-1, (self.tokens, -1))


class Variational(Encoder):
    """Mixin in front of a family: a vector x [B, (K,) E] becomes a sample z [B, (K,) Z]."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bottleneck = Bottleneck(self.options.width, self.options.latent)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Return the family's weights and that of the KL divergence."""
        return super().loss_weights | {"kl": self.options.kl_weight}

    def noise_size(self, demos: int) -> int:
        """Return Z: one latent of all demos."""
        return int(self.options.latent)

    def sample(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return z and its KL [B, (K)]; z is the mean in evaluation, which draws nothing."""
        noise = batch.noise if self.training else None
        shaped = None if noise is None else noise.reshape(*x.shape[:-1], -1)
        z, kl = self.bottleneck(x, shaped)
        return z, kl


class SetEncoder(Encoder):
    """Encode each demo to a vector, and let P learned queries read them: [B, K, E] → [B, P, D]."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.build()
        self.set = SetAggregator(self, self.options.set_layers)
        self.project = self.projection()
        # `finish` normalises. Normalised twice, the scale that is logged would be a constant.
        if isinstance(self.project, nn.Identity):
            self.set.blocks.leave_last_sum()

    def build(self) -> None:
        """Create the modules that encode demos."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")

    def demos(self, batch: Batch) -> Tensor:
        """Return a vector for each demo [B, K, E]; those of padded demos are ignored."""
        raise NotImplementedError(f"{type(self).__name__} does not define demos")

    def demos_work(self, demos: TokenBounds) -> Work:
        """Return the FLOPs of `demos`."""
        raise NotImplementedError(f"{type(self).__name__} does not define demos_work")

    def aggregate_work(self, demos: TokenBounds) -> Work:
        """Return the FLOPs of `aggregate`."""
        samples, count = demos.concat.shape
        read = self.reading_work(self.model.context_tokens, count) * self.options.set_layers
        return self.demos_work(demos) + read * samples

    def work(self, demos: TokenBounds) -> Work:
        """Count the vectors of demos, their aggregation, and the projection of P tokens."""
        vectors = len(demos.concat) * self.model.context_tokens
        return self.aggregate_work(demos) + maps(self.project, vectors)

    def aggregate(self, batch: Batch) -> Tensor:
        """Return the context queries after they read the demos [B, P, E]."""
        return self.set(self.demos(batch), batch.demo_mask)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode the demos, aggregate them, project."""
        return self.finish(self.project(self.aggregate(batch)))


class VariationalSet(Variational, SetEncoder):
    """The pooled aggregate → μ, log σ² → a sample in training, the mean otherwise → P × D."""

    def projection(self) -> nn.Module:
        """Return a linear map of the latent, Z → P × D."""
        return Expand(self.options.latent, self.model)

    def work(self, demos: TokenBounds) -> Work:
        """Count the aggregate, its latent, and the map of that to all tokens."""
        samples = len(demos.concat)
        latent = maps(self.bottleneck, samples) + maps(self.project, samples)
        return self.aggregate_work(demos) + latent

    def pool(self, aggregate: Tensor) -> Tensor:
        """Average the queries, [B, P, E] → [B, E]."""
        return aggregate.mean(dim=1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Sample one latent of all demos."""
        z, kl = self.sample(self.pool(self.aggregate(batch)), batch)
        return self.finish(self.project(z), losses={"kl": kl})


def mean_over(demos: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of [B, K, ...] over real demos [B, K]."""
    weights = mask.reshape(*mask.shape, *[1] * (demos.dim() - 2)).to(demos.dtype)  # [B, K, 1...]
    return (demos * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # 0 without demos
