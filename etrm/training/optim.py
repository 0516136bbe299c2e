"""Optimizers of TRM: AdamATan2 for weights, sign-SGD for puzzle embeddings, EMA, warm-up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


class FlatParameters:
    """Parameters by part, made views of one tensor each, and their gradients of one in all.

    An update, a norm, or a sum over ranks is then a handful of operations, however many layers
    there are.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Parameter]]) -> None:
        given = [p for parameters in parts.values() for p in parameters]
        total = sum(p.numel() for p in given)
        # One format, one device: a model's weights are float32 whatever it computes in.
        self.gradient = given[0].new_zeros(total)
        self.flat: dict[str, nn.Parameter] = {}
        start = 0
        for name, parameters in parts.items():
            end = start + sum(p.numel() for p in parameters)
            if end > start:
                self.flat[name] = nn.Parameter(torch.cat([p.data.flatten() for p in parameters]))
                self.flat[name].grad = self.gradient[start:end]
                self._make_views(parameters, self.flat[name])
            start = end

    def part(self, name: str) -> Tensor:
        """The gradient of a part [n]; empty where it has no parameter."""
        found = self.flat[name].grad if name in self.flat else None
        return self.gradient[:0] if found is None else found

    def _make_views(self, parameters: Sequence[nn.Parameter], flat: nn.Parameter) -> None:
        assert flat.grad is not None
        start = 0
        for p in parameters:
            end = start + p.numel()
            p.data = flat.data[start:end].view_as(p)
            p.grad = flat.grad[start:end].view_as(p)
            start = end


class SignSGD:
    """Sign-SGD with weight decay on the rows of the embedding table that a batch used."""

    def __init__(self, embedding: PuzzleEmbedding, weight_decay: float) -> None:
        self.embedding, self.weight_decay = embedding, weight_decay

    @torch.no_grad()
    def step(self, lr: float, ranks: Ranks = ONE, slots: int = 0) -> None:
        """Rows used several times move once, by the sign of their summed gradient.

        `slots`: of all `ranks`; every rank makes the update of all of them. Nothing waits for the
        device, and all slots with the same puzzle write the same values to its row.
        """
        puzzles, gradients = self.embedding.take_gradients()
        puzzles, gradients = ranks.all_gather(puzzles, slots), ranks.all_gather(gradients, slots)
        same = puzzles[:, None] == puzzles
        first = same.to(torch.uint8).argmax(dim=1)  # of the slots with this puzzle
        total = (same.to(gradients.dtype) @ gradients)[first]
        rows = self.embedding.weights[puzzles] * (1 - lr * self.weight_decay)
        self.embedding.weights[puzzles] = rows - lr * total.sign()


class EMA:
    """Exponential moving average of a module's parameters (not of its buffers)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """values ← decay · values + (1 − decay) · parameters."""
        parameters = dict(module.named_parameters())
        given = [parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), given, 1 - self.decay)


def warmed_up(step: int, warmup_steps: int) -> float:
    """Factor of the learning rate at update `step` (from 1): linear, then 1."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
