"""The metrics of training and evaluation, under the experiment guide's names.

`train/accuracy`, `train/exact_accuracy`, `train/q_halt_accuracy` and `train/steps` are means over
the samples that halted (as official TRM counts them); `train/exact_accuracy_all` is over all
slots at whatever ACT depth they are. Losses are means over all slots. Sums stay on the device
until a row is logged.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from etrm.losses import SampleLoss

HALTED = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")


class Window:
    """Sums over the steps between two logged rows."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, weight: Tensor | float = 1.0) -> None:
        """`total` is a sum over `weight` things; the row has total / weight over all calls."""
        total = total.detach().double()
        weight = torch.as_tensor(weight, dtype=torch.float64, device=total.device)
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

    def row(self) -> dict[str, float]:
        """All means, fetched in one transfer; names that nothing was counted for are absent."""
        if not self.sums:
            return {}
        names = list(self.sums)
        totals = torch.stack([self.sums[n] for n in names] + [self.weights[n] for n in names])
        values = totals.tolist()
        pairs = zip(values[: len(names)], values[len(names) :], strict=True)
        means = {n: t / w for n, (t, w) in zip(names, pairs, strict=True) if w}
        self.sums, self.weights = {}, {}
        return means


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


class EvaluationSums:
    """The `all.*` metrics: means over evaluated samples."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def add(self, losses: SampleLoss, exact: Tensor, steps: Tensor) -> None:
        """`exact` [B] is exactness that also asks that the true output fits the canvas."""
        values = {
            "accuracy": losses.accuracy,
            "exact_accuracy": exact,
            "lm_loss": losses.lm,
            "q_halt_accuracy": losses.q_right,
            "q_halt_loss": losses.q_halt,
            "steps": steps,
        }
        kept = losses.labelled
        totals = torch.stack([v.double()[kept].sum() for v in values.values()]).tolist()
        for name, total in zip(values, totals, strict=True):
            self.sums[name] += total
        self.count += int(kept.sum())

    def means(self) -> dict[str, float]:
        """`all.<name>` of everything added; empty where there was nothing labelled."""
        return {f"all.{n}": total / self.count for n, total in self.sums.items() if self.count}
