"""A batch of samples on one canvas lane.

Shapes: B batch, K demos, S grid tokens: the cells of the lane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etrm.config.lanes import Lane
from etrm.data.packing import TokenBounds

# Fields of a batch that are no tensors of its samples.
BESIDE = ("lane", "token_bounds", "most_cells", "noise")


@dataclass
class Batch:
    """B samples of a lane; token ids are uint8→int64, PAD where a sample has fewer than K demos."""

    puzzle: Tensor  # [B] int64: row of the augmentation table (a task in one variant)
    task: Tensor  # [B] int64: index of the task
    inputs: Tensor  # [B, S] int64: the query's input
    labels: Tensor  # [B, S] int64: its output; PAD where the loss ignores a cell
    demo_inputs: Tensor  # [B, K, S] int64
    demo_outputs: Tensor  # [B, K, S] int64
    demo_mask: Tensor  # [B, K] bool: true for real demos
    lane: Lane  # known on the host, where shapes are decided
    token_bounds: TokenBounds | None = None  # where they are known on the host
    most_cells: Mapping[str, int] | None = None  # a sample's demos in this lane, by pairing
    noise: Tensor | None = None  # [B, n] normal numbers of this ACT step, for sources that sample

    @staticmethod
    def where(condition: Tensor, new: Batch, old: Batch) -> Batch:
        """Return sample by sample that of `new` where `condition` [B] holds, else that of `old`.

        Lane, bounds and noise are those of `new`, which is made for the step at hand.
        """
        fields: dict[str, Any] = {name: getattr(new, name) for name in BESIDE}
        for name, tensor in new.tensors().items():
            per_sample = condition.reshape(-1, *[1] * (tensor.dim() - 1))
            fields[name] = torch.where(per_sample, tensor, getattr(old, name))
        return Batch(**fields)

    @property
    def cells(self) -> Mapping[str, int]:
        """Return the most tokens that a sample's demos can have, by pairing."""
        demos, canvas = self.demo_inputs.shape[1:]
        return self.most_cells or {"aligned": demos * canvas, "concat": 2 * demos * canvas}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the samples, by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in BESIDE]
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return len(self.puzzle)
