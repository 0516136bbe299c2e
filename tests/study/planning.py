"""Synthetic studies: files and records as training and evaluation write them, without either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from etrm.arc.augment import draw_variants
from etrm.arc.task import Pair, Task
from etrm.config.load import evaluation_settings, load_study, plain
from etrm.data.tables import TaskRecord, write_augmentations, write_tasks
from etrm.storage.digests import (
    code_digest,
    code_digests,
    evaluation_key,
    run_key,
    score_code,
    train_code,
)
from etrm.storage.files import file_digest, table_digest
from etrm.storage.result_cache import RESULT_FILES, RUN_FILES, cache_result
from etrm.study.layout import Layout, Run

SMALL = {"width": 16, "heads": 2}
STRICT, ETRM = Run("strict", "pretrain", 0), Run("etrm", "overfit", 0)
FULL = Run("etrm", "full", 0)
STEPS = 100


def document(results: Path | str, **etrm: Any) -> dict[str, Any]:
    """A strict TRM, and an ETRM that starts from it."""
    return {
        "study": "s",
        "results": str(results),
        "data": {"variants": 4},
        "defaults": {
            "model": SMALL,
            "context": {"source": "standard", **SMALL},
            "train": {"steps": STEPS, "batch_size": 8},
        },
        "experiments": {
            "strict": {"context": {"source": "embedding"}},
            "etrm": {"decoder": {"init": "strict"}, **etrm},
        },
        "tracking": {"wandb": "disabled"},
    }


def study(results: Path, **etrm: Any) -> Layout:
    """The layout of that study, with its tables."""
    return with_tables(Layout(load_study(document(results, **etrm))))


def with_tables(layout: Layout) -> Layout:
    if not layout.tasks.exists():
        pair = Pair(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
        task = Task("t", (pair,), (pair,))
        write_tasks(layout.tasks, [TaskRecord(task, "ours", "evaluation")])
        write_augmentations(layout.augmentations, {"t": draw_variants(task, 1, 0)})
        layout.state.mkdir(parents=True)
    return layout


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_valid(path: Path, content: str) -> None:
    """A file that can be read, of any content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"raw.w": torch.zeros(1)}, path, {"of": content})
    elif path.suffix == ".parquet":
        columns = ["step", "task", "query", "variant", "height", "width", "grid", "q_halt"]
        columns += ["split", "rule", "context", "method", "steps", "attempt", "likelihood"]
        table = pa.table({name: [0] for name in columns})
        pq.write_table(table.replace_schema_metadata({"of": content}), path)
    else:
        write(path, json.dumps({"of": content}))


def trained(layout: Layout, run: Run, cached: bool = True, **changes: Any) -> Path:
    """A finished run of the current configuration; `changes` to its record."""
    folder, config = layout.folder(run), plain(layout.config_of(run))
    for name in RUN_FILES:
        write_valid(folder / name, f"{run} with {config['train']['lr']}")
    parent, weights = layout.parent(run), None
    if parent is not None:
        weights = file_digest(layout.folder(parent) / "model.safetensors")
    code = train_code(config["context"]["source"])
    data = {p.stem: table_digest(p) for p in (layout.tasks, layout.augmentations)}
    record = {
        **{"experiment": run.experiment, "stage": run.stage, "seed": run.seed},
        **{"kind": "trm" if run == STRICT else "etrm", "split": config["split"]},
        **{"config": config, "data": data},
        **{"code": code_digests(*code), "code_digest": code_digest(*code)},
        "init": None if weights is None else {"sha256": weights},
        "key": run_key(config, list(data.values()), weights, code_digest(*code)),
        "weights_sha256": file_digest(folder / "model.safetensors"),
        **{"device": "cpu, 2 threads", "ranks": 1, "seconds": 50.0},
        "steps_done": config["train"]["steps"],
        **changes,
    }
    write(folder / "run.json", json.dumps(record))
    if cached:
        cache_result(folder, RUN_FILES, layout.cache(run, run.stage), record["key"])
    return folder


def scored(
    layout: Layout, run: Run, cached: bool = True, stage: str = "evaluation", **changes: Any
) -> Path:
    """A finished evaluation of a finished run, or its `refinement`."""
    record = json.loads((layout.folder(run) / "run.json").read_text())
    experiment = layout.study.experiments[run.experiment]
    config = plain(experiment.refinement)
    if stage == "evaluation":
        config = evaluation_settings(experiment.evaluation)
    code, data = score_code(record["config"]["context"]["source"], stage), record["data"]
    for path in layout.score_files(run, stage):
        write_valid(Path(path), str(run))
    score = {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split", "device")},
        **{"held_out": {}, "pass": {}, "metrics": {}, "partial": False, "predictions": 100},
        **{stage: config, "run_key": record["key"], "data": data, "seconds": 20.0},
        **{"methods": {}, "tasks_asked": 1, "weights_sha256": record["weights_sha256"]},
        "code": code_digests(*code),
        **changes,
    }
    write(layout.score(run, stage), json.dumps(score))
    weights, digests = record["weights_sha256"], list(data.values())
    key = evaluation_key(config, record["key"], weights, digests, code_digest(*code), stage)
    folder = layout.score(run, stage).parent
    if cached:
        cache_result(folder, RESULT_FILES[stage], layout.cache(run, stage), key)
    return folder


def made(layout: Layout, cached: bool = True) -> Layout:
    """All runs and the evaluation of the study, finished."""
    for run in (STRICT, ETRM, FULL):
        trained(layout, run, cached)
    scored(layout, FULL, cached)
    return layout


def verdict(exact: float = 0.95, *diagnosis: tuple[str, str], **changes: Any) -> dict[str, Any]:
    """A verdict on the ETRM's overfit run."""
    passed = exact >= 0.9 and all(severity != "fail" for _, severity in diagnosis)
    return {
        **{"experiment": "etrm", "seed": 0, "run_key": "k", "exact_accuracy": exact},
        **{"threshold": 0.9, "passed": passed},
        "diagnosis": [{"finding": name, "severity": severity} for name, severity in diagnosis],
        **changes,
    }


def judged(layout: Layout, exact: float) -> None:
    """A verdict on the overfit run that is there."""
    path = layout.verdict("etrm", 0)
    record = json.loads((path.parent / "run.json").read_text())
    write(path, json.dumps(verdict(exact, run_key=record["key"])))


def rewrite(path: Path, *drop: str, **changes: Any) -> None:
    """Change a record, but not the one in the cache, which is another link to it."""
    record = json.loads(path.read_text(encoding="utf-8")) | changes
    path.unlink()
    write(path, json.dumps({key: value for key, value in record.items() if key not in drop}))
