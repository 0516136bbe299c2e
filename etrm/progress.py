"""What a person sees of a run under way, and how a person or a scheduler interrupts it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from tqdm import tqdm

from etrm.logs import say

SECONDS_BETWEEN_LINES = 20.0
# Told to the scheduler by a run that was asked to stop and goes on when it is started again.
EXIT_INTERRUPTED = 75


class Interrupted(SystemExit):
    """The run was asked to stop, and nothing is lost by that: it can go on."""

    def __init__(self, number: int, advanced: bool) -> None:
        """`number`: of the signal that asked; `advanced`: this process has got the run further."""
        super().__init__(EXIT_INTERRUPTED)
        self.number, self.advanced = number, advanced


class Interruption:
    """Within the block, SIGTERM, SIGUSR1 and SIGINT are noted, to be acted on between steps."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, tell: bool = True) -> None:
        """`tell`: say on the terminal that a signal has arrived, and what happens now."""
        self.number = 0  # of the last signal that arrived
        self.told = 0  # how many came from outside: `ask` is not among them
        self.why: str | None = None  # the run was asked to stop, where it was not a person's wish
        self.doing = "stopping …"  # what is said when a signal arrives
        self.advanced = False  # this process has got the run further, and that is saved
        self._tell, self._at_once, self._asking = tell, False, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self, why: str) -> None:
        """Ask this process to stop, as a signal does; for another thread than the main one."""
        self.why, self._asking = why, True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

    @contextmanager
    def at_once(self, doing: str, then: str) -> Iterator[None]:
        """Within the block nothing is lost by stopping: a signal ends the process there.

        What it was `doing`, and what happens when it is started again, is said.
        """
        self._at_once = True
        try:
            if self.number:
                raise Interrupted(self.number, self.advanced)
            yield
        except Interrupted:
            if self._tell:
                say(f"{self.why or name_of(self.number)}: stopped {doing}; {then}")
            raise
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.told += not self._asking
        self._asking = False
        if self._at_once:
            self._at_once = False  # a second signal does not disturb the clearing up
            raise Interrupted(number, self.advanced)
        if self._tell:  # not by print, which it may have interrupted
            with suppress(OSError):  # of a file on a full disk
                os.write(2, f"\n{self.why or name_of(number)}: {self.doing}\n".encode())


def name_of(number: int) -> str:
    """The name of a signal."""
    return signal.Signals(number).name


class Progress:
    """A bar on a terminal of one's own; elsewhere a line every so often; on other ranks nothing."""

    def __init__(self, name: str, steps: int, main: bool, bar: bool) -> None:
        self.name, self.steps, self._main, self._last = name, steps, main, 0.0
        shown = main and bar and sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=name, unit="step", disable=not shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, step: int) -> None:
        """Where a run that goes on begins."""
        self._bar.initial = self._bar.n = step

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
        if not self._main:
            return
        if self._bar.disable:
            say(f"{self.name}: {text}")
        else:
            self._bar.write(text, file=sys.stderr)
