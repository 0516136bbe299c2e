"""The pools of pairs from which the demos of questions are drawn.

A task may have a thousand pairs, and each of them a question about the others: a pool is stored
once, and a question is a place in it. Memory is proportional to pairs.

Shapes: B batch, K demos, E questions, N members of all pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pools:
    """Of each question, a range of `members`: its demos are these, but never the query."""

    members: Tensor  # [N] int64: pair indices, pool after pool
    first: Tensor  # [E] int64: the member at which the pool begins
    size: Tensor  # [E] int64
    query: Tensor  # [E] int64: place of the query in the pool; `size` where it is not in it

    @classmethod
    def of(cls, pools: Sequence[Sequence[int]], pool: Sequence[int], query: Sequence[int]) -> Pools:
        """Use `pools` of pair indices; `pool` [E] is the one of each question, `query` its pair."""
        sizes = np.array([len(each) for each in pools], dtype=np.int64)
        places = [{pair: place for place, pair in enumerate(each)} for each in pools]
        asked = [places[p].get(q, len(pools[p])) for p, q in zip(pool, query, strict=True)]
        of = np.asarray(pool, dtype=np.int64)
        members = np.concatenate([np.asarray(each, dtype=np.int64) for each in pools])
        found = (members, (sizes.cumsum() - sizes)[of], sizes[of], np.array(asked, dtype=np.int64))
        return cls(*map(torch.from_numpy, found))

    def to(self, device: torch.device) -> Pools:
        """Return the pools on a device."""
        return Pools(*(getattr(self, field.name).to(device) for field in fields(self)))

    def others(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return how many demos each of the questions `index` could show."""
        size = self.size[index]
        return size - (self.query[index] < size).long()

    def find(self, index: Tensor, places: Tensor) -> Tensor:
        """Return the members [B, K] at `places` [B, K] among the others of each question.

        -1 where there is none, or where the place is -1.
        """
        query, others = self.query[index][:, None], self.others(index)[:, None]
        found = self.first[index][:, None] + places + (places >= query).long()
        return found.masked_fill((places < 0) | (places >= others), -1)

    def most(self, values: np.ndarray, number: int) -> int:
        """Return the largest sum of `values` [N] over `number` demos of any question, or fewer."""
        shown = self.others().clamp(max=number)
        ranges = torch.stack([self.first, self.size, shown], dim=1).unique(dim=0).tolist()
        pools = (np.sort(values[first : first + size])[::-1][:n] for first, size, n in ranges)
        return max((int(largest.sum()) for largest in pools), default=0)
