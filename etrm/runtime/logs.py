"""Logs of jobs: one file each, and errors for people on the terminal as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etrm.errors import is_explained
from etrm.runtime.terminal import is_taken

FORMAT = "%(asctime)s %(levelname)s %(message)s"

log = logging.getLogger(__name__)


def say(text: str, level: int = logging.INFO) -> None:
    """Write a line to the log and to the terminal; once, where the log is the terminal.

    A display of the study that has the terminal reads the log itself.
    """
    log.log(level, "%s", text)
    streams = [getattr(handler, "stream", None) for handler in logging.getLogger().handlers]
    if sys.stderr not in streams or not log.isEnabledFor(level):
        _print(text)


def _print(text: str) -> None:
    """Print a line on the terminal, which may be a file on a full disk: that ends nothing."""
    if not is_taken():
        with suppress(OSError):
            print(text, file=sys.stderr)


def history_of(path: Path) -> Path:
    """Return the log of all attempts at a job, beside that of the last."""
    return path.with_suffix(f".all{path.suffix}")


@contextmanager
def job_log(
    path: str | Path | None, name: str = "", level: int = logging.INFO, history: bool = False
) -> Iterator[None]:
    """Log to a file, or to the terminal; an error of the user ends the job with its message alone.

    Anything else is a defect, and keeps its traceback (`etrm.errors`). `name` stands before every
    message: it tells the processes that write to one place apart. `history`: also log to a file
    beside it that is never begun anew: Snakemake deletes a job's log whenever it starts the job
    again.
    """
    form = "%(message)s"
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if path is not None:
        form = FORMAT
        files = [Path(path), *([history_of(Path(path))] if history else [])]
        handlers = [logging.FileHandler(file, mode="a", encoding="utf-8") for file in files]
    form = form.replace("%(message)s", f"{name}%(message)s")
    logging.basicConfig(level=level, format=form, handlers=handlers, force=True)
    logging.captureWarnings(True)
    try:
        yield
    except Exception as error:
        if not is_explained(error):
            logging.exception("unexpected error")
            if not is_taken():
                raise
        elif path is not None:
            logging.error("%s", error)
        _print(f"error: {name}{error}")
        sys.exit(1)
