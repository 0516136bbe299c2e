"""Optimizers of TRM: AdamATan2 for weights, sign-SGD for puzzle embeddings, EMA, warm-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.runtime.distributed import Ranks

ONE = Ranks()


class AdamATan2(torch.optim.Optimizer):
    """Adam with the ratio m / √v replaced by atan2(m, √v): no ε (arXiv 2407.05872).

    p ← p (1 − lr·wd) − lr / (1 − β₁ᵗ) · atan2(m, √v / √(1 − β₂ᵗ)), as official TRM uses it.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)  # m ← β₁ m + (1 − β₁) g
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                t = state["step"]
                scale = (state["v"] / (1 - beta2**t)).sqrt_()  # √v, free of its bias
                p.mul_(1 - lr * group["weight_decay"])  # decoupled
                p.add_(torch.atan2(state["m"], scale), alpha=-lr / (1 - beta1**t))


class FlatParameters:
    """Parameters by part, made views of one tensor each, and their gradients of one in all.

    An update, a norm, or a sum over ranks is then a few operations, however many layers there are.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Parameter]]) -> None:
        given = [p for parameters in parts.values() for p in parameters]
        # One format, one device: a model's weights are float32 whatever it computes in.
        self.gradient = given[0].new_zeros(sum(p.numel() for p in given))
        self.flat: dict[str, nn.Parameter] = {}  # without parts that have no parameter
        start = 0
        for name, parameters in parts.items():
            if not parameters:
                continue
            flat = nn.Parameter(torch.cat([p.data.flatten() for p in parameters]))
            gradient = self.gradient[start : start + flat.numel()]
            sizes = [p.numel() for p in parameters]
            views = zip(parameters, flat.data.split(sizes), gradient.split(sizes), strict=True)
            for p, values, gradients in views:
                p.data, p.grad = values.view_as(p), gradients.view_as(p)
            flat.grad, self.flat[name] = gradient, flat
            start += flat.numel()

    def gradient_of(self, name: str) -> Tensor:
        """Return the gradient of a part [n]; empty where it has no parameter."""
        found = self.flat[name].grad if name in self.flat else None
        return self.gradient[:0] if found is None else found


class SignSGD:
    """Sign-SGD with weight decay on the rows of the embedding table that a batch used."""

    def __init__(self, embedding: PuzzleEmbedding, weight_decay: float) -> None:
        self.embedding, self.weight_decay = embedding, weight_decay

    @torch.no_grad()
    def step(self, lr: float, weights: Tensor, ranks: Ranks = ONE) -> None:
        """Move each used row once, by the sign of its summed gradient.

        `weights` [B] of the slots of all `ranks`, all of which make the update of all slots. A sign
        has lost the weight of its slots, so the row's rate has it: a puzzle whose slots stand for w
        slots is met w times as often in a batch without lanes. Nothing waits for the device, and
        all slots with the same puzzle write the same values to its row.
        """
        puzzles, gradients = self.embedding.take_gradients()  # [B], [B, D]
        puzzles = ranks.all_gather(puzzles, len(weights))
        gradients = ranks.all_gather(gradients, len(weights))
        same = puzzles[:, None] == puzzles  # [B, B]
        first = same.to(torch.uint8).argmax(dim=1)  # of the slots with this puzzle
        total = (same.to(gradients.dtype) @ gradients)[first]  # one order of summation a puzzle
        weight = (same.to(weights.dtype) @ weights / same.sum(dim=1))[first, None]  # their mean
        table = self.embedding.weights
        decay = (1 - lr * self.weight_decay * weight).to(table.dtype)  # [B, 1]
        table[puzzles] = table[puzzles] * decay - (lr * weight).to(table.dtype) * total.sign()


class EMA:
    """Exponential moving average of a module's parameters (not of its buffers)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Set values ← decay · values + (1 − decay) · parameters."""
        parameters = dict(module.named_parameters())
        given = [parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), given, 1 - self.decay)


@contextmanager
def averaged_weights(module: nn.Module, ema: EMA) -> Iterator[None]:
    """Give `module` its averaged parameters within the block."""
    raw = {name: parameter.data for name, parameter in module.named_parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.data = ema.values[name]  # swapped, not copied
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = raw[name]


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Return the factor of the learning rate at update `step` (from 1): linear, then 1."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
