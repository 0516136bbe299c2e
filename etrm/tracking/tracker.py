"""Destinations of metrics: rows for `metrics.parquet` (the record), and W&B (a mirror).

W&B runs in a process of its own (`etrm/tracking/wandb_process.py`), which is started only when
asked for. Rows are handed over by a thread; whatever happens there, training goes on.
"""

from __future__ import annotations

import json
import logging
import netrc
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from etrm.arc.grid import ARC_COLOURS
from etrm.config.execution import TrackingConfig
from etrm.config.load import plain
from etrm.config.study import RunConfig
from etrm.storage.files import write_table_atomic

log = logging.getLogger(__name__)

MIRROR = Path(__file__).with_name("wandb_process.py")
INIT_SECONDS = 20.0  # to reach the server; after that the run is recorded offline
FINISH_SECONDS = 20.0  # to send the rest, when training has ended or its process is gone
MARGIN_SECONDS = 5.0  # that a finished run waits beyond that
TAG_LETTERS = 64  # W&B takes no longer tags
INTERRUPTED_SECONDS = 10.0  # that an interrupted run waits in all

Row = dict[str, float]


class Tracker:
    """Collects rows; sends each to W&B where that works."""

    def __init__(
        self,
        tracking: TrackingConfig,
        run: RunConfig,
        key: str,
        folder: Path,
    ) -> None:
        """Begin, or continue: the `key` of a run is its id, so that it is one W&B run.

        `folder` is W&B's own, in that of the study. W&B shows the seeds of an experiment's stage
        as a group.
        """
        self.rows: list[Row] = []
        self._mirror: _Mirror | None = None
        mode = _mode(tracking.wandb)
        if mode != "disabled":
            group = f"{run.experiment}/{run.stage}"
            tags = (folder.parent.name, run.stage, run.context.source, run.split, f"seed{run.seed}")
            asked = {
                "run": {  # arguments of `wandb.init`
                    "project": tracking.project,
                    "name": f"{group}/seed{run.seed}",
                    "id": key[:16],
                    "config": plain(run),
                    "group": group,
                    "tags": [tag[:TAG_LETTERS] for tag in tags if tag],
                },
                "mode": mode,
                "folder": str(folder),
                "init_seconds": INIT_SECONDS,
                "finish_seconds": FINISH_SECONDS,
            }
            try:
                self._mirror = _Mirror(asked)
            except OSError as error:
                log.warning("W&B: not started (%s); metrics.parquet has everything", error)

    @property
    def mirrors(self) -> bool:
        """Return whether W&B gets the records."""
        return self._mirror is not None

    def log(self, row: Row) -> None:
        """Record metrics of a step (`step` is among them); those of one step share a row."""
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1].update(row)
        else:
            self.rows.append(row)
        if self._mirror is not None:
            values = {k: v for k, v in row.items() if k != "step"}
            self._mirror.send({"step": int(row["step"]), "values": values})

    def table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Send a table to W&B; a cell that is a list of lists is a grid, shown as a picture."""
        if self._mirror is not None:
            content = {"columns": list(columns), "rows": [list(row) for row in rows]}
            self._mirror.send({"step": step, "table": name, "colours": ARC_COLOURS, **content})

    def write(self, path: Path) -> None:
        """Write `metrics.parquet`: a row per logged step, a column per metric, null where none."""
        write_table_atomic(path, metrics_table(self.rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the W&B run of a finished run."""
        if self._mirror is not None:
            self._mirror.send({"summary": dict(summary)})
            self.close(FINISH_SECONDS + MARGIN_SECONDS)

    def close(self, seconds: float = INTERRUPTED_SECONDS) -> None:
        """Wait up to `seconds` for W&B to take the rest, then leave it."""
        if self._mirror is not None:
            self._mirror.close(seconds)
        self._mirror = None


class _Mirror:
    """The process that runs W&B, and the two threads that write to it and read from it."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.folder = str(asked["folder"])
        self._warned = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(MIRROR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # a Ctrl-C on the terminal is for the run
        )
        self.send(asked)
        threads = [threading.Thread(target=f, daemon=True) for f in (self._write, self._read)]
        for thread in threads:
            thread.start()
        self._reader = threads[1]

    def send(self, content: Mapping[str, Any]) -> None:
        self._lines.put(json.dumps(content) + "\n")

    def close(self, seconds: float) -> None:
        self._lines.put(None)
        try:
            self._process.wait(seconds)
            self._reader.join(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._warn(f"did not take everything in {seconds:.0f} s")

    def _write(self) -> None:
        assert self._process.stdin is not None
        try:
            while (line := self._lines.get()) is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            self._process.stdin.close()
        except (OSError, ValueError):  # it has ended; the reader knows why
            return

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            self.folder = answer.get("folder", self.folder)
            if answer.get("problem"):
                self._warn(answer["problem"])

    def _warn(self, problem: str) -> None:
        """Warn once."""
        if not self._warned:
            self._warned = True
            log.warning(
                "W&B: %s; training goes on and metrics.parquet has everything. The records of W&B"
                " here can be sent later: etrm sync, or wandb sync %s",
                problem,
                self.folder,
            )


def metrics_table(rows: list[Row]) -> pa.Table:
    """Return rows as a table: `step` int64, every other name float64."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    columns = {"step": pa.array([int(row["step"]) for row in rows], pa.int64())}
    for name in names:
        columns[name] = pa.array([row.get(name) for row in rows], pa.float64())
    return pa.table(columns)


def _mode(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


def _netrc_key() -> bool:
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
