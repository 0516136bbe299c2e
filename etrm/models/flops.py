"""Floating-point operations, counted from the sizes: those that any implementation needs.

A multiply-add counts as two. Norms, activations, rotations, softmax and lookups are left out: they
are below one percent. Encoders count their own (`ContextSource.work`). `python -m benchmarks.floor`
prints their sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from etrm.arc.grid import VOCAB_SIZE
from etrm.config.study import ModelConfig
from etrm.models.layers import block_bytes, inner_width

GIGA = 1e9
# A backward pass relative to its forward pass. Linear maps: gradients of inputs and of weights, or
# of inputs alone. Attention: four products, and that of queries and keys again, which fused kernels
# do not keep.
LINEAR_BACKWARD, FROZEN_BACKWARD, ATTENTION_BACKWARD = 2.0, 1.0, 2.5


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass, by their cost in a backward pass."""

    linear: float = 0.0
    attention: float = 0.0
    detached: float = 0.0  # without gradients: no backward pass

    def __add__(self, other: Work) -> Work:
        linear, attention = self.linear + other.linear, self.attention + other.attention
        return Work(linear, attention, self.detached + other.detached)

    def __mul__(self, times: float) -> Work:
        return Work(self.linear * times, self.attention * times, self.detached * times)

    @property
    def forward(self) -> float:
        """Return the FLOP of a forward pass."""
        return self.linear + self.attention + self.detached

    def detach(self) -> Work:
        """Return the same work without gradients."""
        return Work(detached=self.forward)

    def backward(
        self, attention: float = ATTENTION_BACKWARD, linear: float = LINEAR_BACKWARD
    ) -> float:
        """Return the FLOP of a backward pass; its parts relative to the forward pass of each."""
        return linear * self.linear + attention * self.attention


def block(tokens: float, squares: float, width: int, expansion: float) -> Work:
    """Return a `Block` over sequences of `tokens` in all; `squares`: of their lengths, summed."""
    weights = 4 * width**2 + 3 * width * inner_width(width, expansion)
    return Work(2.0 * weights * tokens, 4.0 * width * squares)


def blocks(lengths: np.ndarray, width: int, expansion: float) -> Work:
    """Return a `Block` over sequences of `lengths` tokens each; 0: there is none."""
    exact = lengths.astype(np.float64)
    return block(float(exact.sum()), float((exact**2).sum()), width, expansion)


def maps(module: nn.Module, vectors: float) -> Work:
    """Return the linear maps in `module`, each of so many vectors."""
    linear = (part for part in module.modules() if isinstance(part, nn.Linear))
    return Work(2.0 * sum(part.weight.numel() for part in linear) * vectors)


def cross_block(queries: float, keys: float, width: int, expansion: float) -> Work:
    """Return a `CrossBlock` of one sample."""
    of_queries = 2 * width**2 + 3 * width * inner_width(width, expansion)
    linear = 2.0 * (of_queries * queries + 2 * width**2 * keys)
    return Work(linear, 4.0 * width * queries * keys)


def network(model: ModelConfig, cells: int, context: int | None = None) -> Work:
    """Apply the decoder's network to one sample, with `context` tokens, or P."""
    tokens = cells + (model.context_tokens if context is None else context)
    return block(tokens, tokens**2, model.width, model.expansion) * model.layers


def cycle(model: ModelConfig, cells: int, context: int | None = None) -> Work:
    """One H-cycle of the decoder on one sample."""
    return network(model, cells, context) * (model.L_cycles + 1)


def heads(model: ModelConfig, cells: int) -> Work:
    """Read the answer of one sample."""
    return Work(2.0 * model.width * (VOCAB_SIZE * cells + 2))


def act_step(model: ModelConfig, cells: int, context: int | None = None) -> Work:
    """One ACT step of the decoder on one sample."""
    return cycle(model, cells, context) * model.H_cycles + heads(model, cells)


def training_step(model: ModelConfig, cells: int, context: int | None = None) -> Work:
    """One ACT step of the decoder on one sample in training: the last H-cycle has gradients."""
    one = cycle(model, cells, context)
    return one.detach() * (model.H_cycles - 1) + one + heads(model, cells)


def bytes_moved(
    model: ModelConfig, tokens: int, encoder: float, item: int, trained: bool = True
) -> float:
    """Return the bytes that unfused kernels write and read again in an ACT step of one sample.

    A forward pass writes and reads once what it would keep; a backward pass reads it and its
    gradients, and writes these: twice as much. `tokens`: context and cells; `encoder`: bytes that
    encoding keeps; `item`: bytes of a number.
    """
    one = 2 * tokens * model.layers * block_bytes(model.width, model.expansion, item)
    last, backward = model.L_cycles + 1, 2 if trained else 0
    return one * last * (model.H_cycles + backward) + 2 * encoder * (1 + backward)
