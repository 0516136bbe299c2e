"""The metrics `all.*` and `validation.*`: means over evaluated samples."""

from __future__ import annotations

import torch
from torch import Tensor

from etrm.models.losses import SampleLoss
from etrm.runtime.distributed import Ranks

ONE = Ranks()


class EvaluationSums:
    """Means over evaluated samples, and their number."""

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
        """Return means by name, and `count`, over all ranks; empty where nothing was labelled."""
        ranks.sum_(self.sums)  # in place, over all ranks
        *totals, count = self.sums.tolist()
        if not count:
            return {}
        means = {name: t / count for name, t in zip(self.NAMES, totals, strict=True)}
        return {**means, "count": count}
