"""Beside the search: test-time training, the field's yardstick, and more ACT steps, a control."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from etrm.config.refinement import RefinementConfig
from etrm.config.study import HaltingConfig
from etrm.data.batch import Batch
from etrm.evaluation.decode import decode
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.compute import Compute, computing
from etrm.refinement.costs import Costs
from etrm.refinement.demos import (
    Demos,
    demo_likelihood,
    encodings,
    frozen,
    leave_one_out,
    rows_of,
)
from etrm.refinement.search import Attempts, Points, Refined, choose


def fine_tune(
    model: Model,
    batch: Batch,
    halting: HaltingConfig,
    config: RefinementConfig,
    dtype: torch.dtype = torch.float32,
) -> Refined:
    """Train the model on the demos of each question by leave-one-out, and answer it, as `refine`.

    Test-time training (Akyürek et al., 2411.07279) without augmentation: for each question Adam
    starts anew from the model's weights, `config.tuned` of which it trains; they are restored to
    the bit. Attempts: the answer after so many steps, and that without a step, the one with the
    more likely demos first.
    """
    found = []
    seconds = dict.fromkeys(config.steps, 0.0)
    with frozen(model):
        for row in torch.arange(len(batch), device=batch.inputs.device).split(1):
            with tuned_weights(model, config.tuned) as weights:
                found.append(_tune(model, weights, rows_of(batch, row), halting, config, dtype))
    names = ("tokens", "q_halt", "likelihood", "solved")
    for one in found:
        seconds = {steps: seconds[steps] + one.seconds[steps] for steps in config.steps}
    return Refined(
        {
            steps: Attempts(
                **{
                    n: torch.cat([getattr(f.attempts[steps], n) for f in found], dim=1)
                    for n in names
                }
            )
            for steps in config.steps
        },
        seconds=seconds,
    )


def _tune(
    model: Model,
    weights: list[nn.Parameter],
    batch: Batch,
    halting: HaltingConfig,
    config: RefinementConfig,
    dtype: torch.dtype,
) -> Refined:
    began = time.perf_counter()
    demos, found, first = leave_one_out(batch), Refined({}), None
    adam, tuned = torch.optim.Adam(weights, lr=config.tuning_lr), False
    for step in range(config.steps[-1] + 1):
        with computing(model, Compute(dtype)):  # casts are of the weights of this step
            if step in config.steps:
                points = _answer(model, batch, demos, halting, config, dtype)
                first = points if first is None else first
                shape = (batch.lane.rows, batch.lane.columns)
                found.attempts[step] = choose((points, first), 1, shape)
                found.seconds[step] = time.perf_counter() - began
            if step < config.steps[-1] and not tuned:
                contexts = encodings(model, demos.batch, config.act_steps)
                score, exact = demo_likelihood(model, demos, contexts, config.act_steps, dtype)
                tuned = config.until_solved and bool((exact == 1).all())
                adam.zero_grad()
                (-score.sum()).backward()
        if step < config.steps[-1] and not tuned:
            nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
    return found


@contextmanager
def tuned_weights(model: Model, tuned: str) -> Iterator[list[nn.Parameter]]:
    """Give the weights that are trained within the block, and restore them behind it."""
    weights = list((model.context if tuned == "encoder" else model).parameters())
    before = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.data.copy_(old)
            weight.grad = None
            weight.requires_grad_(False)


@torch.no_grad()
def _answer(
    model: Model,
    batch: Batch,
    demos: Demos,
    halting: HaltingConfig,
    config: RefinementConfig,
    dtype: torch.dtype,
) -> Points:
    contexts = encodings(model, demos.batch, config.act_steps)
    likelihood, solved = demo_likelihood(model, demos, contexts, config.act_steps, dtype)
    output, _ = decode(model, batch, halting, dtype)
    tokens = output.logits.argmax(dim=-1).to(torch.uint8)
    return Points(likelihood, solved, tokens, output.q_halt)


@torch.no_grad()
def more_act_steps(
    model: Model,
    batch: Batch,
    halting: HaltingConfig,
    config: RefinementConfig,
    dtype: torch.dtype = torch.float32,
) -> Refined:
    """Answer without a search, after as many more ACT steps as its steps would cost.

    Attempts: that answer, and the one after the usual number of ACT steps where it differs.
    """
    began, seconds = time.perf_counter(), dict[int, float]()
    costs = Costs.of(model, batch, halting, config)
    wanted = {
        steps: halting.max_steps + torch.tensor(costs.more_act_steps(steps)).to(batch.inputs.device)
        for steps in config.steps
    }
    with frozen(model), computing(model, Compute(dtype)):
        demos = leave_one_out(batch)
        first = _answer(model, batch, demos, halting, config, dtype)
        points = {n: replace(first, tokens=first.tokens.clone()) for n in config.steps}
        last = int(torch.stack([*wanted.values()]).max())
        for step, tokens, q_halt in _act(model, batch, last, dtype):
            for number, at in wanted.items():
                now, old = at == step, points[number]
                points[number] = replace(
                    old,
                    tokens=torch.where(now[:, None], tokens, old.tokens),
                    q_halt=torch.where(now, q_halt, old.q_halt),
                )
                if step == int(at.max()):
                    seconds[number] = time.perf_counter() - began
    shape = (batch.lane.rows, batch.lane.columns)
    attempts = {n: choose((points[n], first), 1, shape) for n in config.steps}
    return Refined(attempts, seconds=seconds)


def _act(
    model: Model, batch: Batch, last: int, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of each ACT step, its answers [B, S] uint8 and halting logits [B]."""
    carry = empty_carry(model, batch, dtype)
    encoded = model.context(batch, None) if carry.state is None else None
    for step in range(1, last + 1):
        carry, output = act_step(model, carry, batch, encoded=encoded)
        carry.halted = torch.zeros_like(carry.halted)  # or the next step would start anew
        yield step, output.logits.argmax(dim=-1).to(torch.uint8), output.q_halt
