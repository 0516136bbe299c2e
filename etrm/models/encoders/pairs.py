"""How encoders read demonstration pairs: tokens of a pair, and pooling of tokens.

Shapes: B batch, K demos, S cells of the canvas, T tokens of a pair, D width of the encoder, n demos
of one group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.arc.grid import PAD, VOCAB_SIZE
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.data.packing import Group, groups_of
from etrm.models.layers import CrossAttention, Rotary, TokenEmbedding, linear

PAIRINGS = ("aligned", "concat")
POOLINGS = ("mean", "max", "attention", "weighted")


@dataclass
class Sequences:
    """Demos of like length as token sequences; n of the rows of a batch."""

    tokens: Tensor  # [n, T, D]
    real: Tensor  # [n, T] bool: true for real cells, at least one in each row
    mask: Tensor | None  # the same for attention; None where all cells are real
    rotary: tuple[Tensor, Tensor]  # cos and sin, [n, T, head width] or [T, head width]
    places: Tensor  # [n, T] int64: cells of the canvas, in reading order
    demos: Tensor  # [n, T] int64: which demo of a sample a cell belongs to
    outputs: Tensor  # [n, T] bool: cells of output grids, in `concat`; false in `aligned`
    side: int  # of the canvas, in cells

    def same_demo(self) -> Tensor:
        """[n, T, T] bool: real cells of the same demo; every token may attend to itself."""
        same = (self.demos[:, :, None] == self.demos[:, None]) & self.real[:, None]
        return same | torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)


class PairTokens(nn.Module):
    """Demos of a batch as token sequences, and what an encoder makes of each.

    `aligned`: the embeddings of input and output at the same cell are added, on the union of the
    two grids (at most S tokens). `concat`: the input's tokens, then the output's (at most 2S),
    each with an embedding of its own.

    A row is a `pair`, all demos of a `sample` one after the other, or a `grid`: the input's and the
    output's cells apart, which in `aligned` show what the other grid has there.

    Only real demos are encoded, and of these only real cells: `packing` is `exact` where lengths
    Only real demos are encoded, and of these only real cells: `packing` is `exact` where lengths
    are read from the batch (on a CPU), `bounds` where they are its `token_bounds` (on a GPU),
    `none` for all rows at full length, `auto` for the best that there is.
    """

    packing = "auto"

    def __init__(
        self, pairing: str, width: int, heads: int, model: ModelConfig, rows: str = "pair"
    ) -> None:
        super().__init__()
        self.pairing, self.width, self.rows = pairing, width, rows
        self.scale = math.sqrt(width)
        self.embed_inputs = TokenEmbedding(width)
        self.embed_outputs = TokenEmbedding(width)
        self.rotary = Rotary(width // heads, 0, model.positions, model.rope_theta)

    def vectors(self, batch: Batch, encode: Callable[[Sequences, Tensor], Tensor]) -> Tensor:
        """What `encode` makes of each row, zero for rows of demos that do not exist.

        `encode` maps n rows and their numbers [n] to [n, …]; the result is [B, K, …] of pairs,
        [B, …] of samples, [B, K, 2, …] of grids.
        """
        shape = {"pair": batch.demo_mask.shape, "sample": batch.demo_mask.shape[:1]}
        lead = shape.get(self.rows, torch.Size([*batch.demo_mask.shape, 2]))
        parts = [(rows, encode(found, rows)) for rows, found in self.groups(batch)]
        first = parts[0][1]
        out = first.new_zeros(lead.numel(), *first.shape[1:])
        for rows, vectors in parts:
            out = out.index_copy(0, rows, vectors)
        return out.unflatten(0, lead)

    def groups(self, batch: Batch) -> Iterator[tuple[Tensor, Sequences]]:
        """Row numbers [n] and the rows, group by group."""
        cells, real = self._cells(batch)
        for group in self._plan(batch, real):
            rows = group.rows
            yield rows, self._sequences(cells[rows], real[rows], group.length, batch)

    def _cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids of all cells of all rows [R, T, grids], and which are real [R, T].

        `grids` is 2 aligned, 1 one after the other; ids of outputs come after those of inputs.
        """
        inputs, outputs = batch.demo_inputs, batch.demo_outputs
        exists = batch.demo_mask[..., None]
        real_in, real_out = exists & (inputs != PAD), exists & (outputs != PAD)
        outputs = outputs + VOCAB_SIZE
        aligned = torch.stack([inputs, outputs], dim=-1)
        if self.rows == "grid":
            apart = torch.stack([inputs, outputs], dim=2)[..., None]
            both = torch.stack([aligned, aligned.flip(-1)], dim=2)
            cells = both if self.pairing == "aligned" else apart
            return cells.flatten(0, 2), torch.stack([real_in, real_out], dim=2).flatten(0, 2)
        if self.pairing == "aligned":
            cells, real = aligned, real_in | real_out
        else:
            cells = torch.cat([inputs, outputs], dim=2)[..., None]
            real = torch.cat([real_in, real_out], dim=2)
        first = 0 if self.rows == "pair" else 1  # a row is a pair, or all of a sample
        return cells.flatten(first, first + 1), real.flatten(first, first + 1)

    def _plan(self, batch: Batch, real: Tensor) -> list[Group]:
        """Which rows go together, by lengths that the host knows."""
        packing, groups = self.packing, list[Group]()
        if packing == "auto":
            packing = "exact" if real.device.type == "cpu" else "bounds"
        if packing == "exact":
            groups = groups_of(real.sum(dim=1).numpy())
        elif packing == "bounds" and batch.token_bounds is not None:
            groups = batch.token_bounds.groups(self.pairing, self.rows, real.device)
        return groups or [Group(torch.arange(len(real), device=real.device), real.shape[1])]

    def _sequences(self, cells: Tensor, real: Tensor, length: int, batch: Batch) -> Sequences:
        """The first `length` real cells of each row, or all cells."""
        canvas = batch.inputs.shape[-1]
        length = min(length, real.shape[1])
        cos, sin = self.rotary(math.isqrt(canvas))
        order = torch.arange(length, device=real.device).expand(len(real), -1)
        if length < real.shape[1]:
            order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
            cells = cells.gather(1, order[..., None].expand(-1, -1, cells.shape[-1]))
            real = real.gather(1, order)
        # Attention needs one token to look at: demos that do not exist show their first cell, and
        # are masked out where demos meet.
        first = torch.arange(length, device=real.device) == 0
        real = real | (first & ~real.any(dim=1, keepdim=True))
        full = real.device.type == "cpu" and bool(real.all())
        pair = canvas * (2 if self.pairing == "concat" and self.rows != "grid" else 1)
        places = order % canvas
        return Sequences(
            tokens=self._embed(cells),
            real=real,
            mask=None if full else real,
            rotary=(cos[places], sin[places]),
            places=places,
            demos=order // pair,
            outputs=cells[..., 0] >= VOCAB_SIZE,
            side=math.isqrt(canvas),
        )

    def _embed(self, cells: Tensor) -> Tensor:
        """[n, T, grids] ids → [n, T, D]."""
        tables = [self.embed_inputs, self.embed_outputs]
        table = torch.cat([t.embedding_weight for t in tables]).to(tables[0].dtype)
        vectors = [F.embedding(ids, table) for ids in cells.unbind(dim=-1)]
        return self.scale / math.sqrt(len(vectors)) * torch.stack(vectors).sum(dim=0)


class Pooling(nn.Module):
    """Masked pooling of tokens [N, T, D] → [N, D].

    `mean`; `max`; `attention`: one learned query attends to the tokens; `weighted`: a softmax of
    a learned score per token.
    """

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(width))
            self.attention = CrossAttention(width, heads)
        elif kind == "weighted":
            self.score = linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`mask` [N, T] is true for real tokens, at least one in each row."""
        if self.kind == "attention":
            query = self.query.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            return self.attention(query, tokens, mask)[:, 0]
        if self.kind == "max":
            return tokens.masked_fill(~mask[..., None], -math.inf).amax(dim=1)
        if self.kind == "weighted":
            scores = self.score(tokens).masked_fill(~mask[..., None], -math.inf)
            return (scores.softmax(dim=1) * tokens).sum(dim=1)
        weights = mask[..., None].to(tokens.dtype)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)
