"""The loss of an ACT step: per-sample means, weighted by name.

Shape suffixes: B batch, S grid tokens, V vocabulary, D width, N slots of all lanes.
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
    vectors: Tensor,
    tasks: Tensor,
    slots: Tensor,
    others: Tensor,
    tasks_of_others: Tensor,
    temperature: float,
) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., 2004.11362) per sample [B].

    `vectors` [B, D] of these `slots` [B] against `others` [N, D] of all slots 0..N-1, without
    gradients (as the keys of MoCo, 1911.05722); positives are other slots with the same task. The
    mean of the exponentials replaces their sum, so the loss does not grow with N. It is zero for
    a sample without a positive.
    """
    logits = F.normalize(vectors.float(), dim=-1) @ F.normalize(others.float(), dim=-1).T
    logits = logits / temperature  # [B, N]
    own = slots[:, None] == torch.arange(len(others), device=slots.device)
    positive = (tasks[:, None] == tasks_of_others) & ~own
    counted = (~own).sum(dim=1).clamp(min=1)
    level = logits.masked_fill(own, -torch.inf).logsumexp(dim=1) - counted.log()
    number = positive.sum(dim=1)
    attraction = (logits * positive).sum(dim=1) / number.clamp(min=1)  # mean over positives
    return torch.where(number > 0, level - attraction, 0.0)


def sample_losses(output: StepOutput, labels: Tensor) -> SampleLoss:
    """Compare `output` with labels [B, S] int64; cells that are PAD do not count."""
    right, count = right_cells(output.logits, labels)
    log_p = log_stablemax(output.logits).gather(-1, labels[..., None]).squeeze(-1)
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
