"""How many slots go through a forward and backward pass at once, from a budget of memory.

Activations that a backward pass needs are most of what training holds. They are counted from the
sizes, so that the same machine always cuts the same micro-batches and a run that resumes stays
equal to one that was never interrupted.
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
# Temporaries of a backward pass and of the loss, relative to what is kept for it.
MARGIN = 1.25


def activation_budget(execution: ExecutionConfig, device: torch.device, ranks: int) -> float:
    """Bytes that the activations of this process may take, of so many `ranks` on this machine."""
    if execution.memory is not None:
        return execution.memory * GIB / (1 if device.type == "cuda" else ranks)
    if device.type == "cuda":
        return OF_GPU * torch.cuda.get_device_properties(device).total_memory
    return OF_HOST * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks


def slot_bytes(run: RunConfig, model: Model, lane: Episodes) -> float:
    """What the backward pass of one slot of a lane keeps, in bytes: the last H-cycle, the encoder.

    Demos are computed without their padding, so the mean over the lane's questions counts.
    """
    sizes, item = run.model, 2 if run.train.dtype == "bf16" else 4
    shown, most = 0.0, dict.fromkeys(("aligned", "concat"), 0)
    if lane.token_bounds is not None:
        bounds = lane.token_bounds.truncate_demos(run.episodes.max_demos)
        shown, most = float(bounds.concat.sum(axis=1).mean()), bounds.most_cells()
    tokens = model.context.context_size(most) + lane.side**2
    blocks = sizes.layers * (sizes.L_cycles + 1)
    decoder = tokens * blocks * block_bytes(sizes.width, sizes.expansion, item)
    encoder = model.context.activation_bytes(shown, item)
    return MARGIN * (decoder + encoder)


def max_slots(
    run: RunConfig, model: Model, lane: Episodes, execution: ExecutionConfig, bytes_: float
) -> int:
    """The most slots of a lane that one pass may take: at least one."""
    fitting = max(1, int(bytes_ / slot_bytes(run, model, lane)))
    return min(fitting, execution.micro_batch or fitting)
