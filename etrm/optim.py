"""Optimizers of TRM: AdamATan2 for weights, sign-SGD for puzzle embeddings, EMA, warm-up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from etrm.context.embedding import PuzzleEmbedding


class AdamATan2(torch.optim.Optimizer):
    """Adam with the ratio m / √v replaced by atan2(m, √v): no ε (arXiv 2407.05872).

    p ← p (1 − lr·wd) − lr / (1 − β₁ᵗ) · atan2(m, √v / √(1 − β₂ᵗ)), as official TRM uses it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                gradient = p.grad
                assert gradient is not None
                state["m"].lerp_(gradient, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                t = state["step"]
                scale = (state["v"] / (1 - beta2**t)).sqrt_()
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(torch.atan2(state["m"], scale), alpha=-lr / (1 - beta1**t))


class SignSGD:
    """Sign-SGD with weight decay on the rows of the embedding table that a batch used."""

    def __init__(self, embedding: PuzzleEmbedding, weight_decay: float) -> None:
        self.embedding, self.weight_decay = embedding, weight_decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Rows used several times move once, by the sign of their summed gradient."""
        puzzles, gradients = self.embedding.take_gradients()
        unique, inverse = puzzles.unique(return_inverse=True)
        total = gradients.new_zeros(len(unique), gradients.shape[1])
        total.index_add_(0, inverse, gradients)
        rows = self.embedding.weights[unique] * (1 - lr * self.weight_decay)
        self.embedding.weights[unique] = rows - lr * total.sign()


class EMA:
    """Exponential moving average of a module's parameters (not of its buffers)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """values ← decay · values + (1 − decay) · parameters."""
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - self.decay)


def warmed_up(step: int, warmup_steps: int) -> float:
    """Factor of the learning rate at update `step` (from 1): linear, then 1."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """L2 norm of all gradients; None where there is none at all."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return torch.stack(norms).norm() if norms else None
