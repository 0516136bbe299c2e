"""One run of the stage `tasks` on one source, without PyTorch: its time and peak memory.

`python -m benchmarks.stage_tasks SOURCE OUT`: a source as JSON, and a file for the measurement.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etrm.config.data import DataConfig
from etrm.config.schema import parse
from etrm.config.sources import source_kinds
from etrm.data.prepare import prepare_tasks
from etrm.data.tables import read_tasks
from etrm.storage.files import write_json_atomic


@dataclass(frozen=True)
class Cost:
    """Time, memory and output of one run of the stage `tasks`."""

    tasks: int
    pairs: int
    seconds: float
    bytes: int  # of tasks.parquet
    peak_bytes: int  # of the process, some 70 MB of them the interpreter with its libraries


def measure(source: Mapping[str, Any]) -> Cost:
    """Run the stage with `source` as the only one."""
    one = parse(source_kinds()[source["kind"]](), source)
    data = DataConfig(sources={"one": one}, training=("one",), evaluation=())
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder, "tasks.parquet"), time.perf_counter()
        prepare_tasks(data, out)
        seconds, peak = time.perf_counter() - start, process_peak()
        tasks = [record.task for record in read_tasks(out)]
        pairs = sum(len(task.demos) + len(task.queries) for task in tasks)
        return Cost(len(tasks), pairs, seconds, out.stat().st_size, peak)


def process_peak() -> int:
    """Return the high-water mark of this process in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    write_json_atomic(Path(sys.argv[2]), asdict(measure(json.loads(sys.argv[1]))))
