"""Predictions of a paper-size evaluation without its model: parts on disk, the vote, the score.

`python -m benchmarks.votes TASKS VARIANTS OUT`: tasks as JSON, variants of each, and a file for the
measurement; in a process of its own, whose peak memory is that of all this alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.rows import Row, new_row
from benchmarks.setups import Setting
from benchmarks.stage_tasks import process_peak
from etrm.arc.task import Task, task_from_json, task_to_json
from etrm.config.study import EvaluationConfig
from etrm.evaluation.decode import PREDICTIONS, LaneQuestions
from etrm.evaluation.metrics import means_by_step
from etrm.evaluation.parts import Parts
from etrm.evaluation.pass_at_k import score, submission
from etrm.evaluation.voting import voting_rows
from etrm.storage.files import write_json_atomic, write_table_atomic

ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS = EvaluationConfig().batch_size, 16
RIGHT, COMMON = 0.2, 0.6  # shares of predictions: the truth; it, or one of `WRONG` grids
WRONG = 40


def votes_rows(setting: Setting) -> Iterator[Row]:
    """`vote/paper`: all held-out tasks, in every variant, in three parts."""
    with tempfile.TemporaryDirectory() as folder:
        tasks, out = Path(folder, "tasks.json"), Path(folder, "cost.json")
        write_json_atomic(tasks, [task_to_json(task) for task in setting.mix.held_out])
        command = [sys.executable, "-m", "benchmarks.votes", str(tasks), str(setting.variants)]
        done = subprocess.run([*command, str(out)], cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        cost = json.loads(out.read_text(encoding="utf-8"))
    for part in ("stream", "vote", "write"):
        yield new_row(
            setting,
            case="vote/paper",
            part=part,
            seconds=cost[part],
            bytes=cost["bytes"],
            peak_memory_bytes=cost["peak"],
            batch_size=BATCH,
            tasks=f"{len(setting.mix.held_out)} held-out tasks, {setting.variants} variants",
            note=f"{cost['predictions']} predictions; peak: of the process, over all three parts",
        )


def measure(tasks: Sequence[Task], variants: int) -> dict[str, Any]:
    """Return the seconds of each part, the most memory, and the size of predictions.parquet."""
    asked = [(task, q) for task in tasks for q in range(len(task.queries))]
    rng = np.random.default_rng(0)
    rows = [(pair, v) for pair in range(len(asked)) for v in range(variants)]
    batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    questions: Any = [(None, batch, batch) for batch in batches]

    def predict(some: Sequence[LaneQuestions]) -> Iterator[pa.Table]:
        for _, batch, _ in some:
            yield synthetic(rng, [(*asked[pair], v) for pair, v in batch])

    cost: dict[str, Any] = {"predictions": len(rows)}
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        store = Parts(folder / "parts", {"etrm_evaluation": "synthetic"})
        table = store.complete(questions, predict, "synthetic")
        cost["stream"], start = time.perf_counter() - start, time.perf_counter()
        found = voting_rows(table)
        score(found, tasks, ks=EvaluationConfig().pass_k, variants=variants)
        means_by_step(table)
        submission(found, tasks)
        cost["vote"], start = time.perf_counter() - start, time.perf_counter()
        write_table_atomic(folder / "predictions.parquet", table)
        cost["write"] = time.perf_counter() - start
        cost["bytes"] = (folder / "predictions.parquet").stat().st_size
    return cost | {"peak": process_peak()}


def synthetic(rng: np.random.Generator, rows: Sequence[tuple[Task, int, int]]) -> pa.Table:
    """Return predictions (task, query, variant) of true grids, of common errors, and of others."""
    n, grids = len(rows), []
    for task, query, _ in rows:
        truth, kind = task.queries[query].output, rng.random()
        assert truth is not None, "found a task without its answer"
        common = rng.integers(WRONG) + 1  # the number of a wrong grid
        other = (truth + common) % 10 if kind < COMMON else rng.integers(0, 10, truth.shape)
        grids.append(truth if kind < RIGHT else np.roll(other, common, 1).astype(np.uint8))
    accuracy = rng.random((n, STEPS), dtype=np.float32)
    columns = {
        "task": [task.id for task, _, _ in rows],
        "query": [query for _, query, _ in rows],
        "variant": [variant for _, _, variant in rows],
        "height": [grid.shape[0] for grid in grids],
        "width": [grid.shape[1] for grid in grids],
        "grid": [grid.tobytes() for grid in grids],
        **{name: rng.random(n) for name in ("q_halt", "lm_loss", "q_halt_loss")},
        "steps": [STEPS] * n,
        **{name: rng.random(n) < RIGHT for name in ("correct", "q_halt_right")},
        "fits": [True] * n,
        "token_accuracy": accuracy[:, -1],
        "accuracy_by_step": accuracy.tolist(),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in PREDICTIONS]
    return pa.table(arrays, schema=PREDICTIONS)


if __name__ == "__main__":
    documents = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = measure([task_from_json(document) for document in documents], int(sys.argv[2]))
    write_json_atomic(Path(sys.argv[3]), found)
