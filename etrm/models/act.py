"""Adaptive computation time: the carry of a batch of slots, and one ACT step of all of them.

A slot holds one sample until it halts, then takes a new one. Everything that belongs to a sample
(inputs, labels, demos, states, steps) travels in the carry, so that a sample that goes on is
always scored against its own labels. States are detached in one place, at the end of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etrm.config.study import HaltingConfig, ModelConfig
from etrm.data.batch import Batch
from etrm.models.decoder import Decoder
from etrm.models.encoders.base import ContextSource, Encoded


class Model(nn.Module):
    """A context source in front of TRM's decoder."""

    def __init__(self, context: ContextSource, decoder: Decoder) -> None:
        super().__init__()
        self.context = context
        self.decoder = decoder

    @property
    def config(self) -> ModelConfig:
        """Sizes of the decoder."""
        return self.decoder.config


@dataclass
class Carry:
    """The slots of one lane between two ACT steps; B slots, P context tokens, D width."""

    batch: Batch
    z_H: Tensor  # [B, P+S, D]
    z_L: Tensor  # [B, P+S, D]
    state: Tensor | None  # the context source's own state, [B, ...]
    context: Tensor | None  # [B, P, D] where encodings are cached
    steps: Tensor  # [B] int64: ACT steps done
    halted: Tensor  # [B] bool: takes a new sample next


@dataclass
class StepOutput:
    """What one ACT step gives, before states were detached; B slots of one lane."""

    logits: Tensor  # [B, S, V]
    q_halt: Tensor  # [B]
    context: Tensor  # [B, P, D], see `Encoded.summary`
    losses: dict[str, Tensor]  # of the context source, each a [B] per-sample value
    encoded: Tensor  # [B] bool: the context of this sample carries gradients


def empty_carry(model: Model, batch: Batch, dtype: torch.dtype) -> Carry:
    """A carry in which every slot is free; `batch` only gives shapes."""
    size, tokens = batch.inputs.shape
    context = model.context.context_size(batch.cells)
    z_H, z_L = model.decoder.initial_states(size, tokens, context)
    device = batch.inputs.device
    state = model.context.initial_state(size)
    return Carry(
        batch=batch,
        z_H=z_H.to(dtype).clone(),
        z_L=z_L.to(dtype).clone(),
        state=None if state is None else state.detach(),
        context=None,
        steps=torch.zeros(size, dtype=torch.int64, device=device),
        halted=torch.ones(size, dtype=torch.bool, device=device),
    )


def act_step(
    model: Model,
    carry: Carry,
    incoming: Batch,
    cache_context: bool = False,
    encoded: Encoded | None = None,
) -> tuple[Carry, StepOutput]:
    """Free slots take their sample of `incoming`; then every slot does one ACT step.

    The returned carry is detached, its `steps` counted, its `halted` still that of before: the
    caller decides halting (`decide_halting` in training, the step limit in evaluation).
    `encoded` is used instead of encoding again (evaluation). `cache_context` keeps the encoding
    of a sample's first step, whose gradient the later steps then lack (the negative control).
    """
    free = carry.halted
    batch = Batch.where(free, incoming, carry.batch)
    slots, length, _ = carry.z_H.shape
    z_H0, z_L0 = model.decoder.initial_states(slots, length, context=0)
    z_H = torch.where(free[:, None, None], z_H0.to(carry.z_H.dtype), carry.z_H)
    z_L = torch.where(free[:, None, None], z_L0.to(carry.z_L.dtype), carry.z_L)
    state = _restarted(model, carry, free)
    encoded = model.context(batch, state) if encoded is None else encoded
    fresh = torch.ones_like(free)
    if cache_context:
        tokens = encoded.tokens
        old = torch.zeros_like(tokens) if carry.context is None else carry.context
        tokens, fresh = torch.where(free[:, None, None], tokens, old), free
        encoded = replace(encoded, tokens=tokens)
    z_H, z_L, logits, q = model.decoder(
        batch.inputs, encoded.tokens, z_H, z_L, encoded.real, encoded.places
    )
    steps = torch.where(free, torch.zeros_like(carry.steps), carry.steps) + 1
    after = Carry(
        batch=batch,
        z_H=z_H.detach(),
        z_L=z_L.detach(),
        state=None if encoded.state is None else encoded.state.detach(),
        context=encoded.tokens.detach() if cache_context else None,
        steps=steps,
        halted=free,
    )
    return after, StepOutput(logits, q[:, 0], encoded.summary(), encoded.losses, fresh)


def decide_halting(
    steps: Tensor, q_halt: Tensor, halting: HaltingConfig, explore: Tensor, minimum: Tensor
) -> Tensor:
    """Which slots halt, in training [B] bool.

    A slot halts at the step limit, or when its q-head says that its answer is right, unless it
    explores (`explore` < exploration_prob): then not before `minimum`, uniform in [0, 1), has
    been turned into a number of steps from 2 to the limit. Official TRM's rule.
    """
    last = steps >= halting.max_steps
    if halting.max_steps == 1:
        return last
    span = halting.max_steps - 1
    least = 2 + (minimum * span).long().clamp(max=span - 1)
    least = torch.where(explore < halting.exploration_prob, least, torch.zeros_like(least))
    return (last | (q_halt > 0)) & (steps >= least)


def _restarted(model: Model, carry: Carry, free: Tensor) -> Tensor | None:
    initial = model.context.initial_state(free.shape[0])
    if initial is None or carry.state is None:
        return None
    mask = free.reshape(-1, *[1] * (initial.dim() - 1))
    return torch.where(mask, initial, carry.state)
