"""The evaluation of one run on held-out tasks: predictions, scores, submission."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from etrm.arc.task import Task
from etrm.checkpoint import load_weights
from etrm.config import parse, plain
from etrm.config.study import EvaluationConfig, RunConfig
from etrm.context import context_source
from etrm.data.corpus import Corpus, CorpusError
from etrm.data.episodes import held_out_questions, on_lanes
from etrm.data.files import write_json_atomic, write_table_atomic
from etrm.data.tables import read_augmentations, read_tasks
from etrm.evaluate import all_variants, predict
from etrm.keep import SCORE_FILES, keep, take_back
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, compile_blocks, compiles, device_name
from etrm.provenance import (
    code_digest,
    code_digests,
    digest,
    evaluation_key,
    file_digest,
    score_code,
    touched,
)
from etrm.vote import score, submission

log = logging.getLogger(__name__)


def evaluate_run(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
) -> dict[str, Any]:
    """Write `predictions.parquet`, `score.json` and `submission.json`; returns the score.

    A table of embeddings is asked about the puzzles that it was trained on (their test outputs
    were hidden then); an encoder about any task. Finished evaluations are kept in `state`: the same
    one, asked for again, is taken back from there. `compile`: as in `execution`.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    record = json.loads((run_folder / "run.json").read_text())
    tables = tasks_path, augmentations_path
    code = score_code(record["config"]["context"]["source"])
    made_with = {
        "evaluation": plain(config),
        "run_key": record["key"],
        "data": {path.stem: file_digest(path) for path in tables},
        "code": code_digests(*code),
    }
    if state is None:
        return _evaluate(run_folder, record, tables, config, made_with, out, target, compile)
    key = evaluation_key(
        plain(config),
        record["key"],
        file_digest(run_folder / "model.safetensors"),
        list(made_with["data"].values()),
        code_digest(*code),
    )
    store = state / "finished" / record["experiment"] / f"evaluation/seed{record['seed']}"
    if take_back(out, SCORE_FILES, store, key):
        log.info("the same evaluation was finished before: taken back from %s", store)
        kept: dict[str, Any] = json.loads((out / "score.json").read_text(encoding="utf-8"))
        return kept
    result = _evaluate(run_folder, record, tables, config, made_with, out, target, compile)
    try:
        keep(out, SCORE_FILES, store, key)
    except OSError as error:
        log.warning("%s is complete, but could not be kept in %s as well (%s)", out, store, error)
    return result


def _evaluate(
    run_folder: Path,
    record: Mapping[str, Any],
    tables: tuple[Path, Path],
    config: EvaluationConfig,
    made_with: Mapping[str, Any],
    out: Path,
    device: torch.device,
    compile: str,
) -> dict[str, Any]:
    began = time.perf_counter()
    run: RunConfig = parse(RunConfig, record["config"])
    tasks = held_out_tasks(tables[0])
    asked = tasks if config.tasks is None else _subset(tasks, config.tasks)
    corpus = _corpus(run_folder, record, run, asked, tables, config, device)
    wanted = {task.id for task in asked}
    questions = [q for q in held_out_questions(corpus) if corpus.tasks[q.task].id in wanted]
    episodes = on_lanes(corpus, questions, run.episodes.canvas, run.episodes.max_demos)
    model = build_model(run, corpus.num_puzzles if record["kind"] == "trm" else 1).to(device)
    model.load_state_dict(load_weights(run_folder / "model.safetensors", config.weights))
    if compiles(compile, device):
        compile_blocks(model)
    dtype = DTYPES[run.train.dtype]
    lanes = all_variants(corpus, episodes, config.variants)
    table = predict(model, corpus, lanes, run.halting, config, dtype)
    predictions = table.to_pandas()
    result = {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        "held_out": held_out_status(record, tasks),
        **made_with,
        "tasks_of_split": len(tasks),
        **score(
            predictions,
            tasks,
            ks=list(config.pass_k),
            bootstrap_samples=config.bootstrap,
            seed=config.seed,
            variants=config.variants,
        ),
    }
    result |= {"device": device_name(device), "seconds": round(time.perf_counter() - began, 1)}
    out.mkdir(parents=True, exist_ok=True)
    write_table_atomic(out / "predictions.parquet", table)
    write_json_atomic(out / "submission.json", submission(predictions, tasks))
    write_json_atomic(out / "score.json", result)
    log.info("pass@1 %s", result["pass"][str(config.pass_k[0])]["task_fraction"])
    return result


def _corpus(
    run_folder: Path,
    record: Mapping[str, Any],
    run: RunConfig,
    asked: Sequence[Task],
    tables: tuple[Path, Path],
    config: EvaluationConfig,
    device: torch.device,
) -> Corpus:
    """The tasks asked about, or all that a table of embeddings was trained on."""
    tasks_path, augmentations_path = tables
    variants = read_augmentations(augmentations_path)
    if context_source(run.context.source).needs_demos:
        return Corpus(asked, variants, device, limit=config.variants)
    by_id = {r.task.id: r.task for r in read_tasks(tasks_path)}
    known = [by_id[name] for name in record["tasks"]]
    corpus = Corpus(known, variants, device, limit=run.train.variants)
    if corpus.recipes_digest() != record["recipes_digest"]:
        raise CorpusError(
            f"{augmentations_path}: found other augmented puzzles than those that"
            f" {run_folder} has embeddings of, expected the same table; train it again"
        )
    return corpus


def held_out_tasks(tasks_path: Path) -> list[Task]:
    """The evaluation tasks of a study, in order."""
    return [r.task for r in read_tasks(tasks_path) if r.split == "evaluation"]


def _subset(tasks: Sequence[Task], count: int) -> list[Task]:
    order = sorted(tasks, key=lambda task: digest(["subset", task.id]))
    chosen = {task.id for task in order[:count]}
    return [task for task in tasks if task.id in chosen]


def held_out_status(record: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Any]:
    """Has any weight of a run (its run.json) been touched by a held-out task, by id or content?

    `status`: `proven` (none seen, all ancestors known), `not proven` (none seen, but an ancestor
    of unknown origin), `seen`.
    """
    seen = touched(record["seen_tasks"], tasks)
    status = "seen" if seen else "not proven" if record["unproven"] else "proven"
    return {"status": status, "seen": len(seen), "of": len(tasks), "unproven": record["unproven"]}
