"""Made-up studies: records of runs as training writes them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from etrm.config.load import evaluation_settings, load_study, plain
from etrm.storage.digests import (
    code_digest,
    code_digests,
    evaluation_key,
    run_key,
    score_code,
    train_code,
)
from etrm.storage.files import file_digest
from etrm.storage.finished import RUN_FILES, SCORE_FILES, cache_result
from etrm.study.layout import Pipeline, Run

SMALL = {"width": 16, "heads": 2}
STRICT, ETRM = Run("strict", "pretrain", 0), Run("etrm", "overfit", 0)
FULL = Run("etrm", "full", 0)


def study(tmp_path: Path, **etrm: Any) -> Pipeline:
    """A strict TRM and an ETRM that starts from it, with tables that have some content."""
    document = {
        "study": "s",
        "results": str(tmp_path),
        "data": {"variants": 4},
        "defaults": {
            "model": SMALL,
            "context": {"source": "standard", **SMALL},
            "train": {"steps": 100, "batch_size": 8},
        },
        "experiments": {
            "strict": {"context": {"source": "embedding"}},
            "etrm": {"decoder": {"init": "strict"}, **etrm},
        },
    }
    pipeline = Pipeline(load_study(document))
    for path in (pipeline.tasks, pipeline.augmentations):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(path.stem)
    pipeline.state.mkdir(exist_ok=True)
    return pipeline


def trained(pipeline: Pipeline, run: Run, kept: bool = True, **changes: Any) -> Path:
    """A finished run of today's configuration; `changes` to its record."""
    folder, config = pipeline.folder(run), plain(pipeline.config_of(run))
    folder.mkdir(parents=True)
    for name in RUN_FILES:
        (folder / name).write_text(f"{name} of {run} with {config['train']['lr']}")
    parent, weights = pipeline.parent(run), None
    if parent is not None:
        weights = file_digest(pipeline.folder(parent) / "model.safetensors")
    code = train_code(config["context"]["source"])
    data = {p.stem: file_digest(p) for p in (pipeline.tasks, pipeline.augmentations)}
    record = {
        "experiment": run.experiment,
        "stage": run.stage,
        "seed": run.seed,
        "kind": "trm" if config["context"]["source"] == "embedding" else "etrm",
        "split": config["split"],
        "config": config,
        "data": data,
        "code": code_digests(*code),
        "code_digest": code_digest(*code),
        "init": None if weights is None else {"sha256": weights},
        "key": run_key(config, list(data.values()), weights, code_digest(*code)),
        "weights_sha256": file_digest(folder / "model.safetensors"),
        "device": "cpu, 2 threads",
        "ranks": 1,
        "steps_done": config["train"]["steps"],
        "seconds": 50.0,
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(record))
    if kept:
        store = pipeline.state / "finished" / run.experiment / run.stage / f"seed{run.seed}"
        cache_result(folder, RUN_FILES, store, record["key"])
    return folder


def scored(pipeline: Pipeline, run: Run, **changes: Any) -> Path:
    """A finished evaluation of a finished run."""
    record = json.loads((pipeline.folder(run) / "run.json").read_text())
    config = evaluation_settings(pipeline.study.experiments[run.experiment].evaluation)
    code, data = score_code(record["config"]["context"]["source"]), record["data"]
    paths = [Path(path) for path in pipeline.score_files(run)]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_text(path.name)
    score = {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        **{"held_out": {}, "pass": {}, "metrics": {}, "partial": False},
        "evaluation": config,
        "run_key": record["key"],
        "data": data,
        "code": code_digests(*code),
        "device": "cpu, 2 threads",
        "seconds": 20.0,
        "predictions": 100,
        **changes,
    }
    paths[1].write_text(json.dumps(score))
    weights, digests = record["weights_sha256"], list(data.values())
    key = evaluation_key(config, record["key"], weights, digests, code_digest(*code))
    store = pipeline.state / "finished" / run.experiment / "evaluation" / f"seed{run.seed}"
    cache_result(paths[0].parent, SCORE_FILES, store, key)
    return paths[0].parent


def judged(pipeline: Pipeline, exact: float, seed: int = 0) -> None:
    """A verdict on the ETRM's overfit run."""
    folder = pipeline.verdict("etrm", seed).parent
    record = json.loads((folder / "run.json").read_text())
    verdict = {
        "experiment": "etrm",
        "seed": seed,
        "run_key": record["key"],
        "exact_accuracy": exact,
        "threshold": 0.9,
        "passed": exact >= 0.9,
        "diagnosis": [],
    }
    pipeline.verdict("etrm", seed).write_text(json.dumps(verdict))


def rewrite(path: Path, **changes: Any) -> None:
    """Change a record."""
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )
