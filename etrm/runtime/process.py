"""Processes of this machine: which one it is, and whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def here() -> dict[str, Any]:
    """This process, as others can know it, on this machine and on others."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _state(os.getpid())[1],
        "place": _place(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def runs_here(record: Mapping[str, Any]) -> bool | None:
    """Does a process (`here` of it) still run? None where that cannot be seen from here.

    One with the same number that was started at another time is not the same.
    """
    if record["place"] != _place():
        return None
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return None
    state, start = _state(record["pid"])
    return state not in ("Z", "X") and start == record["start"]


def _place() -> str:
    """Where a process number means the same: a machine since it was started, and a container."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state(pid: int) -> tuple[str | None, int | None]:
    """State of a process, and when it was started, in ticks since the machine was."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None, None
    return fields[0], int(fields[19])
