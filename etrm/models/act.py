"""Adaptive computation time: the carry of a batch of slots, and one ACT step of all of them.

A slot holds one sample until it halts, then takes a new one. All that belongs to a sample (inputs,
labels, demos, states, steps) travels in the carry, so its loss is always against its own labels.
States are detached in one place, at the end of a step (TRM, 2510.04871: deep supervision).

Shape suffixes: B slots of one lane, P context tokens, S grid tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self.context, self.decoder = context, decoder

    @property
    def config(self) -> ModelConfig:
        """Return the sizes of the decoder."""
        return self.decoder.config


@dataclass
class Carry:
    """The state of the slots of one lane between two ACT steps, without gradients."""

    batch: Batch
    z_H: Tensor  # [B, P+S, D]
    z_L: Tensor  # [B, P+S, D]
    state: Tensor | None  # of the context source, [B, ...]
    context: Tensor | None  # [B, P, D] where encodings are cached
    steps: Tensor  # [B] int64: ACT steps done
    halted: Tensor  # [B] bool: takes a new sample next


@dataclass
class StepOutput:
    """Results of one ACT step, with gradients."""

    logits: Tensor  # [B, S, V]
    q_halt: Tensor  # [B]
    losses: dict[str, Tensor]  # of the context source, per sample [B]
    encoded: Tensor  # [B] bool: the context of this sample carries gradients
    encoding: Encoded  # of the demos, before any search
    loss_type: str  # by which logits become probabilities


def empty_carry(model: Model, batch: Batch, dtype: torch.dtype) -> Carry:
    """Return a carry in which every slot is free; `batch` only gives shapes."""
    size, tokens = batch.inputs.shape
    context = model.context.context_size(batch.cells)
    z_H, z_L = model.decoder.initial_states(size, tokens, context)
    state = model.context.initial_state(size)
    return Carry(
        batch=batch,
        z_H=z_H.to(dtype).clone(),
        z_L=z_L.to(dtype).clone(),
        state=None if state is None else state.detach(),
        context=None,
        steps=torch.zeros_like(batch.puzzle),
        halted=torch.ones_like(batch.puzzle, dtype=torch.bool),
    )


def act_step(
    model: Model,
    carry: Carry,
    incoming: Batch,
    cache_context: bool = False,
    encoded: Encoded | None = None,
    search: Callable[[Batch, Encoded], Tensor] | None = None,
) -> tuple[Carry, StepOutput]:
    """Give free slots their sample of `incoming`, then do one ACT step of every slot.

    The returned carry is detached and its `steps` counted, but its `halted` is still the old one:
    the caller decides halting (`decide_halting` in training, the step limit in evaluation).
    `encoded` replaces encoding anew (evaluation). `cache_context` reuses the encoding of a
    sample's first step, so the later steps send it no gradient (the negative control). `search`
    gives a shift of the contexts [B, P, D], which the decoder reads them with; `encoding` is
    without it.
    """
    free = carry.halted
    column = free[:, None, None]
    batch = Batch.where(free, incoming, carry.batch)
    slots, length, _ = carry.z_H.shape
    z_H0, z_L0 = model.decoder.initial_states(slots, length, context=0)  # length includes P
    z_H = torch.where(column, z_H0.to(carry.z_H.dtype), carry.z_H)
    z_L = torch.where(column, z_L0.to(carry.z_L.dtype), carry.z_L)
    if encoded is None:
        state = model.context.initial_state(slots)
        if state is not None and carry.state is not None:
            state = torch.where(free.view(-1, *[1] * (state.dim() - 1)), state, carry.state)
        encoded = model.context(batch, state)
    fresh = torch.ones_like(free)
    if cache_context:
        old = torch.zeros_like(encoded.tokens) if carry.context is None else carry.context
        encoded, fresh = replace(encoded, tokens=torch.where(column, encoded.tokens, old)), free
    read = encoded.tokens
    if search is not None:
        read = read + search(batch, encoded).to(read.dtype)
    z_H, z_L, logits, q = model.decoder(
        batch.inputs, read, z_H, z_L, batch.lane, encoded.real, encoded.places
    )
    after = Carry(
        batch=batch,
        z_H=z_H.detach(),
        z_L=z_L.detach(),
        state=None if encoded.state is None else encoded.state.detach(),
        context=encoded.tokens.detach() if cache_context else None,
        steps=torch.where(free, 0, carry.steps) + 1,
        halted=free,
    )
    kind = model.config.loss_type
    return after, StepOutput(logits, q[:, 0], encoded.losses, fresh, encoded, kind)


def decide_halting(
    steps: Tensor, q_halt: Tensor, halting: HaltingConfig, explore: Tensor, minimum: Tensor
) -> Tensor:
    """Return bool [B]: the slots that halt after this step, in training.

    A slot halts at the step limit, or when its q-head says that its answer is right. A slot that
    explores (`explore` < exploration_prob) waits for a least number of steps, which `minimum`,
    uniform in [0, 1), spreads evenly over 2 to the limit. Official TRM's rule.
    """
    last = steps >= halting.max_steps
    if halting.max_steps == 1:
        return last
    span = halting.max_steps - 1  # the count of the numbers 2..max_steps
    least = 2 + (minimum * span).long().clamp(max=span - 1)
    least = torch.where(explore < halting.exploration_prob, least, 0)
    return (last | (q_halt > 0)) & (steps >= least)
