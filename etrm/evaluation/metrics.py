"""The `all.*` metrics: means over evaluated samples."""

from __future__ import annotations

import torch
from torch import Tensor

from etrm.models.losses import SampleLoss
from etrm.runtime.distributed import Ranks

ONE = Ranks()


class EvaluationSums:
    """The `all.*` metrics: means over evaluated samples."""

    NAMES = ("accuracy", "exact_accuracy", "lm_loss", "q_halt_accuracy", "q_halt_loss", "steps")

    def __init__(self) -> None:
        self.sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64)  # the last: samples

    def add(self, losses: SampleLoss, exact: Tensor, steps: Tensor) -> None:
        """Add a batch; `exact` [B]: all tokens right, and the true output fits the canvas."""
        values = (losses.accuracy, exact, losses.lm, losses.q_right, losses.q_halt, steps)
        kept = losses.labelled  # samples without a known output count nowhere
        totals = [torch.where(kept, v.double(), 0.0).sum() for v in values]
        self.sums += torch.stack([*totals, kept.sum().double()]).cpu()

    def means(self, ranks: Ranks = ONE) -> dict[str, float]:
        """Return `all.<name>` over all ranks; empty where nothing was labelled."""
        ranks.sum_(self.sums)  # in place, over all ranks
        *totals, count = self.sums.tolist()
        pairs = zip(self.NAMES, totals, strict=True)
        return {f"all.{name}": total / count for name, total in pairs} if count else {}
