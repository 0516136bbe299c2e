"""The spaces that a search moves in: shifts of the context tokens, or of a latent behind them.

A point is a shift [B, ...] from the context that the encoder gives. One shift serves the contexts
of all leave-one-out queries of a sample, and that of all demos, from which the answer is decoded.
Shape suffixes: B samples, N demos of all samples, P context tokens, D width, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.encoders.base import ContextSource, Encoded
from etrm.models.encoders.shared import Bottleneck
from etrm.refinement.demos import Demos, encodings, leave_one_out, only_demo, rows_of


class Space:
    """A space of shifts; `origin` [B, ...] is the encoder's point, where the shift is 0."""

    origin: Tensor

    def __init__(self, model: Model, batch: Batch, demos: Demos, act_steps: int) -> None:
        self.model, self.batch, self.demos, self.steps = model, batch, demos, act_steps

    @cached_property
    def keys(self) -> Tensor:
        """Return the numbers of the samples [B] int64 from which their random numbers follow."""
        return content_keys(self.batch)

    @property
    def unit(self) -> Tensor:
        """Return the unit of lengths of each sample [B, 1, ...]: the RMS of its context, or 1."""
        return rms(self.origin).clamp(min=1.0)

    def narrow(self, kept: Tensor) -> Space:
        """Return the space of the samples where `kept` [B] is true, some of them."""
        found = copy(self)
        found.batch = rows_of(self.batch, kept.nonzero()[:, 0])
        found.demos = leave_one_out(found.batch)
        found.origin, found.keys = self.origin[kept], self.keys[kept]
        return found

    def noise(self, step: int, numbers: Tensor) -> Tensor:
        """Return normal numbers of the shape of a point, the same in every batch.

        Others for each step, and for each of the `numbers` [B] of starts.
        """
        shape = self.origin.shape
        columns = math.prod(shape[1:])
        u = random.uniform(step, 0, random.SEARCH, self.keys + numbers, columns)
        # By the inverse of the distribution: a number then does not depend on how many there are.
        normal = math.sqrt(2.0) * torch.erfinv((2.0 * u - 1.0).clamp(-1 + 1e-12, 1 - 1e-12))
        return normal.float().reshape(shape)

    def contexts(self, shift: Tensor) -> list[Encoded]:
        """Return the shifted contexts of the leave-one-out queries, by ACT step."""
        raise NotImplementedError

    def of_demo(self, number: int) -> Tensor:
        """Return the shift from the context of all demos to that of one."""
        raise NotImplementedError

    def shifted(self, shift: Tensor) -> ContextSource:
        """Return the context source that gives all demos' contexts, shifted."""
        raise NotImplementedError


class TokenSpace(Space):
    """Shifts [B, P, D] of the context tokens, in units of the decoder's stream.

    Cells of a context without bottleneck keep their shift wherever their token stands: the context
    without a demo lacks its tokens, and with them their shifts. TRM's embedding is one token, which
    alone is moved. A recurrent encoder's contexts have the same shift at every ACT step.
    """

    def __init__(self, *args: Any, encoded: Encoded | None = None) -> None:
        """Encode the batch, unless `encoded` is its encoding, and the leave-one-out queries."""
        super().__init__(*args)
        self.all = encodings(self.model, self.batch, 1)[0] if encoded is None else encoded
        self.others = encodings(self.model, self.demos.batch, self.steps)
        self.origin = self.all.tokens.float()
        self.free = self.origin.new_ones(*self.origin.shape[:2], 1)  # [B, P, 1]: may be moved
        if self.all.real is not None:
            self.free = self.all.real[..., None].float()
        elif not self.model.context.needs_demos:
            self.free[:, 1:] = 0.0
        shown, sample = self.demos.batch.demo_mask, self.demos.sample
        self.places = self._places(shown, sample, self.others[0])  # [N, P]

    def narrow(self, kept: Tensor) -> Space:
        """Return the space of some samples, whose tokens stay where they are."""
        found = super().narrow(kept)
        assert isinstance(found, TokenSpace)
        rows = kept[self.demos.sample]  # [N]
        found.all, found.free = _encoded(self.all, kept), self.free[kept]
        found.others = [_encoded(each, rows) for each in self.others]
        found.places = None if self.places is None else self.places[rows]
        return found

    def noise(self, step: int, numbers: Tensor) -> Tensor:
        """Return normal numbers, the same for a token wherever it stands."""
        found, real = super().noise(step, numbers), self.all.real
        if real is None:
            return found
        rank = (real.cumsum(dim=1) - 1).clamp(min=0)[..., None]
        return found.gather(1, rank.expand_as(found))

    @property
    def unit(self) -> Tensor:
        """Return the RMS of the tokens that may be moved [B, 1, 1], or 1."""
        square = (self.origin.square() * self.free).sum(dim=(1, 2), keepdim=True)
        count = self.free.sum(dim=(1, 2), keepdim=True) * self.origin.shape[-1]
        return (square / count).sqrt().clamp(min=1.0)

    def _places(self, shown: Tensor, sample: Tensor, there: Encoded) -> Tensor | None:
        """Return where each token of contexts with demos `shown` [N, K] is in that of all [N, P].

        None where tokens are of no demo, and all stay where they are.
        """
        if there.real is None or self.all.real is None or self.all.demos is None:
            return None
        owner = self.all.demos[sample]  # [N, P]
        kept = self.all.real[sample] & ((owner < 0) | shown.gather(1, owner.clamp(min=0)))
        # The tokens that are kept have the same order in both.
        here, after = ((~real).byte().argsort(dim=1, stable=True) for real in (kept, there.real))
        return torch.empty_like(here).scatter(1, after, here)

    def contexts(self, shift: Tensor) -> list[Encoded]:
        """Return the shifted contexts of the leave-one-out queries, by ACT step."""
        moved = (shift * self.free)[self.demos.sample]  # [N, P, D]
        if self.places is not None:
            moved = moved.gather(1, self.places[..., None].expand_as(moved))
        return [replace(e, tokens=e.tokens + moved) for e in self.others]

    def of_demo(self, number: int) -> Tensor:
        """Return the shift to the context of one demo; cells of other demos stay."""
        batch = only_demo(self.batch, number)
        there = encodings(self.model, batch, 1)[0]
        places = self._places(batch.demo_mask, torch.arange(len(batch)), there)
        if places is None:
            return there.tokens - self.origin
        index = places[..., None].expand_as(self.origin)
        moved = self.origin.scatter(1, index, there.tokens.to(self.origin.dtype))
        kept = torch.zeros_like(self.free[..., 0]).scatter(1, places, there.real.float())  # type: ignore[union-attr]
        return (moved - self.origin) * kept[..., None]

    def shifted(self, shift: Tensor) -> ContextSource:
        """Return the context source that gives all demos' contexts, shifted."""
        return Shifted(self.model.context, tokens=shift * self.free)


