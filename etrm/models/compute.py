"""How a model computes: number format, casts, packing of demos, compilation.

None of it changes what is computed, but for the last digits: each can be switched off, and tests
hold the fast path to the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from etrm.models.decoder import Network
from etrm.models.encoders.pairs import PairTokens
from etrm.models.layers import Block, CrossBlock, Linear, TokenEmbedding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """The number format of a forward pass, and the ways in which it is made fast."""

    dtype: torch.dtype = torch.float32
    hoist: bool = True  # cast weights once for all their uses in a pass
    packing: str = "auto"  # how demos are packed, see `PairTokens`


@contextmanager
def computing(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Within the block, `model` computes in this way; weights stay in float32.

    Casts are made within the block, so gradients of all uses of a weight are summed in
    `compute.dtype` before they are added to its float32 gradient.
    """
    hoist = compute.hoist and compute.dtype != torch.float32
    modules = list(model.modules())
    try:
        for module in modules:
            if isinstance(module, Linear) and hoist:
                module.hoisted = module.weight.to(compute.dtype)
            elif isinstance(module, TokenEmbedding):
                module.dtype = compute.dtype
            elif isinstance(module, PairTokens):
                module.packing = compute.packing
        yield
    finally:
        for module in modules:
            if isinstance(module, Linear):
                module.hoisted = None
            elif isinstance(module, TokenEmbedding):
                module.dtype = torch.float32
            elif isinstance(module, PairTokens):
                module.packing = "auto"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def compile_blocks(model: nn.Module) -> None:
    """Compile the decoder's network and the encoder's blocks, in place.

    With dynamic shapes, so that each has two graphs, with and without gradients, whatever the
    number of lanes, micro-batches and packings.
    """
    inner: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Network):
            inner |= set(module.modules()) - {module}
    for module in model.modules():
        if isinstance(module, (Network, Block, CrossBlock)) and module not in inner:
            module.compile(dynamic=True)


def compiles(wanted: str, device: torch.device) -> bool:
    """Does `execution.compile` ask for compilation on this device?"""
    return wanted == "on" or (wanted == "auto" and device.type == "cuda")
