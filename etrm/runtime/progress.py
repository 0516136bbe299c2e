"""Progress of a run on the terminal."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from etrm.runtime.logs import say

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """A bar on a terminal of one's own; elsewhere a line every so often; on other ranks nothing."""

    def __init__(self, name: str, steps: int, main: bool, bar: bool, unit: str = "step") -> None:
        self.name, self.steps, self.unit = name, steps, unit
        self._main, self._last = main, 0.0
        self._begun = 0, time.monotonic()  # step, time
        shown = main and bar and sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=name, unit=unit, disable=not shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, step: int) -> None:
        """Begin at the step that the run resumes from."""
        self._bar.initial = self._bar.n = step
        self._begun = step, time.monotonic()

    def pace(self, step: int) -> None:
        """Show the step, the steps per second since the beginning, and the time that is left."""
        first, then = self._begun
        rate = (step - first) / max(time.monotonic() - then, 1e-9)
        left = tqdm.format_interval((self.steps - step) / rate) if rate else "unknown"
        self.report(step, f"{rate:.3g} a second, {left} left")

    def show(self, row: dict[str, float]) -> None:
        """Show the step and its metrics."""
        parts = [f"loss {row['train/lm_loss']:.3f}"]
        if "train/exact_accuracy" in row:
            parts.append(f"exact {row['train/exact_accuracy']:.1%}")
        parts.append(f"{row['perf/examples_per_second']:.0f} examples/s")
        self.report(int(row["step"]), ", ".join(parts))

    def report(self, step: int, text: str) -> None:
        """Show the step and a few words."""
        self._bar.n = step
        self._bar.set_postfix_str(text)
        if self._bar.disable and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"{self.unit} {step}/{self.steps}: {text}")

    def say(self, text: str) -> None:
        """Print a line of its own, on rank 0."""
        if not self._main:
            return
        if self._bar.disable:
            say(f"{self.name}: {text}")
        else:
            self._bar.write(text, file=sys.stderr)
