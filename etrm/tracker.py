"""Where metrics go: rows for `metrics.parquet` (the record), and W&B (a mirror).

W&B is imported only here and only when asked for; whatever it does, training goes on.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from etrm.config.study import TrackingConfig
from etrm.data.files import write_table_atomic

log = logging.getLogger(__name__)

Row = dict[str, float]


class Tracker:
    """Collects rows; sends each to W&B where that works."""

    def __init__(
        self,
        tracking: TrackingConfig,
        name: str,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """`run_id` makes a resumed run continue as the same W&B run; `folder` is W&B's own."""
        self.rows: list[Row] = []
        self._wandb: Any = None
        mode = _mode(tracking.wandb)
        if mode != "disabled":
            self._start(tracking.project, mode, name, run_id, config, folder)

    def log(self, row: Row) -> None:
        """Record metrics of a step (`step` is among them); those of one step share a row."""
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1].update(row)
        else:
            self.rows.append(row)
        if self._wandb is not None:
            self._mirror(row)

    def write(self, path: Path) -> None:
        """`metrics.parquet`: one row per logged step, a column per metric, null where absent."""
        write_table_atomic(path, metrics_table(self.rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the W&B run."""
        if self._wandb is None:
            return
        try:
            self._wandb.summary.update(dict(summary))
            self._wandb.finish()
        except Exception as error:
            log.warning("W&B: could not finish (%s); metrics.parquet has everything", error)

    def _start(
        self,
        project: str,
        mode: str,
        name: str,
        run_id: str,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            self._wandb = wandb.init(
                project=project,
                name=name,
                id=run_id,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", init_timeout=60),
            )
        except Exception as error:
            log.warning("W&B: not started (%s); metrics.parquet has everything", error)

    def _mirror(self, row: Row) -> None:
        try:
            values = {k: v for k, v in row.items() if k != "step"}
            self._wandb.log(values, step=int(row["step"]))
        except Exception as error:
            log.warning("W&B: gave up at step %s (%s); training goes on", row["step"], error)
            self._wandb = None


def metrics_table(rows: list[Row]) -> pa.Table:
    """Rows as a table: `step` int64, every other name float64."""
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
