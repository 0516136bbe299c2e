"""Logs of jobs: one file each, and errors for people on the terminal as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def say(text: str) -> None:
    """A line for the log and for the terminal."""
    logging.info("%s", text)
    print(text, file=sys.stderr)


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Log to a file; an error that explains itself ends the job with its message alone.

    Those are `ValueError`, `RuntimeError` and `OSError` raised by this package; anything else is
    a defect, and keeps its traceback.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(path, mode="a", encoding="utf-8")]
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=handlers, force=True)
    logging.captureWarnings(True)
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__module__.split(".")[0] != "etrm":
            logging.exception("unexpected error")
            raise
        logging.error("%s", error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        logging.exception("unexpected error")
        raise
