"""Floating-point operations of a step of training and of an evaluation, by `etrm.models.flops`."""

from __future__ import annotations

import numpy as np
import torch

from etrm.arc.grid import PAD
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.models.flops import ATTENTION_BACKWARD, Work, act_step, block, cross_block, cycle, heads


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
    of_cycle = cycle(model, cells) * samples
    with_gradient = of_cycle + heads(model, cells) * samples + encoder(run, lengths)
    without = of_cycle * (model.H_cycles - 1)
    return without.forward + with_gradient.forward + with_gradient.backward(attention)


def decoding_flops(run: RunConfig, cells: int, lengths: np.ndarray, encodings: int) -> float:
    """All ACT steps of B samples of a lane of `cells`, their demos encoded `encodings` times."""
    step = act_step(run.model, cells) * len(lengths)
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
