"""What a person sees of a run under way, and how a person or a scheduler interrupts it."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Any

from tqdm import tqdm

from etrm.logs import say

SECONDS_BETWEEN_LINES = 20.0


class Interruption:
    """Within the block, SIGTERM, SIGUSR1 and SIGINT are noted, to be acted on between steps."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name


class Progress:
    """A bar on a terminal of one's own; elsewhere a line every so often."""

    def __init__(self, name: str, step: int, steps: int, bar: bool) -> None:
        self.name, self.steps, self._last = name, steps, 0.0
        self._bar = tqdm(
            total=self.steps,
            initial=step,
            desc=name,
            unit="step",
            disable=not bar,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, row: dict[str, float]) -> None:
        """Where training is."""
        step = int(row["step"])
        parts = [f"loss {row['train/lm_loss']:.3f}"]
        if "train/exact_accuracy" in row:
            parts.append(f"exact {row['train/exact_accuracy']:.1%}")
        parts.append(f"{row['perf/examples_per_second']:.0f} examples/s")
        self._bar.n = step
        self._bar.set_postfix_str(", ".join(parts))
        if self._bar.disable and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"step {step}/{self.steps}: {', '.join(parts)}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar.disable:
            say(f"{self.name}: {text}")
        else:
            self._bar.write(text, file=sys.stderr)
