"""Who has the lease on a run, and who asks for it, as files in the folder of that lease say."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.runtime.process import runs_here

LEASES = "leases"  # the folder of all leases, among the states
REQUEST = "request.json"  # who asks the holder to hand over
# Of a file that a disk has damaged: of a process of which nothing is known.
UNKNOWN = {
    **{"token": "", "to": "", "key": "", "place": ""},
    **{"pid": "?", "host": "an unknown machine", "began": "?"},
}
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True)
class Holder:
    """Who has a lease."""

    path: Path
    record: Mapping[str, Any]
    renewed: int  # time of the last sign of life by the file system's clock, ns

    @property
    def generation(self) -> int:
        """One more than that of the holder that it has succeeded."""
        return int(self.path.stem)

    @property
    def sign(self) -> tuple[str, int, int]:
        """What changes with every sign of life."""
        return self.record["token"], self.generation, self.renewed

    def ended(self) -> bool:
        """Is it known at once that it has ended? Only of a process of this machine."""
        return runs_here(self.record) is False


def who(record: Mapping[str, Any]) -> str:
    """A process in words."""
    job = f" (SLURM job {record['slurm_job']})" if record.get("slurm_job") else ""
    return f"process {record['pid']} on {record['host']}{job}"


def newest_holder(folder: Path) -> Holder | None:
    """Who has the lease on a run; None where nobody has."""
    paths = (path for path in folder.glob("*.json") if path.stem.isdigit())
    holders = map(read_holder, sorted(paths, reverse=True))
    return next((holder for holder in holders if holder is not None), None)


def all_holders(states: Path) -> Iterator[tuple[str, Holder]]:
    """Name of the run and holder of every lease among the states of a study."""
    for folder in sorted((states / LEASES).glob("*/*/*")):
        holder = newest_holder(folder)
        if holder is not None:
            yield str(folder.relative_to(states / LEASES)), holder


def read_holder(path: Path) -> Holder | None:
    """Who made a lease; None where it is gone. Raises `OSError` where that cannot be known.

    The file is opened to look at its time: a network file system asks its server then.
    """
    try:
        with path.open(encoding="utf-8") as file:
            renewed = os.fstat(file.fileno()).st_mtime_ns
            return Holder(path, _content(file.read()), renewed)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def read_request(folder: Path) -> Mapping[str, Any] | None:
    """Who asks the holder of a lease to hand over."""
    try:
        return _content((folder / REQUEST).read_text(encoding="utf-8"))
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def _content(text: str) -> Mapping[str, Any]:
    try:
        return {**UNKNOWN, **json.loads(text)}
    except (ValueError, TypeError):
        return UNKNOWN
