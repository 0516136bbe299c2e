"""The metrics of training and evaluation, under the experiment guide's names.

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
HALTED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")


class Window:
    """Sums over the steps between two logged rows, on the device where they arise."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor, weight: Tensor | float = 1.0) -> None:
        """`total` is a sum over `weight` things; the row has total / weight over all calls."""
        total = total.detach().double()
        weight = weight.detach().double() if isinstance(weight, Tensor) else float(weight)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.weights[name] = self.weights[name] + weight if name in self.weights else weight

    def add_samples(self, losses: SampleLoss, halted: Tensor, steps: Tensor, share: float) -> None:
        """One lane's ACT step: per-sample losses, who halted and after how many steps.

        `share`: this lane's part of all slots, so that `train/count` is per step, not per lane.
        """
        counted = halted & losses.labelled
        number = counted.sum()
        right = (losses.accuracy, losses.exact.double(), losses.q_right.double(), steps.double())
        for name, value in zip(HALTED, right, strict=True):
            self.add(f"train/{name}", torch.where(counted, value.double(), 0.0).sum(), number)
        size = len(halted)
        self.add("train/count", number, share)
        self.add("train/lm_loss", losses.lm.sum(), size)
        self.add("train/q_halt_loss", losses.q_halt.sum(), size)
        self.add("train/exact_accuracy_all", losses.exact.sum(), size)
        for name, value in losses.context.items():
            self.add(f"train/{name}_loss", value.sum(), size)

    def totals(self, ranks: Ranks = ONE) -> dict[str, tuple[float, float]]:
        """Sums and weights over all ranks by name, fetched in one transfer."""
        names = sorted(self.sums)
        if not names:
            return {}
        device = self.sums[names[0]].device
        weights = [self.weights[n] for n in names]
        known = torch.tensor(
            [0.0 if isinstance(w, Tensor) else w for w in weights], dtype=torch.float64
        )
        zero = self.sums[names[0]].new_zeros(())
        counted = torch.stack([w if isinstance(w, Tensor) else zero for w in weights])
        table = torch.stack([torch.stack([self.sums[n] for n in names]), counted])
        table[1] += known.to(device, non_blocking=True)
        ranks.sum_(table)
        totals, summed = table.tolist()
        return dict(zip(names, zip(totals, summed, strict=True), strict=True))

    def row(self, ranks: Ranks = ONE) -> dict[str, float]:
        """All means; names that nothing was counted for are absent. Begins the next row."""
        means = {n: total / weight for n, (total, weight) in self.totals(ranks).items() if weight}
        self.sums, self.weights = {}, {}
        return means

    def load(self, totals: Mapping[str, tuple[float, float]], device: torch.device) -> None:
        """Go on from `totals`."""
        self.sums = {
            n: torch.tensor(t, dtype=torch.float64, device=device) for n, (t, _) in totals.items()
        }
        self.weights = {n: w for n, (_, w) in totals.items()}


def encoder_statistics(context: Tensor) -> dict[str, Tensor]:
    """Statistics of context tokens [B, P, D]: the guide's, and scale-free ones.

    `encoder_cross_sample_var`: variance over samples, mean over tokens and channels.
    `encoder_relative_var`: the same divided by the mean square, so that it does not change when
    the encoder's output is scaled.
    """
    x = context.detach().float()
    variance = x.var(dim=0, unbiased=False).mean() if len(x) > 1 else x.new_zeros(())
    return {
        "train/encoder_cross_sample_var": variance,
        "train/encoder_relative_var": variance / x.square().mean().clamp(min=1e-12),
        "train/encoder_output_mean": x.mean(),
        "train/encoder_output_norm": x.norm(dim=-1).mean(),
        "train/encoder_output_std": x.std(unbiased=False),
        "train/encoder_token_std": x.std(dim=1, unbiased=False).mean(),
    }
