"""Write results on a disk that may be full: retry until there is room, and lose nothing."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from etrm.runtime.distributed import Ranks
from etrm.runtime.interruption import Interruption
from etrm.runtime.logs import say

RETRY_SECONDS = 5.0  # between two tries
REMIND_SECONDS = 600.0  # between two lines that say that there is still no room
POLL_SECONDS = 0.1  # between two looks for a signal


def until_written(
    write: Callable[[], bool],
    problem: Callable[[], str],
    name: str,
    ranks: Ranks,
    interruption: Interruption,
) -> bool:
    """Call `write` until it returns True, or a signal tells this process to end; return its result.

    After a signal it is called once more, and once where the signal came before. A request of
    another process for the run is no signal: granting it would lose the results. All ranks call
    this. While it waits, rank 0 reports `problem` of the run called `name`.
    """
    said: float | None = None  # time of the last report
    while True:
        told = ranks.max_(interruption.told) > 0  # before the try: a later signal gets one more
        written = write()
        if written or told:
            break
        if ranks.is_rank_zero and (said is None or time.monotonic() - said >= REMIND_SECONDS):
            said = time.monotonic()
            _say_waiting(problem(), interruption)
        _pause(interruption)
    if written and said is not None:
        say(f"{name}: there is room again, nothing is lost")
    return written


def _say_waiting(problem: str, interruption: Interruption) -> None:
    interruption.doing = "trying to write once more …"
    say(
        f"{problem}. Make room, or make the folder writable: until then everything is kept in"
        f" memory, and tried again every {RETRY_SECONDS:g} s; a signal ends that",
        logging.WARNING,
    )


def _pause(interruption: Interruption) -> None:
    until = time.monotonic() + RETRY_SECONDS
    while not interruption.told and time.monotonic() < until:
        time.sleep(min(POLL_SECONDS, RETRY_SECONDS))


def obstacle(folder: Path, error: OSError) -> str:
    """Return the reason why a file could not be written in a folder, and the free space there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError):
        free = shutil.disk_usage(folder).free / 2**20
        return f"{error.strerror or error}; {free:,.1f} MiB free there"
    return f"{error.strerror or error}"
