"""A batch of samples on one canvas lane."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from etrm.data.packing import TokenBounds

# What a batch has besides the tensors of its samples.
BESIDE = ("token_bounds", "most_cells", "noise")


@dataclass
class Batch:
    """B samples of a lane with S = side² cells and room for K demos; token ids are uint8→int64."""

    puzzle: Tensor  # [B] int64: row of the augmentation table (a task in one variant)
    task: Tensor  # [B] int64: index of the task
    inputs: Tensor  # [B, S] int64: the query's input
    labels: Tensor  # [B, S] int64: its output; PAD where the loss ignores a cell
    demo_inputs: Tensor  # [B, K, S] int64
    demo_outputs: Tensor  # [B, K, S] int64
    demo_mask: Tensor  # [B, K] bool: true for real demos
    token_bounds: TokenBounds | None = None  # where they are known on the host
    most_cells: Mapping[str, int] | None = None  # a sample's demos in this lane, by pairing
    noise: Tensor | None = None  # [B, n] normal numbers of this ACT step, for sources that sample

    @staticmethod
    def where(condition: Tensor, new: Batch, old: Batch) -> Batch:
        """Sample by sample: that of `new` where `condition` [B] holds, else that of `old`.

        The `token_bounds` is that of `new`, for what comes of the two; noise is the step's.
        """

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(condition.reshape(-1, *[1] * (a.dim() - 1)), a, b)

        pairs = zip(new.tensors().items(), old.tensors().values(), strict=True)
        kept = {name: pick(a, b) for (name, a), b in pairs}
        return Batch(
            **kept, token_bounds=new.token_bounds, most_cells=new.most_cells, noise=new.noise
        )

    @property
    def cells(self) -> Mapping[str, int]:
        """The most cells that a sample's demos can have, by pairing: of its lane, or at all."""
        demos, canvas = self.demo_inputs.shape[1:]
        return self.most_cells or {"aligned": demos * canvas, "concat": 2 * demos * canvas}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in BESIDE]
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return int(self.puzzle.shape[0])
