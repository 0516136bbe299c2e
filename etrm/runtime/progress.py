"""Progress of a run on the terminal, and in the log of a job that a display of the study reads."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass

from tqdm import tqdm

from etrm.runtime.logs import say
from etrm.runtime.terminal import is_taken

SECONDS_BETWEEN_LINES = 20.0
SECONDS_UNDER_DISPLAY = 5.0  # where a display shows the last line of the log
_LINE = re.compile(r": (\w+) (\d+)/(\d+): (?:(\S+) left, )?(.*)$")  # as `Progress.report` writes


@dataclass(frozen=True)
class Reading:
    """The progress of a job, as the last line of its log says."""

    unit: str  # step, prediction, question or rule
    done: int
    of: int
    left: str  # time left at this pace, as 01:20; empty where it is not known
    words: str  # metrics, or the pace

    @classmethod
    def of_line(cls, line: str) -> Reading | None:
        """Return the progress that a line of a log tells, None where it tells none."""
        found = _LINE.search(line)
        if found is None:
            return None
        unit, done, of, left, words = found.groups(default="")
        return cls(unit, int(done), int(of), left, words)


class Progress:
    """A bar on a terminal of one's own; elsewhere a line every so often; on other ranks nothing."""

    def __init__(self, name: str, steps: int, main: bool, bar: bool, unit: str = "step") -> None:
        self.name, self.steps, self.unit = name, steps, unit
        self._main, self._last = main, 0.0
        self._begun = 0, time.monotonic()  # step, time
        shown = main and bar and sys.stderr.isatty() and not is_taken()
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
        self.report(step, f"{self._rate(step):.3g} a second")

    def show(self, row: dict[str, float]) -> None:
        """Show the step, its metrics, and the time that is left."""
        parts = [f"loss {row['train/lm_loss']:.3f}"]
        if "train/exact_accuracy" in row:
            parts.append(f"exact {row['train/exact_accuracy']:.1%}")
        parts.append(f"{row['perf/examples_per_second']:.0f} examples/s")
        self.report(int(row["step"]), ", ".join(parts))

    def _rate(self, step: int) -> float:
        """Return the steps per second since the run was begun or resumed."""
        first, then = self._begun
        return (step - first) / max(time.monotonic() - then, 1e-9)

    def report(self, step: int, text: str) -> None:
        """Show the step and a few words."""
        self._bar.n = step
        self._bar.set_postfix_str(text)
        pause = SECONDS_UNDER_DISPLAY if is_taken() else SECONDS_BETWEEN_LINES
        if self._bar.disable and time.monotonic() - self._last > pause:
            self._last = time.monotonic()
            rate = self._rate(step)
            left = f"{tqdm.format_interval((self.steps - step) / rate)} left, " if rate else ""
            self.say(f"{self.unit} {step}/{self.steps}: {left}{text}")

    def say(self, text: str) -> None:
        """Print a line of its own, on rank 0."""
        if not self._main:
            return
        if self._bar.disable:
            say(f"{self.name}: {text}")
        else:
            self._bar.write(text, file=sys.stderr)
