"""The metrics of training, under the experiment guide's names.

`train/accuracy`, `train/exact_accuracy`, `train/q_halt_accuracy` and `train/steps` are means over
the samples that halted (as official TRM counts them); `train/exact_accuracy_all` is over all
slots at whatever ACT depth they are. Losses are means over all slots. In all of them a slot has the
weight of its lane (`lane_weights`), so they estimate those of one batch without lanes.
`train/count` is the number of training samples in a batch, `train/halted` of those that halted (by
weight). Sums stay on the device until a row is logged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from etrm.models.encoders.base import Representation
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

    def add_samples(
        self,
        losses: SampleLoss,
        halted: Tensor,
        steps: Tensor,
        share: float,
        weight: Tensor | float = 1.0,
    ) -> None:
        """Add one ACT step of B slots: losses, `halted` [B] bool, ACT `steps` [B] int64.

        `share`: of these slots among all, so that counts are per step, not per micro-batch.
        `weight`: of a slot of this lane.
        """
        counted = halted & losses.labelled
        number, size = counted.sum() * weight, len(halted) * weight
        right = (losses.accuracy, losses.exact, losses.q_right, steps)
        for name, value in zip(OF_HALTED, right, strict=True):
            self.add(
                f"train/{name}", torch.where(counted, value.double(), 0.0).sum() * weight, number
            )
        self.add("train/count", losses.labelled.sum(), share)  # samples in the batch
        self.add("train/halted", number, share)
        self.add("train/lm_loss", losses.lm.sum() * weight, size)
        self.add("train/q_halt_loss", losses.q_halt.sum() * weight, size)
        self.add("train/exact_accuracy_all", losses.exact.sum() * weight, size)
        for name, value in losses.context.items():
            self.add(f"train/{name}_loss", value.sum() * weight, size)

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


class EncoderStatistics:
    """The guide's statistics of an encoder's output, over one batch in its micro-batches and ranks.

    They are of normalised vectors before the scale of the decoder's stream (`Representation`), so
    the guide's thresholds hold at every `output_scale`. `encoder_cross_sample_var`: variance over
    samples (over cells, where the context is a set of them), mean over tokens and channels.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # float64: a variance is a small difference of them

    def add(self, judged: Representation | None) -> None:
        """Add the samples of one micro-batch; None, where no encoder is judged, adds nothing."""
        if judged is None:
            return
        x, raw, real = judged.vectors.detach().double(), judged.raw.detach().double(), judged.real
        if real is not None:  # junk in places of no vector, NaN included, does not count
            x, raw = (torch.where(real[..., None], each, 0.0) for each in (x, raw))
        size, tokens, width = x.shape
        weight = x.new_ones(size, tokens) if real is None else real.double()
        over = 0 if real is None else (0, 1)  # samples, for each token; or all vectors
        n = weight.sum(dim=1).clamp(min=1)[:, None]  # [B, 1]: of a sample
        spread = x.square().sum(dim=1) / n - (x.sum(dim=1) / n).square()  # [B, D]
        self._sum(
            vectors=weight.sum(dim=over),  # [T] or []
            x=x.sum(dim=over),  # [T, D] or [D]
            square=x.square().sum(dim=over),
            norm=x.norm(dim=-1).sum(),
            token_std=spread.clamp(min=0).sqrt().mean(dim=1).sum(),
            samples=x.new_full((), size),
            raw=raw.sum() / width,
            raw_square=raw.square().sum() / width,
            raw_norm=raw.norm(dim=-1).sum(),
        )

    def values(self, ranks: Ranks = ONE) -> dict[str, Tensor]:
        """Return the statistics over all ranks, by the names of their metrics; {} of nothing."""
        if not self.sums:
            return {}
        for total in self.sums.values():
            ranks.sum_(total)
        s = self.sums
        each, count = s["vectors"][..., None].clamp(min=1), s["vectors"].sum().clamp(min=1)
        mean = s["x"].mean(dim=-1).sum() / count
        variance = (s["square"] / each - (s["x"] / each).square()).mean()
        total = s["square"].mean(dim=-1).sum() / count - mean.square()
        raw = s["raw_square"] / count - (s["raw"] / count).square()
        return {
            "train/encoder_cross_sample_var": variance.clamp(min=0),
            "train/encoder_output_mean": mean,
            "train/encoder_output_norm": s["norm"] / count,  # of a vector
            "train/encoder_output_std": total.clamp(min=0).sqrt(),
            "train/encoder_token_std": s["token_std"] / s["samples"],  # within a sample
            # Before normalisation, after which norm and deviation are all but constants.
            "train/encoder_raw_std": raw.clamp(min=0).sqrt(),
            "train/encoder_raw_norm": s["raw_norm"] / count,
        }

    def _sum(self, **totals: Tensor) -> None:
        for name, total in totals.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