class LatentSpace(Space):
    """Shifts [B, Z] of the mean of a variational encoder's bottleneck.

    Contexts are made anew from every point, so they stay contexts that the encoder can give. Where
    each demo has a latent of its own, the average of them is moved.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.origin = self._latent(self.batch)

    def _latent(self, batch: Batch) -> Tensor:
        seen: list[Tensor] = []
        bottleneck = bottleneck_of(self.model.context)
        handle = bottleneck.register_forward_hook(lambda m, i, out: seen.append(out[0].float()))
        try:
            self.model.context(batch, None)
        finally:
            handle.remove()
        if seen[0].dim() == 2:
            return seen[0]
        weights = batch.demo_mask[..., None].float()
        return (seen[0] * weights).sum(dim=1) / weights.sum(dim=1)

    def contexts(self, shift: Tensor) -> list[Encoded]:
        """Return the contexts of the leave-one-out queries, encoded around the shifted latent."""
        source = Shifted(self.model.context, latent=shift[self.demos.sample])
        return [source(self.demos.batch, None)]

    def of_demo(self, number: int) -> Tensor:
        """Return the shift to the latent of one demo."""
        return self._latent(only_demo(self.batch, number)) - self.origin

    def shifted(self, shift: Tensor) -> ContextSource:
        """Return the context source that gives all demos' contexts around the shifted latent."""
        return Shifted(self.model.context, latent=shift)


SPACES = {"tokens": TokenSpace, "latent": LatentSpace}


class Shifted(ContextSource):
    """A context source whose tokens [B, P, D], or latents [B, Z], are moved by a shift."""

    def __init__(
        self, source: ContextSource, tokens: Tensor | None = None, latent: Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.source, self.tokens, self.latent = source, tokens, latent

    def initial_state(self, batch: int) -> Tensor | None:
        """Return that of the source."""
        return self.source.initial_state(batch)

    def context_size(self, most_cells: Mapping[str, int]) -> int:
        """Return that of the source."""
        return self.source.context_size(most_cells)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        """Encode as the source does, and shift."""
        if self.latent is not None:
            with moved_latent(self.source, self.latent):
                return self.source(batch, state)
        found: Encoded = self.source(batch, state)
        return found if self.tokens is None else replace(found, tokens=found.tokens + self.tokens)


@contextmanager
def moved_latent(source: ContextSource, shift: Tensor) -> Iterator[None]:
    """Add `shift` [B, Z] to the output of a source's bottleneck, [B, Z] or [B, K, Z]."""

    def move(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> Any:
        z, kl = output
        return z + (shift if z.dim() == 2 else shift[:, None]).to(z.dtype), kl

    handle = bottleneck_of(source).register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def bottleneck_of(source: ContextSource) -> Bottleneck:
    """Return the bottleneck of a variational encoder."""
    found = [module for module in source.modules() if isinstance(module, Bottleneck)]
    if not found:
        raise ValueError(f"found {type(source).__name__}, expected a variational encoder")
    return found[0]


def _encoded(encoded: Encoded, rows: Tensor) -> Encoded:
    """Return the tokens of some samples, as bool [B]."""

    def some(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return Encoded(
        encoded.tokens[rows],
        real=some(encoded.real),
        places=some(encoded.places),
        demos=some(encoded.demos),
    )


def rms(x: Tensor) -> Tensor:
    """Return the root mean square of each sample, [B, 1, ...]."""
    return x.square().mean(dim=tuple(range(1, x.dim())), keepdim=True).sqrt()


def content_keys(batch: Batch) -> Tensor:
    """Return a number for each sample [B] int64, a function of its demos alone."""
    grids = torch.stack([batch.demo_inputs, batch.demo_outputs], dim=2)  # [B, K, 2, S]
    grids = (grids * batch.demo_mask[:, :, None, None]).flatten(2)  # PAD, 0, counts nowhere
    slots = torch.arange(grids[0].numel(), device=grids.device).reshape(grids.shape[1:])
    mixed = random.uniform(0, 0, random.SEARCH, (16 * slots + grids).flatten())[:, 0]
    numbers = (mixed * 2.0**53).long().reshape(grids.shape)
    return torch.where(grids > 0, numbers, 0).flatten(1).sum(dim=1)  # overflow wraps around
