"""The stage `refine`: refinement of the answers of a finished run, its table and its scores.

`refine_run` reads, logs and writes; the functions that it calls compute.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from etrm.config.load import plain
from etrm.config.refinement import RefinementConfig
from etrm.config.study import EvaluationConfig, RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import batches, read_grids
from etrm.evaluation.parts import cache_finished
from etrm.evaluation.run import (
    Evaluation,
    Questions,
    choose_questions,
    held_out_claim,
    identify_evaluation,
    prepare_model,
)
from etrm.models.act import Model
from etrm.models.compute import DTYPES, device_name, pick_device
from etrm.models.flops import GIGA
from etrm.models.memory import MARGIN, activation_budget, kept_bytes
from etrm.refinement.costs import Costs
from etrm.refinement.others import fine_tune, more_act_steps
from etrm.refinement.scores import score_methods
from etrm.refinement.search import Refined, refine
from etrm.runtime.environment import environment
from etrm.runtime.progress import Progress
from etrm.storage.files import write_json_atomic, write_table_atomic
from etrm.storage.records import read_refinement
from etrm.storage.result_cache import REFINEMENT_FILES, restore_result

log = logging.getLogger(__name__)

COLUMNS = {
    "method": (pa.string(), "search, random, act_steps or fine_tuning"),
    "steps": (pa.int32(), "steps of it; 0: no refinement"),
    "attempt": (pa.int32(), "1 or 2"),
    "task": (pa.string(), "task id"),
    "query": (pa.int32(), "test input of the task, from 0"),
    "variant": (pa.int32(), "augmentation, 0 is the identity"),
    "height": (pa.uint8(), "rows of the predicted grid"),
    "width": (pa.uint8(), "columns of the predicted grid"),
    "grid": (pa.binary(), "its colours row by row, augmentation undone"),
    "q_halt": (pa.float32(), "halting logit"),
    "likelihood": (pa.float64(), "log-likelihood of the demos (leave-one-out), mean over cells"),
    "likelihood_start": (pa.float64(), "the same of the first attempt without a step"),
    "demos_solved": (pa.float32(), "share of demos answered exactly (leave-one-out)"),
    "correct": (pa.bool_(), "equals the true output"),
}
SCHEMA = pa.schema([pa.field(n, k, metadata={"doc": doc}) for n, (k, doc) in COLUMNS.items()])
ORDER = [(name, "ascending") for name in ("method", "steps", "task", "query", "variant", "attempt")]

Spent = dict[str, dict[int, dict[str, float]]]  # seconds and GFLOP by method and number of steps


def refine_run(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: RefinementConfig,
    out: Path,
    device: str | None = None,
    state: Path | None = None,
) -> dict[str, Any]:
    """Write `refinement.parquet` and `refinement.json`, and return the latter.

    Finished ones are cached in `state`, and restored from there. Raises `DamagedFileError` where
    the record of the run is damaged or its weights are others.
    """
    began = time.perf_counter()
    asked = EvaluationConfig(config.variants, config.tasks, weights=config.weights)
    tables = tasks_path, augmentations_path
    evaluation = identify_evaluation(run_folder, tables, asked, "refinement", plain(config))
    store = None if state is None else evaluation.store(state)
    if store is not None and restore_result(out, REFINEMENT_FILES, store, evaluation.key):
        log.info("the same refinement was finished before: restored from %s", store)
        return read_refinement(out / "refinement.json")
    target = pick_device(device)
    questions = choose_questions(evaluation, target)
    table, spent = SCHEMA.empty_table(), Spent()
    if evaluation.diverged:
        log.warning("%s has diverged: there is nothing to refine", run_folder)
    else:
        model = prepare_model(evaluation, questions.corpus)
        given = model, questions, evaluation.run, config
        table, spent = refine_questions(*given, name=str(run_folder))
    result = _record(evaluation, questions) | {
        "methods": score_methods(table.to_pandas(), questions.tasks, spent),
        "device": device_name(target),
        "seconds": round(time.perf_counter() - began, 3),
        "environment": environment(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_table_atomic(out / "refinement.parquet", table)
    write_json_atomic(out / "refinement.json", result)
    cache_finished(out, REFINEMENT_FILES, store, evaluation.key)
    return result


def _record(evaluation: Evaluation, questions: Questions) -> dict[str, Any]:
    record = evaluation.record
    return {
        **{key: record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        "held_out": held_out_claim(record, questions.tasks),
        **evaluation.provenance,
        "tasks_of_split": questions.of_split,
        "tasks_asked": len(questions.tasks),
    }


def refine_questions(
    model: Model, questions: Questions, run: RunConfig, config: RefinementConfig, name: str = ""
) -> tuple[pa.Table, Spent]:
    """Return `refinement.parquet` of all questions by all methods, and the cost of these.

    `name`: whose they are, in its progress; without one, none is shown.
    """
    rows: dict[str, list[object]] = {name: [] for name in COLUMNS}
    spent: Spent = defaultdict(lambda: defaultdict(lambda: {"seconds": 0.0, "gflop": 0.0}))
    corpus, done, item = questions.corpus, 0, DTYPES[run.train.dtype].itemsize
    total = sum(len(index) for _, index, _ in questions.lanes)
    with Progress(name, total, bool(name), True, "question") as progress:
        for lane in questions.lanes:
            fitting = activation_budget(corpus.device) / (MARGIN * kept_bytes(model, lane[0], item))
            size = int(min(config.batch_size, fitting)) // (config.starts * lane[0].most) or 1
            for episodes, index, variant, batch in batches(corpus, [lane], size):
                costs = Costs.of(model, batch, run.halting, config)
                for method, found in refine_batch(model, batch, run, config).items():
                    for steps, seconds in found.seconds.items():
                        spent[method][steps]["seconds"] += seconds
                        spent[method][steps]["gflop"] += costs.total(method, steps) / GIGA
                    _add_rows(rows, method, found, corpus, episodes, index, variant, batch)
                done += len(index)
                progress.pace(done)
    return pa.table(rows, schema=SCHEMA).sort_by(ORDER), spent


def refine_batch(
    model: Model, batch: Batch, run: RunConfig, config: RefinementConfig
) -> dict[str, Refined]:
    """Return the results of all methods on one batch, by name."""
    given = model, batch, run.halting, config, DTYPES[run.train.dtype]
    found = {}
    for method in sorted(config.methods, key=lambda name: name == "random"):  # after the search
        if method == "search":
            found[method] = refine(*given)
        elif method == "random":
            found[method] = refine(*given, lengths=found["search"].lengths)
        elif method == "act_steps":
            found[method] = more_act_steps(*given)
        else:
            found[method] = fine_tune(*given)
    return found


def _add_rows(
    rows: dict[str, list[object]],
    method: str,
    found: Refined,
    corpus: Corpus,
    episodes: Episodes,
    index: torch.Tensor,
    variant: torch.Tensor,
    batch: Batch,
) -> None:
    start = found.attempts[0].likelihood[0].tolist()
    task, query = batch.task.tolist(), episodes.query[index].tolist()
    for steps, attempts in found.attempts.items():
        for number, tokens in enumerate(attempts.tokens):
            for i, grid in enumerate(read_grids(corpus, batch, tokens)):
                truth = corpus.pairs[query[i]].output
                rows["task"].append(corpus.tasks[task[i]].id)
                rows["query"].append(query[i] - corpus.query_pairs[task[i]].start)
                rows["height"].append(grid.shape[0])
                rows["width"].append(grid.shape[1])
                rows["grid"].append(np.ascontiguousarray(grid, dtype=np.uint8).tobytes())
                rows["correct"].append(None if truth is None else np.array_equal(grid, truth))
            count = len(batch)
            rows["method"] += [method] * count
            rows["steps"] += [steps] * count
            rows["attempt"] += [number + 1] * count
            rows["variant"] += variant.tolist()
            rows["likelihood_start"] += start
            for name, values in (
                ("q_halt", attempts.q_halt),
                ("likelihood", attempts.likelihood),
                ("demos_solved", attempts.solved),
            ):
                rows[name] += values[number].tolist()
