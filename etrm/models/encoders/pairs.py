"""The reading of demos: tokens of pairs, grids or samples, their places and demos, and pooling.

Shape suffixes: B batch, K demos, S grid tokens, T tokens of a row, R all rows of a batch, n rows of
one group, D width of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etrm.arc.grid import PAD, VOCAB_SIZE
from etrm.config.lanes import MAX_SIDE, Lane
from etrm.config.study import ModelConfig
from etrm.data.batch import Batch
from etrm.data.packing import Group, groups_of
from etrm.models.flops import Work, maps
from etrm.models.layers import (
    STD_POSITION,
    Angles,
    CrossAttention,
    Linear,
    Mask,
    Rotary,
    Segments,
    TokenEmbedding,
    has_flash,
    learned,
    rms_norm,
    rotate,
)

PAIRINGS = ("aligned", "concat")
POOLINGS = ("mean", "max", "attention", "weighted")


@dataclass
class Sequences:
    """A group of rows of like length as token sequences; T tokens."""

    tokens: Tensor  # [n, T, D]
    real: Tensor  # [n, T] bool: real cells, at least one in each row
    mask: Mask  # the same for attention; None where all cells are real
    rotary: Angles  # [n, T, head width] each
    places: Tensor  # [n, T] int64: cells of the canvas, in reading order
    demos: Tensor  # [n, T] int64: the number of a cell's demo in its sample
    grids: Tensor  # [n, T, 2] bool: the grids, input and output, that a token shows a cell of
    lane: Lane
    count: int  # K

    def same_demo(self) -> Mask:
        """Return the mask [n, T, T] of real cells of the same demo; every token sees itself."""
        if isinstance(self.mask, Segments):  # cells are in the order of their demos
            return Segments.of(self.members(self.count).sum(dim=-1), self.tokens.shape[1])
        same = (self.demos[:, :, None] == self.demos[:, None]) & self.real[:, None]
        return same | torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)

    def members(self, count: int) -> Tensor:
        """Return bool [n, K, T]: the real cells of each of `count` demos."""
        number = torch.arange(count, device=self.demos.device)[:, None]
        return (self.demos[:, None] == number) & self.real[:, None]

    def demo_means(self, x: Tensor, count: int) -> Tensor:
        """Return the means of `x` [n, T, D] over the cells of each demo [n, K, D]; 0 for none."""
        weights = self.members(count).to(x.dtype)
        return weights @ x / weights.sum(dim=-1, keepdim=True).clamp(min=1)


class PairTokens(nn.Module):
    """The demos of a batch as token sequences, encoded row by row.

    `pairing` `aligned`: the embeddings of input and output at the same cell are added, on the union
    of the two grids (at most S tokens). `concat`: the input's tokens, then the output's (at most
    2S), each with an embedding of its own.

    `rows`: a row is a `pair`, all demos of a `sample` one after the other, or a `grid`: the input's
    and the output's cells apart, where `aligned` adds the other grid's cell.

    Only real demos are encoded, and of these only real cells. `packing`: `exact` reads lengths from
    the batch (on a CPU), `bounds` takes its `token_bounds` (on a GPU, which would have to wait for
    the lengths), `none` encodes all rows at one length, `auto` chooses the best of them.
    """

    packing = "auto"

    def __init__(
        self, pairing: str, width: int, heads: int, model: ModelConfig, rows: str = "pair"
    ) -> None:
        super().__init__()
        self.pairing, self.rows = pairing, rows
        self.scale = math.sqrt(width)  # embeddings have 1/√D: the stream has an RMS of 1
        self.embed_inputs = TokenEmbedding(width)
        self.embed_outputs = TokenEmbedding(width)
        self.rotary = Rotary(width // heads, 0, model.positions, model.rope_theta)

    def vectors(self, batch: Batch, encode: Callable[[Sequences, Tensor], Tensor]) -> Tensor:
        """Return the results of `encode` for all rows, zero for demos that do not exist.

        `encode` maps n rows and their numbers [n] to [n, ...]; the result is [B, K, ...] of pairs,
        [B, ...] of samples, [B, K, 2, ...] of grids.
        """
        size, demos = batch.demo_mask.shape
        lead = {"pair": (size, demos), "sample": (size,), "grid": (size, demos, 2)}[self.rows]
        parts = [(rows, encode(found, rows)) for rows, found in self.groups(batch)]
        out = parts[0][1].new_zeros(math.prod(lead), *parts[0][1].shape[1:])
        for rows, vectors in parts:
            out = out.index_copy(0, rows, vectors)
        return out.unflatten(0, lead)

    def groups(self, batch: Batch) -> Iterator[tuple[Tensor, Sequences]]:
        """Yield the row numbers [n] and the rows of one group after the other."""
        cells, real = self._cells(batch)
        for group in self._plan(batch, real):
            rows = group.rows
            yield rows, self._sequences(cells[rows], real[rows], group.length, batch)

    def _cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return ids of all cells [R, T, ids], one or two ids each, and the real ones [R, T]."""
        inputs, outputs = batch.demo_inputs, batch.demo_outputs  # [B, K, S]
        exists = batch.demo_mask[..., None]
        real_in, real_out = exists & (inputs != PAD), exists & (outputs != PAD)
        outputs = outputs + VOCAB_SIZE  # one table, with the embeddings of outputs behind
        aligned = torch.stack([inputs, outputs], dim=-1)  # [B, K, S, 2]
        if self.rows == "grid":
            cells = torch.stack([inputs, outputs], dim=2)[..., None]  # [B, K, 2, S, 1]
            if self.pairing == "aligned":
                cells = torch.stack([aligned, aligned.flip(-1)], dim=2)  # [B, K, 2, S, 2]
            return cells.flatten(0, 2), torch.stack([real_in, real_out], dim=2).flatten(0, 2)
        if self.pairing == "aligned":
            cells, real = aligned, real_in | real_out
        else:
            cells = torch.cat([inputs, outputs], dim=2)[..., None]  # [B, K, 2S, 1]
            real = torch.cat([real_in, real_out], dim=2)
        first = 0 if self.rows == "pair" else 1  # demos are rows, or part of a row
        return cells.flatten(first, first + 1), real.flatten(first, first + 1)

    def _plan(self, batch: Batch, real: Tensor) -> list[Group]:
        """Group the rows by lengths that the host knows."""
        packing, groups = self.packing, list[Group]()
        if packing == "auto":
            packing = "exact" if real.device.type == "cpu" else "bounds"
        if packing == "exact":
            groups = groups_of(real.sum(dim=1).numpy())
        elif packing == "bounds" and batch.token_bounds is not None:
            groups = batch.token_bounds.groups(self.pairing, self.rows, real.device)
        length = real.shape[1]
        if self.rows == "sample":  # the room that a context of cells has, see `context_size`
            length = min(length, batch.cells[self.pairing])
        return groups or [Group(torch.arange(len(real), device=real.device), length)]

    def _sequences(self, cells: Tensor, real: Tensor, length: int, batch: Batch) -> Sequences:
        """Embed the first `length` real cells of each row, or all cells [n, T, ids]."""
        canvas = batch.inputs.shape[-1]  # S
        length, width = min(length, real.shape[1]), self.rotary.cos.shape[-1]
        flash = has_flash(real.device, self.embed_inputs.dtype, width)
        order = torch.arange(length, device=real.device).expand(len(real), -1)
        first = order == 0
        if flash or length < real.shape[1]:  # real cells to the front, in their order
            order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
            cells = cells.gather(1, order[..., None].expand(-1, -1, cells.shape[-1]))
            real = real.gather(1, order)
        # Attention needs one token to look at: demos that do not exist show their first cell, and
        # are masked out where demos meet.
        real = real | (first & ~real.any(dim=1, keepdim=True))
        full = real.device.type == "cpu" and bool(real.all())  # a GPU would wait for the answer
        mask = Segments.of(real.sum(dim=1, keepdim=True), length) if flash else real
        row = canvas * (2 if self.pairing == "concat" and self.rows != "grid" else 1)
        places = order % canvas
        shown, output = cells % VOCAB_SIZE != PAD, cells >= VOCAB_SIZE  # [n, T, ids]
        cos, sin = self.rotary(batch.lane)
        return Sequences(
            tokens=self._embed(cells),
            real=real,
            mask=None if full else mask,
            rotary=(cos[places], sin[places]),
            places=places,
            demos=order // row,
            grids=torch.stack([shown & ~output, shown & output], dim=-1).any(dim=-2),
            lane=batch.lane,
            count=batch.demo_mask.shape[1],
        )

    def _embed(self, cells: Tensor) -> Tensor:
        """Map ids [n, T, ids] to [n, T, D]; the sum of two keeps the RMS of one."""
        tables = [self.embed_inputs, self.embed_outputs]
        table = torch.cat([t.embedding_weight for t in tables]).to(tables[0].dtype)  # [2V, D]
        vectors = [F.embedding(ids, table) for ids in cells.unbind(dim=-1)]
        return self.scale / math.sqrt(len(vectors)) * torch.stack(vectors).sum(dim=0)


class LearnedPlaces(nn.Module):
    """A learned vector for each row and column of the 30×30 canvas, as in LPN (2411.08706)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = learned(MAX_SIDE, width, std=STD_POSITION)
        self.columns = learned(MAX_SIDE, width, std=STD_POSITION)

    def forward(self, cells: Sequences) -> Tensor:
        """Return the vector of the place of each token [n, T, E], in the tokens' number format."""
        columns = cells.lane.columns
        places = self.rows[cells.places // columns] + self.columns[cells.places % columns]
        return places.to(cells.tokens.dtype)


class DemoCodes(nn.Module):
    """A vector for each demo, made of its own cells, which tells them from those of other demos.

    Embeddings of cells, turned by their places so that these count, are averaged by demo. A demo's
    code is the mean direction from the other demos to it. A direction is as long for few different
    cells as for many, and demos with different means never share a code: it is the gradient of a
    strictly convex function, the mean distance to the demos. Equal demos have equal codes, a single
    demo has none, and the order of demos changes nothing.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.project = heads, Linear(width, width)

    def forward(self, cells: Sequences, demo_mask: Tensor) -> Tensor:
        """Return the code of the demo of each token [n, T, E]; `demo_mask` [n, K]."""
        count = demo_mask.shape[1]
        turned = rotate(cells.tokens.unflatten(-1, (self.heads, -1)), cells.rotary).flatten(-2)
        means = cells.demo_means(turned.float(), count)  # [n, K, E]
        apart = rms_norm(means[:, :, None] - means[:, None])  # [n, K, K, E]: 0 for itself
        others = (demo_mask.sum(dim=1) - 1).clamp(min=1)[:, None, None]
        codes = (apart * demo_mask[:, None, :, None]).sum(dim=2) / others  # [n, K, E]
        codes = self.project(codes.to(turned.dtype))
        return cells.members(count).mT.to(codes.dtype) @ codes  # each token's, by a choice of K


class Pooling(nn.Module):
    """Masked pooling of tokens [n, T, D] → [n, D].

    `mean`; `max`; `attention`: one learned query attends to the tokens; `weighted`: a softmax of
    a learned score per token.
    """

    def __init__(self, kind: str, width: int, heads: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(width))  # the one vector that is not cut at ±2
            self.attention = CrossAttention(width, heads)
        elif kind == "weighted":
            self.score = Linear(width, 1)

    def work(self, tokens: float, rows: float) -> Work:
        """Return the FLOPs of pooling so many tokens of so many rows."""
        if self.kind == "attention":
            attend = Work(attention=4.0 * len(self.query) * tokens)
            keys = maps(self.attention.kv_proj, tokens)
            return (
                keys
                + maps(self.attention.q_proj, rows)
                + maps(self.attention.o_proj, rows)
                + attend
            )
        return maps(self, tokens)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool where `mask` [n, T] is true, at least once in each row."""
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
