"""Floating-point operations of a step of training and of an evaluation, by `etrm.models.flops`."""

from __future__ import annotations

import numpy as np
import torch

from etrm.arc.grid import PAD
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.build import context_of_sizes
from etrm.models.flops import ATTENTION_BACKWARD, Work, act_step, training_step


def encoder(run: RunConfig, demos: TokenBounds) -> Work:
    """Return the work of an encoder on the tokens of all demos."""
    work = context_of_sizes(run.context, run.model).work(demos)
    if work is None:
        raise ValueError(f"context.source {run.context.source}: found no count of its FLOPs")
    return work


def training_flops(
    run: RunConfig, cells: int, demos: TokenBounds, attention: float = ATTENTION_BACKWARD
) -> float:
    """One ACT step of B slots of a lane of so many cells, forward and backward."""
    decoder = training_step(run.model, cells, _context(run, demos)) * len(demos.concat)
    work = decoder + encoder(run, demos)
    return work.forward + work.backward(attention)


def decoding_flops(run: RunConfig, cells: int, demos: TokenBounds, encodings: int) -> float:
    """All ACT steps of B samples of a lane of `cells`, their demos encoded `encodings` times."""
    step = act_step(run.model, cells, _context(run, demos)) * len(demos.concat)
    return step.forward * run.halting.max_steps + encoder(run, demos).forward * encodings


def _context(run: RunConfig, demos: TokenBounds) -> int:
    """Return P, of these samples where it varies."""
    return context_of_sizes(run.context, run.model).context_size(demos.most_cells())


def demo_lengths(batch: Batch, padded: bool) -> TokenBounds:
    """Return the tokens [B, K] of the demos of a batch: real ones, or of all slots at full size."""
    real_in, real_out = batch.demo_inputs != PAD, batch.demo_outputs != PAD
    pairings = torch.cat([real_in, real_out], dim=-1), real_in | real_out
    if padded:
        return TokenBounds(*(np.full(real.shape[:2], real.shape[-1]) for real in pairings))
    exists = batch.demo_mask[..., None]
    return TokenBounds(*((real & exists).sum(dim=-1).cpu().numpy() for real in pairings))
