"""Parts of a measurement, each in a process of its own, with a limit of time.

Whatever ends a part (an error, a GPU that no longer answers, its limit), the rows that it gave
before are kept, and the next part begins in a process that knows nothing of it. The parent never
touches the GPU: a process that has cannot be forked into one that does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.rows import Row

Rows = Callable[[], Iterator[Row]]
TAIL = 400  # characters of an error in a row


def rows_within(case: str, limit: float, rows: Rows) -> Iterator[Row]:
    """Yield the rows of `rows()` as they come; a last one with `ok` false where it did not end."""
    context = multiprocessing.get_context("fork")  # imports are done once, for all parts
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, rows, sending))
    begun = time.monotonic()
    process.start()
    sending.close()
    end = None
    try:
        while end is None:
            left = begun + limit - time.monotonic()
            if left <= 0 or not receiving.poll(left):
                end = f"was stopped at its limit of {limit:.0f} s"
                break
            try:
                message = receiving.recv()
            except (EOFError, OSError):
                process.join(max(1.0, left))
                end = f"ended with exit code {process.exitcode}, without a word"
                break
            if message is None:
                return
            yield Row(**message)
        yield failure(case, end or "", time.monotonic() - begun)
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # its compilers' processes as well
        process.join()


def failure(case: str, note: str, seconds: float | None = None) -> Row:
    """Return the row of a part that did not end."""
    return Row(case=case, ok=False, note=f"{case} {note}", seconds=seconds)


def _child(case: str, rows: Rows, sending: Connection[Any, Any]) -> None:
    os.setsid()
    begun = time.monotonic()
    try:
        for row in rows():
            sending.send(asdict(row))
    except Exception as error:  # of whatever kind: it is reported, and ends this part only
        traceback.print_exc()
        note = f"failed: {type(error).__name__}: {error}"[:TAIL]
        sending.send(asdict(failure(case, note, time.monotonic() - begun)))
    sending.send(None)
