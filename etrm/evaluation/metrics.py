"""Means over evaluated samples: the metrics `all.*` and `validation.*`, and those by ACT step."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from etrm.models.losses import SampleLoss
from etrm.runtime.distributed import Ranks

ONE = Ranks()


def means_by_step(predictions: pa.Table) -> dict[str, list[float]]:
    """Return token accuracy and exact match after each ACT step, means over predictions.

    Exact: all tokens of the output are right, and it fits the canvas. Predictions whose output is
    unknown count nowhere; without any other, nothing is returned.
    """
    columns = predictions.select(["accuracy_by_step", "fits"])
    known = columns.filter(pc.field("accuracy_by_step").is_valid() & pc.field("fits").is_valid())
    if not known.num_rows:
        return {}
    steps = known["accuracy_by_step"].combine_chunks()
    accuracy = steps.flatten().to_numpy().reshape(len(known), -1)  # [N, max_steps]
    exact = (accuracy == 1.0) & known["fits"].to_numpy()[:, None]
    means = (values.mean(axis=0, dtype=np.float64) for values in (accuracy, exact))
    return dict(zip(("accuracy", "exact_accuracy"), map(np.ndarray.tolist, means), strict=True))


class EvaluationSums:
    """Means over evaluated samples, and their number."""

    NAMES = ("accuracy", "exact_accuracy", "lm_loss", "q_halt_accuracy", "q_halt_loss", "steps")

    def __init__(self) -> None:
        # On the host, then on the device of the numbers added; the last: samples.
        self.sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64)

    def add(self, losses: SampleLoss, exact: Tensor, steps: Tensor) -> None:
        """Add a batch; `exact` [B]: all tokens right, and the true output fits the canvas."""
        values = (losses.accuracy, exact, losses.lm, losses.q_right, losses.q_halt, steps)
        kept = losses.labelled  # samples without a known output count nowhere
        totals = [torch.where(kept, v.double(), 0.0).sum() for v in values]
        added = torch.stack([*totals, kept.sum().double()])
        self.sums = self.sums.to(added.device, non_blocking=True) + added  # no batch is waited for

    def means(self, ranks: Ranks = ONE) -> dict[str, float]:
        """Return means by name, and `count`, over all ranks; empty where nothing was labelled."""
        sums = self.sums.cpu()  # on all ranks, also one that has added nothing
        ranks.sum_(sums)
        *totals, count = sums.tolist()
        if not count:
            return {}
        means = {name: t / count for name, t in zip(self.NAMES, totals, strict=True)}
        return {**means, "count": count}
