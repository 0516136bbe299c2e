"""Modes of computation: number format, casts, packing of demos, compilation.

They change results only in the last digits: each can be switched off, and tests compare the fast
path with the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from etrm.errors import UserError
from etrm.models.decoder import Network
from etrm.models.encoders.pairs import PairTokens
from etrm.models.layers import Block, CrossBlock, Linear, TokenEmbedding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """The number format of a forward pass, and its shortcuts."""

    dtype: torch.dtype = torch.float32
    hoist: bool = True  # cast weights once for all their uses in a pass
    packing: str = "auto"  # of demos, see `PairTokens`


@contextmanager
def computing(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Let `model` compute in this mode within the block; weights stay in float32.

    Casts are made within the block, so gradients of all uses of a weight are summed in
    `compute.dtype` before they are added to its float32 gradient.
    """
    modules = list(model.modules())
    try:
        for module in modules:
            if isinstance(module, Linear) and compute.hoist and compute.dtype != torch.float32:
                module.hoisted = module.weight.to(compute.dtype)
            elif isinstance(module, TokenEmbedding):
                module.dtype = compute.dtype
            elif isinstance(module, PairTokens):
                module.packing = compute.packing
        yield
    finally:
        for module in modules:
            if isinstance(module, (Linear, TokenEmbedding, PairTokens)):
                for name in ("hoisted", "dtype", "packing"):  # back to the class's default
                    module.__dict__.pop(name, None)


def pick_device(name: str | None) -> torch.device:
    """Return the device of a name, as `cpu` or `cuda:1`; by default a GPU if there is one.

    Raises `UserError` for one that is not there.
    """
    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name or ("cuda" if has_gpu else "cpu"))
    except RuntimeError:
        raise UserError(f"device: found {name!r}, expected cpu, cuda, cuda:1, …") from None
    count = torch.cuda.device_count() if has_gpu else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device: found {name!r}, but {count} GPUs; expected one of them, or cpu")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of device and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def compile_blocks(model: nn.Module) -> None:
    """Compile the decoder's network and the encoder's blocks, in place.

    Shapes are dynamic, so each has two graphs, with and without gradients, whatever the number of
    lanes, micro-batches and packings.
    """
    networks = [module for module in model.modules() if isinstance(module, Network)]
    inner = {module for network in networks for module in network.modules()} - {*networks}
    for module in model.modules():
        if isinstance(module, (Network, Block, CrossBlock)) and module not in inner:
            module.compile(dynamic=True)


def compiles(wanted: str, device: torch.device) -> bool:
    """Return whether `execution.compile` asks for compilation on this device."""
    return wanted == "on" or (wanted == "auto" and device.type == "cuda")
