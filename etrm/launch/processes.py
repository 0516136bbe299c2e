"""Processes that one process starts for a run: they get its signals, and end when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from etrm.runtime.interruption import Interruption

Process = subprocess.Popen[bytes]


def begin(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start a command, with this package on its path and in a session of its own.

    Its input ends when this process does: see `end_with_parent`. A Ctrl-C on the terminal reaches
    it once, from here.
    """
    here, known = str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH")
    environment = {**environment, "PYTHONPATH": f"{here}{os.pathsep}{known}" if known else here}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


@contextmanager
def forwarding(processes: Sequence[Process], as_: int | None = None) -> Iterator[set[int]]:
    """Within the block, signals that ask a run to stop go to all processes; yields those that did.

    `as_`: the one that is sent instead of whichever has arrived.
    """
    sent: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        sent.add(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(as_ or number)

    before = {number: signal.signal(number, forward) for number in Interruption.signals}
    try:
        yield sent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ask this process to save and stop when the one that started it is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
