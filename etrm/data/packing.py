"""Packing demos of unequal size: rows of like length are computed together, without the padding.

How long a row can be must be known on the host, where shapes are decided. A CPU looks; for a GPU, a
batch carries bounds (`TokenBounds`) from the host's knowledge of its questions.

Shapes: B batch, K demos, n rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The cost of another group of rows, in tokens: it must save more than that.
GROUP_COST = 256
# Bounds are rounded up to this: the attention of GPUs wants its masks so, and shapes vary less.
MULTIPLE = 8


@dataclass(frozen=True)
class TokenBounds:
    """The most tokens that each demo of a batch can have, by pairing; 0 where there is no demo."""

    concat: np.ndarray  # [B, K] int64: cells and EOS of both grids
    aligned: np.ndarray  # [B, K] int64: of their union

    def of(self, pairing: str) -> np.ndarray:
        """Return the tokens [B, K] of `concat` or `aligned` pairs."""
        return {"concat": self.concat, "aligned": self.aligned}[pairing]

    def take(self, index: np.ndarray) -> TokenBounds:
        """Return bounds at places `index` of any shape, 0 where it is -1."""
        found = (np.where(index < 0, 0, each[index]) for each in (self.concat, self.aligned))
        return TokenBounds(*found)

    def most_cells(self) -> dict[str, int]:
        """Return the most tokens that all demos of any row have together, by pairing."""
        bounds = {"concat": self.concat, "aligned": self.aligned}
        return {name: int(each.sum(axis=1).max(initial=0)) for name, each in bounds.items()}

    def groups(self, pairing: str, rows: str, device: torch.device) -> list[Group]:
        """Return groups of rows by their bounds.

        `rows`: a `pair` each [B·K], a `grid` each [B·K·2], or all demos of a `sample` [B].
        """
        bounds = self.of(pairing)
        if rows == "sample":
            bounds = bounds.sum(axis=1)
        elif rows == "grid":  # a grid has no more cells than its pair
            bounds = np.repeat(bounds, 2)
        return groups_of(-(-bounds.flatten() // MULTIPLE) * MULTIPLE, device)  # rounded up


@dataclass(frozen=True)
class Group:
    """Rows that are computed together."""

    rows: Tensor  # [n] int64, ascending
    length: int  # tokens of the longest


def pair_token_bounds(sizes: np.ndarray, cells: int) -> TokenBounds:
    """Return the tokens [N] of pairs wherever they stand on a canvas of that many `cells`.

    `sizes` [N, 2, 2]: height and width of input and output on the canvas, 0 where it is unknown.
    A grid of h × w cells has at most h + w EOS beside it: a rectangle without its corner.
    """
    tokens = (sizes + 1).prod(axis=-1) - 1  # [N, 2]; 0 for an unknown grid
    least = sizes.min(axis=1)  # [N, 2]
    corners = (sizes == least[:, None]).all(axis=-1)  # within the rectangle that both share
    same = corners.all(axis=1)
    shared = (least + 1).prod(axis=-1) - corners.sum(axis=1) + same
    union = tokens.sum(axis=1) - np.where((sizes > 0).all(axis=(1, 2)), shared, 0)
    return TokenBounds(np.minimum(tokens, cells).sum(axis=1), np.minimum(union, cells))


def groups_of(
    lengths: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
) -> list[Group]:
    """Return rows in groups of like length; those of length 0 are in none.

    Minimises padded tokens plus `GROUP_COST` a group, over all ways to cut the sorted lengths, by
    dynamic programming: `best[i]` is the least cost of the first i distinct lengths.
    """
    lengths = np.asarray(lengths)
    values, counts = np.unique(lengths[lengths > 0], return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # rows shorter than each value
    best, cut = np.zeros(len(values) + 1), np.zeros(len(values) + 1, dtype=np.int64)
    for end in range(1, len(values) + 1):
        # The last group: the values from each possible start to `end`, padded to the longest.
        cost = best[:end] + values[end - 1] * (before[end] - before[:end]) + GROUP_COST
        cut[end] = int(cost.argmin())
        best[end] = cost[cut[end]]
    groups, end = [], len(values)
    while end > 0:  # back along the best cuts
        low, high = values[cut[end]], values[end - 1]
        rows = torch.from_numpy(np.flatnonzero((lengths >= low) & (lengths <= high)))
        if torch.device(device).type == "cuda":
            rows = rows.pin_memory()  # so that the host does not wait for the copy
        groups.append(Group(rows.to(device, non_blocking=True), int(high)))
        end = int(cut[end])
    return groups[::-1]
