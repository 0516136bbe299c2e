"""Slots that go through a forward and backward pass at once, from a budget of memory.

Activations kept for the backward pass are most of the memory that training takes. They are counted
from the sizes, so that the same machine always cuts the same micro-batches and a resumed run
equals one that was never interrupted.
"""

from __future__ import annotations

import os

import torch

from etrm.config.execution import ExecutionConfig
from etrm.config.study import RunConfig
from etrm.data.corpus import Episodes
from etrm.models.act import Model
from etrm.models.layers import block_bytes

GIB = 2**30
# Shares of all memory that activations may take; the rest is for weights, carries, other jobs.
OF_GPU, OF_HOST = 0.7, 0.3
MARGIN = 1.25  # temporaries of a backward pass and of the loss, relative to the activations kept


def activation_budget(execution: ExecutionConfig, device: torch.device, ranks: int) -> float:
    """Return the bytes that activations of one of `ranks` processes on this machine may take."""
    if execution.memory is not None:  # in GiB: of a GPU, or of the machine that ranks share
        return execution.memory * GIB / (1 if device.type == "cuda" else ranks)
    if device.type == "cuda":
        return OF_GPU * torch.cuda.get_device_properties(device).total_memory
    return OF_HOST * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks


def slot_bytes(run: RunConfig, model: Model, episodes: Episodes) -> float:
    """Return the bytes kept for the backward pass of one slot: encoder and last H-cycle.

    Demos are computed without their padding, so the mean over the lane's questions counts; the
    second view of a contrastive loss is not, so two canvases do.
    """
    sizes, item = run.model, 2 if run.train.dtype == "bf16" else 4  # bytes a number
    mean_tokens, shown = 0.0, episodes.truncate_demos(run.episodes.max_demos)
    most_cells = shown.most_cells() or dict.fromkeys(("aligned", "concat"), 0)
    bounds = shown.token_bounds(shown.members(torch.arange(len(shown))))
    if bounds is not None:
        mean_tokens = float(bounds.concat.sum(axis=1).mean())
    tokens = model.context.context_size(most_cells) + episodes.lane.cells  # P + S
    blocks = sizes.layers * (sizes.L_cycles + 1)  # of one H-cycle: its L-cycles, then z_H
    decoder = tokens * blocks * block_bytes(sizes.width, sizes.expansion, item)
    encoder = model.context.activation_bytes(mean_tokens, item)
    if model.context.loss_weights.get("contrastive"):
        encoder += model.context.activation_bytes(2 * episodes.lane.cells, item)
    return MARGIN * (decoder + encoder)


def max_slots(
    run: RunConfig, model: Model, episodes: Episodes, execution: ExecutionConfig, budget: float
) -> int:
    """Return the most slots of a lane in one pass with `budget` bytes: at least one."""
    fitting = max(1, int(budget / slot_bytes(run, model, episodes)))
    return min(fitting, execution.micro_batch or fitting)
