"""Memory of a pass, counted from the sizes, and the budget for it.

Counted, not measured, so that the same machine always cuts the same batches, and a resumed run
equals one that was never interrupted.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.data.corpus import Episodes
from etrm.models.act import Model
from etrm.models.layers import block_bytes

GIB = 2**30
# Shares of all memory that a pass may take; the rest is for weights, carries, other jobs.
OF_GPU, OF_HOST = 0.7, 0.3
MARGIN = 1.25  # temporaries of a backward pass and of the loss, relative to the activations kept
STATES = 8  # of a token while it is decoded: input, z_H and z_L before and after, sums of them
DEFAULTS = ExecutionConfig()


def activation_budget(
    device: torch.device, execution: ExecutionConfig = DEFAULTS, ranks: int = 1
) -> float:
    """Return the bytes that activations of one of `ranks` processes on this machine may take."""
    if execution.memory is not None:  # in GiB: of a GPU, or of the machine that ranks share
        return execution.memory * GIB / (1 if device.type == "cuda" else ranks)
    if device.type == "cuda":
        return OF_GPU * torch.cuda.get_device_properties(device).total_memory
    return OF_HOST * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks


def kept_bytes(model: Model, episodes: Episodes, item: int) -> float:
    """Return the bytes kept for the backward pass of a sample: encoder and last H-cycle.

    Demos are computed without their padding, so the mean over the lane's questions counts. `item`:
    bytes of a number.
    """
    sizes, mean_tokens = model.config, 0.0
    most_cells = episodes.most_cells() or dict.fromkeys(("aligned", "concat"), 0)
    bounds = episodes.token_bounds(episodes.members(torch.arange(len(episodes))))
    if bounds is not None:
        mean_tokens = float(bounds.concat.sum(axis=1).mean())
    tokens = model.context.context_size(most_cells) + episodes.lane.cells  # P + S
    blocks = sizes.layers * (sizes.L_cycles + 1)  # of one H-cycle: its L-cycles, then z_H
    decoder = tokens * blocks * block_bytes(sizes.width, sizes.expansion, item)
    return decoder + model.context.activation_bytes(mean_tokens, item)


def decoding_bytes(model: Model, episodes: Episodes, index: Tensor, item: int) -> float:
    """Return the bytes that any of the questions `index` [B], on the host, takes when decoded.

    Nothing is kept for a backward pass: a token has its states and the temporaries of one block, as
    many as a backward pass would need of it. Of an encoder all blocks count: an upper bound.
    """
    sizes, bounds = model.config, episodes.token_bounds(episodes.members(index))
    cells = dict.fromkeys(("aligned", "concat"), 0) if bounds is None else bounds.most_cells()
    tokens = model.context.context_size(cells) + episodes.lane.cells  # P + S
    block = block_bytes(sizes.width, sizes.expansion, item)
    decoder = tokens * (block + STATES * sizes.width * item)
    return MARGIN * (decoder + model.context.activation_bytes(cells["concat"], item))
