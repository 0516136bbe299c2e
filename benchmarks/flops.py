"""Floating-point operations of a step, counted from the sizes: what any implementation must do.

A multiply-add counts as two. Norms, activations, rotations, softmax and lookups are left out: they
are below one percent. `python -m benchmarks.floor` prints what they come to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from etrm.arc.grid import PAD, VOCAB_SIZE
from etrm.config.study import ModelConfig, RunConfig
from etrm.data.batch import Batch
from etrm.models.layers import inner_width

GIGA = 1e9
# A backward pass relative to its forward pass. Linear maps: gradients of inputs and of weights.
# Attention: four products, and that of queries and keys again, which fused kernels do not keep.
LINEAR_BACKWARD, ATTENTION_BACKWARD = 2.0, 2.5


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass, by what a backward pass makes of them."""

    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> Work:
        return Work(self.linear * times, self.attention * times)

    @property
    def forward(self) -> float:
        """Return the FLOP of a forward pass."""
        return self.linear + self.attention

    def backward(self, attention: float = ATTENTION_BACKWARD) -> float:
        """`attention`: of a backward pass of attention, relative to its forward pass."""
        return LINEAR_BACKWARD * self.linear + attention * self.attention


def block(tokens: float, squares: float, width: int, expansion: float) -> Work:
    """Return a `Block` over sequences of `tokens` in all; `squares`: of their lengths, summed."""
    weights = 4 * width**2 + 3 * width * inner_width(width, expansion)
    return Work(2.0 * weights * tokens, 4.0 * width * squares)


def cross_block(queries: int, keys: int, width: int, expansion: float) -> Work:
    """Return a `CrossBlock` of one sample."""
    of_queries = 2 * width**2 + 3 * width * inner_width(width, expansion)
    linear = 2.0 * (of_queries * queries + 2 * width**2 * keys)
    return Work(linear, 4.0 * width * queries * keys)


def network(model: ModelConfig, cells: int) -> Work:
    """One application of the decoder's network to one sample."""
    tokens = model.context_tokens + cells
    return block(tokens, tokens**2, model.width, model.expansion) * model.layers


def encoder(run: RunConfig, lengths: np.ndarray) -> Work:
    """Return the work of an encoder; demos have `lengths` [B, K] tokens (0: not encoded)."""
    o = run.context
    if o.source == "embedding":
        return Work()
    if o.source != "standard":
        raise ValueError(f"found the context source {o.source!r}, expected embedding or standard")
    samples, slots = lengths.shape
    exact = lengths.astype(np.float64)
    pairs = block(float(exact.sum()), float((exact**2).sum()), o.width, o.expansion) * o.layers
    sets = cross_block(run.model.context_tokens, slots, o.width, o.expansion) * o.set_layers
    same = o.width == run.model.width
    project = Work(0.0 if same else 2.0 * run.model.context_tokens * o.width * run.model.width)
    return pairs + (sets + project) * samples


def training_flops(
    run: RunConfig, cells: int, lengths: np.ndarray, attention: float = ATTENTION_BACKWARD
) -> float:
    """One ACT step of B slots of a lane of so many cells, forward and backward."""
    model, samples = run.model, len(lengths)
    of_cycle = network(model, cells) * ((model.L_cycles + 1) * samples)
    heads = Work(2.0 * model.width * (VOCAB_SIZE * cells + 2) * samples)
    with_gradient = of_cycle + heads + encoder(run, lengths)
    without = of_cycle * (model.H_cycles - 1)
    return without.forward + with_gradient.forward + with_gradient.backward(attention)


def decoding_flops(run: RunConfig, cells: int, lengths: np.ndarray, encodings: int) -> float:
    """All ACT steps of B samples of a lane of `cells`, their demos encoded `encodings` times."""
    model, samples = run.model, len(lengths)
    applications = model.H_cycles * (model.L_cycles + 1) * samples
    heads = Work(2.0 * model.width * (VOCAB_SIZE * cells + 2) * samples)
    step = network(model, cells) * applications + heads
    return step.forward * run.halting.max_steps + encoder(run, lengths).forward * encodings


def demo_lengths(run: RunConfig, batch: Batch, padded: bool) -> np.ndarray:
    """Tokens [B, K] of the demos of a batch: real ones, or of all slots at full length."""
    real_in, real_out = batch.demo_inputs != PAD, batch.demo_outputs != PAD
    if getattr(run.context, "pairing", "concat") == "aligned":
        real = real_in | real_out
    else:
        real = torch.cat([real_in, real_out], dim=-1)
    if padded:
        return np.full(real.shape[:2], real.shape[-1])
    return (real & batch.demo_mask[..., None]).sum(dim=-1).cpu().numpy()
