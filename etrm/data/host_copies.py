"""Copies of tensors on the host that are made while the device goes on with its work."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Tensors on their way to the host: begun now, waited for when they are read.

    Values on the host are not copied: they must not be changed in place before they are read.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # From a GPU to pinned memory, which a copy that is not waited for needs.
        self._tensors = {name: t.to("cpu", non_blocking=True) for name, t in tensors.items()}
        devices = {t.device for t in tensors.values() if t.device.type == "cuda"}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name, when all of them are there."""
        for event in self._copied:
            event.synchronize()
        self._copied = []
        return self._tensors
