"""The metrics of training, under the experiment guide's names.

`train/accuracy`, `train/exact_accuracy`, `train/q_halt_accuracy` and `train/steps` are means over
the samples that halted (as official TRM counts them); `train/exact_accuracy_all` is over all
slots at whatever ACT depth they are. Losses are means over all slots. Sums stay on the device
until a row is logged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from etrm.models.losses import SampleLoss
from etrm.runtime.distributed import Ranks

ONE = Ranks()
OF_HALTED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")


class Window:
    """Sums over the steps between two logged rows, on the device where they arise."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # [2] float64 each: Σ total, Σ weight

    def add(self, name: str, total: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add a sum over `weight` items; a row holds Σ total / Σ weight, in float64."""
        total = total.detach().double()
        if not isinstance(weight, Tensor):  # filled on the device: a copy would hold up the step
            weight = total.new_full((), weight)
        pair = torch.stack([total, weight.detach().double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def add_samples(self, losses: SampleLoss, halted: Tensor, steps: Tensor, share: float) -> None:
        """Add one ACT step of B slots: losses, `halted` [B] bool, ACT `steps` [B] int64.

        `share`: of these slots among all, so that `train/count` is per step, not per micro-batch.
        """
        counted = halted & losses.labelled
        number, size = counted.sum(), len(halted)
        right = (losses.accuracy, losses.exact, losses.q_right, steps)
        for name, value in zip(OF_HALTED, right, strict=True):
            self.add(f"train/{name}", torch.where(counted, value.double(), 0.0).sum(), number)
        self.add("train/count", number, share)
        self.add("train/lm_loss", losses.lm.sum(), size)
        self.add("train/q_halt_loss", losses.q_halt.sum(), size)
        self.add("train/exact_accuracy_all", losses.exact.sum(), size)
        for name, value in losses.context.items():
            self.add(f"train/{name}_loss", value.sum(), size)

    def totals(self, ranks: Ranks = ONE) -> dict[str, tuple[float, float]]:
        """Return sums and weights over all ranks by name, fetched in one transfer."""
        names = sorted(self.sums)
        if not names:
            return {}
        table = torch.stack([self.sums[name] for name in names])  # [names, 2]
        ranks.sum_(table)
        return {name: (t, w) for name, (t, w) in zip(names, table.tolist(), strict=True)}

    def row(self, ranks: Ranks = ONE) -> dict[str, float]:
        """Return all means, without names of weight zero, and start the next row."""
        means = {n: total / weight for n, (total, weight) in self.totals(ranks).items() if weight}
        self.sums = {}
        return means

    def load(self, totals: Mapping[str, tuple[float, float]], device: torch.device) -> None:
        """Resume from `totals`."""
        self.sums = {
            name: torch.tensor(pair, dtype=torch.float64, device=device)
            for name, pair in totals.items()
        }


def encoder_statistics(context: Tensor) -> dict[str, Tensor]:
    """Return statistics of context tokens [B, P, D]: the guide's, and one free of scale.

    `encoder_cross_sample_var`: variance over samples, mean over tokens and channels.
    `encoder_relative_var`: the same over the mean square, unchanged when the output is scaled.
    """
    x = context.detach().float()
    variance = x.var(dim=0, unbiased=False).mean() if len(x) > 1 else x.new_zeros(())
    return {
        "train/encoder_cross_sample_var": variance,
        "train/encoder_relative_var": variance / x.square().mean().clamp(min=1e-12),
        "train/encoder_output_mean": x.mean(),
        "train/encoder_output_norm": x.norm(dim=-1).mean(),  # of a token's vector
        "train/encoder_output_std": x.std(unbiased=False),
        "train/encoder_token_std": x.std(dim=1, unbiased=False).mean(),  # over the P tokens
    }
