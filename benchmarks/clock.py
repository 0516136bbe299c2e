"""Clocks, the rate of matrix products beside them, and peak memory, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.stage_tasks import process_peak
from etrm.study.plan.devices import card_of

GIGA = 1e9
# Side of the square matrices whose product is timed beside every measurement.
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
MATMUL_REPEATS = {"cpu": 3, "cuda": 20}


def synchronise(device: torch.device) -> None:
    """Wait for all that the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds, when the device is done."""
    synchronise(device)
    return time.perf_counter()


def matmul_gflops(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Return the best rate of a square matrix product, GFLOP/s."""
    side = side or MATMUL_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(1 + MATMUL_REPEATS[device.type]):  # the first warms up, and is never the best
        start = now(device)
        torch.mm(a, b)
        best = min(best, now(device) - start)
    return 2.0 * side**3 / best / GIGA


def card_peak(device: torch.device, dtype: str) -> float | None:
    """Return the data sheet's dense rate of a GPU in GFLOP/s; None where it is not in the table."""
    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return None if card is None else card.peak(dtype) / GIGA


def seconds_per_call(
    call: Callable[[], Any], device: torch.device, seconds: float, warm_up: int = 1
) -> float:
    """Mean duration of calls after `warm_up` ones: as many as take about `seconds`, at least one.

    A single call to warm up that takes longer than that is the measurement itself: beside it, what
    is done once is nothing. The device is waited for after the last call only, so that the host
    runs ahead as it does in a real run.
    """
    start = now(device)
    for i in range(warm_up):
        start = start if i < warm_up - 1 else now(device)
        call()
    expected = now(device) - start
    if warm_up == 1 and expected > seconds:
        return expected
    count = max(1, min(1000, round(seconds / max(expected, 1e-6))))
    start = now(device)
    for _ in range(count):
        call()
    return (now(device) - start) / count


class PeakMemory:
    """The most memory in use since it was made: allocated on a GPU, or held by the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:  # Linux: the high-water mark starts anew at what is in use
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def bytes(self) -> int:
        """So far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return self.of_process()

    @staticmethod
    def of_process() -> int:
        """Return the high-water mark of this process."""
        return process_peak()


class Stopwatch:
    """Time by part, in seconds: what runs inside another part counts for the inner one only."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = now(device)

    def switch(self, part: str) -> None:
        """From here on, time is that of `part` in place of the innermost open one."""
        self._account()
        self._open[-1] = part

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as a part."""
        self._account()
        self._open.append(name)
        try:
            yield
        finally:
            self._account()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, with each call counted as a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def _account(self) -> None:
        moment = now(self.device)
        if self._open:
            self.seconds[self._open[-1]] += moment - self._since
        self._since = moment
