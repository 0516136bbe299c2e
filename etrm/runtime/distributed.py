"""Ranks: the processes of one training run, as torchrun starts them, each with a part of the slots.

A rank computes its own slots of every lane; sums over ranks then make every rank do the same
update. One rank (rank 0) writes. Nothing that a run computes depends on how many ranks there are,
up to the order of floating-point sums, and its saved state has no ranks in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from etrm.errors import UserError

# A rank that waits this long for another one gives up: the run ends, and resumes when asked again.
PATIENCE = timedelta(minutes=15)


class RankError(UserError):
    """Ranks that this machine has no place for."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those of its run; `world_size` 1 where it is alone."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    local_world_size: int = 1  # the ranks on this machine

    @property
    def is_rank_zero(self) -> bool:
        """Return whether this is the rank that writes."""
        return self.rank == 0

    def own(self, slots: Tensor) -> Tensor:
        """Return this rank's slots among slot numbers: slot s belongs to rank s mod world size."""
        return slots[slots % self.world_size == self.rank]

    def sum_(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def all_gather(self, part: Tensor, total: int) -> Tensor:
        """Return the rows of all slots [total, …], in slot order, of which `part` is this rank's.

        `part` [n, …] has the rows of slots rank, rank + size, rank + 2·size, …
        """
        if self.world_size == 1:
            return part
        most = -(-total // self.world_size)
        padded = part.new_zeros(most, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's value (nested numbers, text and tensors), on rank 0 only."""
        if self.world_size == 1:
            return [value]
        found = [None] * self.world_size if self.is_rank_zero else None
        dist.gather_object(value, found)
        return found

    def max_(self, value: int) -> int:
        """Return the maximum over ranks. Waits for the other ranks, never for the device."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.max_(0)


@contextmanager
def ranks_of_this_run(device: str | None = None) -> Iterator[Ranks]:
    """Join the ranks that torchrun has started; alone where it has not.

    `device` is that of the only rank, or the kind of all; without it, each takes a GPU of its own
    where there are any. Raises `RankError` where a node has fewer GPUs than ranks.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if size == 1:
        yield Ranks(device=torch.device(kind))
        return
    kind = torch.device(kind).type
    target = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise RankError(
                f"found {torch.cuda.device_count()} GPUs on this node, expected one for each of its"
                f" ranks, of which this is number {local + 1}: ask for as many GPUs as ranks"
                " (execution.gpus)"
            )
        torch.cuda.set_device(target)
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    try:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        yield Ranks(dist.get_rank(), size, target, here)
    finally:
        dist.destroy_process_group()
