"""Stop a run between steps when a signal arrives, and tell the scheduler that it can resume."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from etrm.runtime.logs import say
from etrm.runtime.terminal import is_taken

EXIT_INTERRUPTED = 75  # tells the scheduler that the run resumes when it is started again


class Interrupted(SystemExit):
    """The run was asked to stop, and nothing is lost by that: it can resume."""

    def __init__(self, number: int, advanced: bool) -> None:
        """Exit with `EXIT_INTERRUPTED`.

        `number`: of the signal; `advanced`: this process has saved further steps of the run.
        """
        super().__init__(EXIT_INTERRUPTED)
        self.number, self.advanced = number, advanced


class Interruption:
    """Notes SIGTERM, SIGUSR1 and SIGINT within its block, to be acted on between steps."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, tell: bool = True) -> None:
        """`tell`: print on the terminal that a signal has arrived, and the consequence."""
        self.number = 0  # of the last signal that arrived
        self.told = 0  # signals from outside: those of `ask` are not among them
        self.why: str | None = None  # the reason, where another process or thread has asked
        self.doing = "stopping …"  # printed when a signal arrives
        self.advanced = False  # this process has saved further steps
        self._tell, self._asking = tell, False
        self._at_once: str | None = None  # said of a signal that ends the process where it is now
        self._ended: str | None = None  # the same, once one has
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ended and self._tell:
            say(f"{self.why or signal_name(self.number)}: {self._ended}")

    def ask(self, why: str) -> None:
        """Ask this process to stop, as a signal does; for another thread than the main one."""
        self.why, self._asking = why, True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

    @contextmanager
    def at_once(self, doing: str, then: str) -> Iterator[None]:
        """Let a signal end the process within the block, where nothing is lost by that.

        The message names the activity (`doing`), and the remedy (`then`). It is printed when the
        `Interruption` ends: a signal may arrive when the block has just been left, and not by the
        handler, which may have interrupted a print.
        """
        self._at_once = f"stopped {doing}; {then}"
        try:
            if self.number:
                self._end()
            yield
        finally:
            self._at_once = None

    def _end(self) -> NoReturn:
        # A second signal does not disturb the clearing up.
        self._ended, self._at_once = self._at_once, None
        raise Interrupted(self.number, self.advanced)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.told += not self._asking
        self._asking = False
        if self._at_once:
            self._end()
        if self._tell and not is_taken():  # not by print, which it may have interrupted
            with suppress(OSError):  # of a file on a full disk
                os.write(2, f"\n{self.why or signal_name(number)}: {self.doing}\n".encode())


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name
