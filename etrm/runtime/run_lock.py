"""The lease on a run: one process trains it at a time, wherever it was started from.

A job goes on when the workflow that started it is killed; asked for again, its run is started a
second time, maybe on another machine. The second process asks the first one to hand over: that one
saves and ends, and this one goes on from there. One that gives no sign of life is succeeded, and
writes nothing any more should it wake.

A lease is a file `<generation>.json` in a folder of the run's own, on whatever file system the
results are. It is made by a link, which one process alone can make, on network file systems too,
and it is renewed by being touched. Who succeeds a holder makes the next generation and removes the
one before, by which that holder knows. Clocks of two machines are never compared: who waits
measures by its own clock for how long a lease has not changed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from etrm.runtime.interruption import Interruption
from etrm.runtime.lock_holder import (
    LEASES,
    REQUEST,
    Holder,
    newest_holder,
    read_holder,
    read_request,
    who,
)
from etrm.runtime.logs import say
from etrm.runtime.process import here
from etrm.storage.files import write_json_atomic

RENEW_SECONDS = 5.0  # between two signs of life of a holder
POLL_SECONDS = 1.0  # between two looks of who waits
SILENCE_SECONDS = 60.0  # without a sign of life, after which a holder is taken for dead
SAY_SECONDS = 60.0  # between two lines of who waits
JOIN_SECONDS = 2.0  # for a thread whose disk may be gone


class LeaseLost(Exception):  # noqa: N818 (no error: another process goes on)
    """Another process has this run now: nothing of it may be written here any more."""


class Lease:
    """The lease of this process on a run; rank 0 takes it for all."""

    def __init__(self, folder: Path, name: str, interruption: Interruption, main: bool) -> None:
        """`folder`: of all states; `name`: of the run, which has one run folder to write."""
        self.name, self.folder = name, folder / LEASES / name
        self._interruption, self._main = interruption, main
        self._me = here() | {"token": secrets.token_hex(8)}
        self._path: Path | None = None  # of the lease that was made
        self._generation = 0  # of it, or the newest that needs no heed
        self._thread: threading.Thread | None = None
        self._released, self._failing = threading.Event(), False
        self._watched: tuple[str, int, int] | None = None  # the newest sign of life
        self._seen = self._silent = 0.0  # when it was looked for, and for how long it was the same
        self._said: float | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it, or of the wish to have it."""
        self._released.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        if self._main:
            with suppress(OSError):
                self._clear()

    def take(self, key: str) -> bool:
        """Take the lease, for the run with this key; False, after a while, where another has it.

        To be called again then: that one is asked to hand over. Where no lease can be written,
        that is said, and the run goes on without.
        """
        if not self._main:
            return True
        self._me |= {"key": key, "began": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            holder = newest_holder(self.folder)
            if holder is None or holder.ended() or self._silent_for(holder) >= SILENCE_SECONDS:
                taken = self._succeed(holder)
            else:
                taken = False
                self._ask(holder)
        except OSError as error:
            self._tell(error)
            taken = True
        if taken:
            self._thread = threading.Thread(target=self._keep_up, daemon=True)
            self._thread.start()
        else:
            time.sleep(POLL_SECONDS)
        return taken

    def check(self) -> None:
        """Raise `LeaseLost` when another process has the run.

        A disk that gives no answer says nothing of that, and does not end training.
        """
        try:
            newest = newest_holder(self.folder)
            mine = None if self._path is None else read_holder(self._path)
        except OSError:
            return
        if newest is not None and newest.generation > self._generation and not self._made(newest):
            raise LeaseLost(f"{who(newest.record)} has taken over {self.name}")
        if self._path is not None and not self._made(mine):
            raise LeaseLost(f"another process has taken over {self.name}")

    # --- waiting for it ---

    def _silent_for(self, holder: Holder) -> float:
        """Seconds for which this process has seen no sign of life of it.

        Those in which this process was itself asleep, or its disk gone, do not count.
        """
        now = time.monotonic()
        passed = min(now - self._seen, 2 * POLL_SECONDS)
        self._silent = self._silent + passed if holder.sign == self._watched else 0.0
        self._watched, self._seen = holder.sign, now
        return self._silent

    def _ask(self, holder: Holder) -> None:
        """Ask it to hand over; what is waited for is said every so often."""
        now, token = time.monotonic(), holder.record["token"]
        doing = "asked it to save and to hand over, waiting"
        try:
            request = read_request(self.folder)
            if request is None or request["to"] != token:
                write_json_atomic(self.folder / REQUEST, self._me | {"to": token})
        except FileNotFoundError:
            return  # the lease has just come to an end
        except OSError as error:
            doing = f"it cannot be asked to hand over ({error.strerror or error}), waiting"
        if self._said is None or now - self._said >= SAY_SECONDS:
            self._said = now
            silent = f"; no sign of life for {self._silent:.0f} s"
            say(
                f"{self.name} is with {who(holder.record)} since {holder.record['began']}: {doing}"
                f"{silent if self._silent > 2 * RENEW_SECONDS else ''}"
            )

    def _succeed(self, holder: Holder | None) -> bool:
        """Make the lease after that of a holder that has ended; False where another was first."""
        self._generation = 0 if holder is None else holder.generation
        if not self._make():
            return False
        if holder is not None:
            how = (
                "has ended" if holder.ended() else f"gave no sign of life for {self._silent:.0f} s"
            )
            say(f"{self.name}: {who(holder.record)} {how}: taking over")
        return True

    def _make(self) -> bool:
        """Make the next lease; False where another process was first."""
        path = self.folder / f"{self._generation + 1:06d}.json"
        unique = self.folder / f".{self._me['token']}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unique.write_text(json.dumps(self._me), encoding="utf-8")
            first = self._link(unique, path)
        except FileNotFoundError:  # another process has just removed the folder, or what is in it
            return False
        finally:
            with suppress(OSError):
                unique.unlink()
        if not first:
            return False
        if not self._made(newest_holder(self.folder)):
            path.unlink(missing_ok=True)
            return False
        self._path, self._generation = path, int(path.stem)
        for other in self.folder.iterdir():
            if not (other.stem.isdigit() and int(other.stem) >= self._generation):
                other.unlink(missing_ok=True)
        return True

    def _link(self, unique: Path, path: Path) -> bool:
        try:
            os.link(unique, path)
        except FileExistsError:  # also where it is ours, and the answer was lost on the network
            return self._made(read_holder(path))
        return True

    # --- having it ---

    def _keep_up(self) -> None:
        """Give signs of life, and look whether somebody asks for the run."""
        while not self._released.wait(RENEW_SECONDS):
            try:
                self.check()
                self._renew()
                request = read_request(self.folder)
            except LeaseLost as lost:
                return self._interruption.ask(str(lost))
            except OSError as error:
                self._tell(error)
                continue
            self._failing = False
            if request is not None and request["to"] == self._me["token"]:
                other = "" if request["key"] == self._me["key"] else ", with another configuration"
                return self._hand_over(f"handing {self.name} over to {who(request)}{other}")

    def _hand_over(self, why: str) -> None:
        """Ask this process to stop, and give signs of life until it has."""
        self._interruption.ask(why)
        while not self._released.wait(RENEW_SECONDS):
            with suppress(OSError, LeaseLost):
                self._renew()

    def _renew(self) -> None:
        if self._path is not None:
            os.utime(self._path)
        elif not self._make():
            self.check()

    def _tell(self, error: OSError) -> None:
        """Once, until it is over."""
        if not self._failing:
            say(
                f"{self.folder}: the lease on the run could not be written"
                f" ({error.strerror or error}); training goes on, and tries again. Start the run"
                " nowhere else meanwhile",
                logging.WARNING,
            )
        self._failing = True

    def _made(self, holder: Holder | None) -> bool:
        return holder is not None and holder.record["token"] == self._me["token"]

    def _clear(self) -> None:
        """Remove what is this process's own, and folders that are empty then."""
        mine, request = newest_holder(self.folder), read_request(self.folder)
        if request is not None and self._me["token"] in (request["token"], request["to"]):
            (self.folder / REQUEST).unlink(missing_ok=True)
        if mine is not None and self._made(mine):
            mine.path.unlink(missing_ok=True)
        for folder in (self.folder, *self.folder.parents):
            folder.rmdir()  # an error, and the end, where it is not empty
            if folder.name == LEASES:
                break
