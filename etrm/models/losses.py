"""The loss of an ACT step: per-sample means, weighted by name.

Shape suffixes: B batch, S grid tokens, V vocabulary, D width, N keys of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from etrm.arc.grid import PAD
from etrm.models.act import StepOutput


def log_stablemax(logits: Tensor) -> Tensor:
    """Return log s(x) − log Σ s over the last axis, s(x) = x + 1 for x ≥ 0, 1 / (1 − x) below.

    Stablemax (Prieto et al., 2501.04697), in float64 as official TRM computes it.
    """
    x = logits.double()
    s = torch.where(x < 0, 1.0 / (1.0 - x + 1e-30), x + 1.0)  # 1e-30 as official: for x = 1
    return s.log() - s.sum(dim=-1, keepdim=True).log()


def log_softmax(logits: Tensor) -> Tensor:
    """Return the logarithms of softmax over the last axis."""
    return F.log_softmax(logits.float(), dim=-1)


LOG_PROBABILITIES = {  # by `model.loss_type`, official TRM's names
    "stablemax_cross_entropy": log_stablemax,
    "softmax_cross_entropy": log_softmax,
}


@dataclass
class SampleLoss:
    """Losses and correctness of one ACT step, per sample [B]."""

    lm: Tensor  # cross-entropy, mean over the labelled cells of a sample
    q_halt: Tensor  # binary cross-entropy of "my answer is right"
    context: dict[str, Tensor]  # of the context source, by name, unweighted
    accuracy: Tensor  # share of labelled cells that are right
    exact: Tensor  # bool: all labelled cells are right, and there are some
    q_right: Tensor  # bool: the q-head's sign agrees with `exact`
    labelled: Tensor  # bool: the sample has labels

    def total(self, halt_weight: float, context_weights: dict[str, float]) -> Tensor:
        """Return the weighted sum of all terms [B]; raises `KeyError` without a weight."""
        loss = self.lm + halt_weight * self.q_halt
        for name, value in self.context.items():
            loss = loss + context_weights[name] * value
        return loss


def right_cells(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled cells that are right, bool [B, S], and the number labelled [B]."""
    mask = labels != PAD
    return mask & (logits.argmax(dim=-1) == labels), mask.sum(dim=-1)


def contrastive_loss(
    anchors: Tensor,
    keys: Tensor,
    bank: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: float,
) -> Tensor:
    """Return the contrastive loss of `anchors` [B, D] per sample [B], by cosine similarity.

    The key of the same row of `keys` [B, D] is a positive; those of the `bank` [N, D] are where
    `positive` [B, N] is true, negatives where `negative` [B, N] is, and do not count elsewhere.
    With no other positive this is InfoNCE (van den Oord et al., 1807.03748), else the supervised
    form (Khosla et al., 2004.11362), but for the mean of the exponentials in place of their sum:
    the loss is 0 where all are alike, whatever N is, and where the bank is empty.
    """
    x, own, others = (F.normalize(each.float(), dim=-1) for each in (anchors, keys, bank))
    first = (x * own).sum(dim=-1) / temperature  # [B]
    rest = x @ others.T / temperature  # [B, N]
    counted = positive | negative
    candidates = torch.cat([first[:, None], rest.masked_fill(~counted, -torch.inf)], dim=1)
    level = candidates.logsumexp(dim=1) - (1 + counted.sum(dim=1)).log()
    attraction = (first + (rest * positive).sum(dim=1)) / (1 + positive.sum(dim=1))
    return level - attraction  # attraction: the mean over positives


def sample_losses(output: StepOutput, labels: Tensor) -> SampleLoss:
    """Compare `output` with labels [B, S] int64; cells that are PAD do not count."""
    right, count = right_cells(output.logits, labels)
    log_p = LOG_PROBABILITIES[output.loss_type](output.logits)
    log_p = log_p.gather(-1, labels[..., None]).squeeze(-1)
    divisor = count.clamp(min=1)  # a sample without labels has loss 0, not NaN
    exact = (right.sum(dim=-1) == count) & (count > 0)
    return SampleLoss(
        lm=-(torch.where(labels != PAD, log_p, 0.0) / divisor[:, None]).sum(dim=-1),
        q_halt=F.binary_cross_entropy_with_logits(output.q_halt, exact.float(), reduction="none"),
        context=output.losses,
        accuracy=right.sum(dim=-1) / divisor,
        exact=exact,
        q_right=(output.q_halt >= 0) == exact,
        labelled=count > 0,
    )
