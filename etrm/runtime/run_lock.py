"""The lease on a run: one process trains it at a time, wherever it was started.

A job survives the workflow that started it; asked for again, its run is started a second time,
maybe on another machine. The second process asks the first to hand over: that one saves and ends,
and the second resumes. The lease itself is filelock's `SoftFileLease`: a dead holder is replaced
at once, one without a heartbeat after `SILENCE_SECONDS`, and a replaced one writes nothing more.

Files of a lease, in `state/leases/<run>/`: `lock` (filelock's marker, touched at each heartbeat),
`holder.json` (the holder, for messages), `request.json` (the process that asks for the run).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from etrm.runtime.interruption import Interruption
from etrm.runtime.logs import say
from etrm.storage.files import write_json_atomic

LEASES = "leases"  # the folder of all leases, among the states
LOCK, HOLDER, REQUEST = "lock", "holder.json", "request.json"
HEARTBEAT_SECONDS = 5.0  # between two heartbeats of a holder, and two looks for a request
POLL_SECONDS = 1.0  # between two tries of a process that waits
SILENCE_SECONDS = 60.0  # without a heartbeat, after which a holder is replaced
SAY_SECONDS = 60.0  # between two messages of a process that waits
JOIN_SECONDS = 2.0  # for a thread whose disk may be gone
# Of a damaged file: a process of which nothing is known.
UNKNOWN = {"token": "", "to": "", "key": "", "place": "", "began": "?"}
UNKNOWN |= {"pid": "?", "host": "an unknown machine"}
PROC = Path("/proc")


class LeaseLost(Exception):  # noqa: N818 (no error: another process has the run)
    """Another process has this run now: nothing of it may be written here any more."""


@dataclass(frozen=True)
class Holder:
    """The holder of a lease, and the time of its last heartbeat (file system's clock, seconds)."""

    record: Mapping[str, Any]
    renewed: float

    def __str__(self) -> str:
        return who(self.record)


def this_process() -> dict[str, Any]:
    """Return the identity of this process, for processes of this machine and of others."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _state(os.getpid())[1],
        "place": _place(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def is_running(record: Mapping[str, Any]) -> bool | None:
    """Return whether a process (its `this_process`) runs; None where that cannot be seen.

    A process with the same number that was started at another time is another one.
    """
    if record["place"] != _place():
        return None
    state, start = _state(record["pid"])
    return state not in (None, "Z", "X") and start == record["start"]


def who(record: Mapping[str, Any]) -> str:
    """Return a process in words."""
    job = f" (SLURM job {record['slurm_job']})" if record.get("slurm_job") else ""
    return f"process {record['pid']} on {record['host']}{job}"


def read_holder(folder: Path) -> Holder | None:
    """Return the holder of the lease in `folder`; None where nobody has it."""
    try:
        renewed = (folder / LOCK).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    record, owner = _read(folder / HOLDER), SoftFileLease(folder / LOCK).owner
    if owner is None or owner.token != record["token"]:  # it has not written its record, or cannot
        known = {} if owner is None else {"pid": owner.pid, "host": owner.hostname}
        record = UNKNOWN | {"token": owner.token if owner else ""} | known
    return Holder(record, renewed)


def all_holders(states: Path) -> Iterator[tuple[str, Holder]]:
    """Yield the name of the run and the holder of every lease among the states of a study."""
    for folder in sorted((states / LEASES).glob("*/*/*")):
        holder = read_holder(folder)
        if holder is not None:
            yield str(folder.relative_to(states / LEASES)), holder


class Lease:
    """The lease of this process on a run; rank 0 takes it for all ranks."""

    def __init__(self, folder: Path, name: str, interruption: Interruption, main: bool) -> None:
        """`folder`: of all states; `name`: of the run, which has one run folder to write."""
        self.name, self.folder = name, folder / LEASES / name
        self._interruption, self._is_rank_zero = interruption, main
        self._me = this_process()
        self._token: str | None = None  # of the claim, once it was made
        # The record that the last holder had left then; None: there was none, or it had released.
        self._left: Mapping[str, Any] | None = None
        self._lock = SoftFileLease(
            self.folder / LOCK,
            lease_duration=SILENCE_SECONDS,
            heartbeat_interval=HEARTBEAT_SECONDS,
            thread_local=False,  # a later claim is made by the thread below
        )
        self._thread: threading.Thread | None = None
        self._released, self._failing = threading.Event(), False
        self._said = -SAY_SECONDS

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lease, or withdraw the request for it."""
        self._released.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        if self._is_rank_zero:
            with suppress(OSError):
                self._clear()

    def take(self, key: str) -> bool:
        """Take the lease for the run with this key; False, after a while, where another has it.

        To be called again then: the holder has been asked to hand over. Where no lease can be
        written, that is said, and the run is trained without.
        """
        if not self._is_rank_zero:
            return True
        self._me |= {"key": key, "began": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            holder = read_holder(self.folder)
            taken = self._acquire()
            if taken and self._left is not None:
                last = self._left
                if last is UNKNOWN and holder is not None:  # damaged; the lock has its process
                    last = holder.record
                ended = is_running(last) is False
                how = "has ended" if ended else f"gave no heartbeat for {SILENCE_SECONDS:g} s"
                say(f"{self.name}: {who(last)} {how}: taking over")
            elif not taken and holder is not None:
                self._ask(holder)
        except OSError as error:
            self._warn(error)
            taken = True
        if taken:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            time.sleep(POLL_SECONDS)
        return taken

    def check(self) -> None:
        """Raise `LeaseLost` when another process has the run.

        An unreachable disk is no evidence of that, and does not end training.
        """
        if self._is_lost():
            time.sleep(0.01)  # a contender may have moved the file aside for an instant
            if self._is_lost():
                holder = read_holder(self.folder)
                by = "another process" if holder is None else str(holder)
                raise LeaseLost(f"{by} has taken over {self.name}")

    def _is_lost(self) -> bool:
        try:
            os.stat(self.folder / LOCK)
        except (FileNotFoundError, NotADirectoryError):
            return self._token is not None
        except OSError:
            return False
        owner = self._lock.owner
        return owner is not None and owner.token != self._token

    def _acquire(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._break_zombie()
            self._lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # held, or its last holder has removed the folder
            return False
        self._token, record = self._lock.token, self.folder / HOLDER
        self._left = _read(record) if record.exists() else None
        self._me["token"] = self._token
        for left in self.folder.glob(".*.tmp"):  # of a process that was killed as it wrote
            left.unlink(missing_ok=True)
        write_json_atomic(self.folder / HOLDER, self._me)
        (self.folder / REQUEST).unlink(missing_ok=True)
        return True

    def _break_zombie(self) -> None:
        """Remove the claim of a process of this machine that has ended and was not reaped yet."""
        holder = read_holder(self.folder)
        if holder is None or is_running(holder.record) is not False:
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # only this machine's processes can see it
            now = read_holder(self.folder)
            if now is not None and now.record == holder.record:
                self._lock.force_break()
        finally:
            os.close(descriptor)

    def _ask(self, holder: Holder) -> None:
        """Ask the holder to hand over; say every so often that this process waits."""
        now, token = time.monotonic(), holder.record["token"]
        doing = "asked it to save and to hand over, waiting"
        try:
            if _read(self.folder / REQUEST)["to"] != token:
                write_json_atomic(self.folder / REQUEST, self._me | {"to": token})
        except FileNotFoundError:
            return  # the lease has just been released
        except OSError as error:
            doing = f"it cannot be asked to hand over ({error.strerror or error}), waiting"
        if now - self._said >= SAY_SECONDS:
            self._said = now
            say(f"{self.name} is with {holder} since {holder.record['began']}: {doing}")

    def _watch(self) -> None:
        """Look whether the lease is lost, or requested; claim it where that was not possible."""
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                if self._token is None and not self._acquire():
                    continue
                os.utime(self.folder / LOCK)  # an error of the disk, which the heartbeat keeps
                request = _read(self.folder / REQUEST)
            except LeaseLost as lost:
                return self._interruption.ask(str(lost))
            except OSError as error:
                self._warn(error)
                continue
            self._failing = False
            if request["to"] == self._token:
                other = "" if request["key"] == self._me["key"] else ", with another configuration"
                why = f"handing {self.name} over to {who(request)}{other}"
                return self._interruption.ask(why)

    def _warn(self, error: OSError) -> None:
        """Say once, until it works again, that the lease cannot be written."""
        if not self._failing:
            say(
                f"{self.folder}: the lease on the run could not be written"
                f" ({error.strerror or error}); training goes on, and tries again. Start the run"
                " nowhere else meanwhile",
                logging.WARNING,
            )
        self._failing = True

    def _clear(self) -> None:
        """Remove this process's files, and folders that are empty then."""
        request, mine = _read(self.folder / REQUEST), self._token is not None
        is_mine = request["pid"] == self._me["pid"] and request["place"] == self._me["place"]
        if is_mine or (mine and request["to"] == self._token):
            (self.folder / REQUEST).unlink(missing_ok=True)
        if mine and _read(self.folder / HOLDER)["token"] == self._token:
            (self.folder / HOLDER).unlink(missing_ok=True)
        self._lock.release()
        for folder in (self.folder, *self.folder.parents):
            folder.rmdir()  # an error, and the end, where it is not empty
            if folder.name == LEASES:
                break


def _read(path: Path) -> Mapping[str, Any]:
    """Return a record; that of an unknown process where there is none or it is damaged."""
    try:
        return {**UNKNOWN, **json.loads(path.read_text(encoding="utf-8"))}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return UNKNOWN


def _place() -> str:
    """Return where a process number means the same: a booted machine, and a container on it."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state(pid: int) -> tuple[str | None, int | None]:
    """Return a process's state, and when it was started, in ticks since the machine was."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None, None
    return fields[0], int(fields[19])
