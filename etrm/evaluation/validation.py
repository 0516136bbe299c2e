"""The validation of one run: its answers to validation tasks, by which selections choose.

Validation tasks are of the training sources, and no encoder trains on them: a choice among
experiments by them looks at no held-out task.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from etrm.arc.task import Task
from etrm.config.load import validation_settings
from etrm.config.study import EvaluationConfig
from etrm.data.corpus import Corpus
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.data.seen_tasks import find_touched
from etrm.data.tables import read_augmentations, read_tasks
from etrm.errors import UserError
from etrm.evaluation.decode import all_variants, in_batches
from etrm.evaluation.parts import cache_finished, parts_of
from etrm.evaluation.run import Evaluation, Questions, decode_questions, identify_evaluation
from etrm.models.compute import device_name, pick_device
from etrm.runtime.environment import environment
from etrm.storage.files import write_json_atomic
from etrm.storage.records import read_validation
from etrm.storage.result_cache import VALIDATION_FILES, restore_result

log = logging.getLogger(__name__)


def validate_run(
    run_folder: Path,
    tasks_path: Path,
    augmentations_path: Path,
    config: EvaluationConfig,
    out: Path,
    device: str | None = None,
    state: Path | None = None,
    compile: str = "auto",
) -> dict[str, Any]:
    """Write `validation.json` of a finished full run to the folder `out`, and return it.

    `tasks`: of each validation task the share of right answers to its test inputs in all variants;
    `exact`: their mean, null where a weight of the run has touched one of them (`seen`). All are 0
    for a run that diverged. Finished validations are cached in `state`, and restored from there.

    Raises `UserError` without validation tasks, else as `etrm.evaluation.run.evaluate_run`.
    """
    began = time.perf_counter()
    settings = validation_settings(config)
    tables = tasks_path, augmentations_path
    evaluation = identify_evaluation(run_folder, tables, config, "validation", settings)
    store = None if state is None else evaluation.store(state)
    if store is not None and restore_result(out, VALIDATION_FILES, store, evaluation.key):
        log.info("the same validation was finished before: restored from %s", store)
        return read_validation(out / "validation.json")
    target = pick_device(device)
    questions = validation_questions(evaluation, target)
    if not questions.tasks:
        raise UserError(
            f"{tasks_path}: found no validation task of {evaluation.run.experiment}, expected one"
            " at least: raise data.validation_tasks"
        )
    seen = find_touched(evaluation.record["seen_tasks"], questions.tasks)
    batches = in_batches(questions.lanes, config.batch_size)
    parts = parts_of(store, evaluation.key)
    found = shares(
        decode_questions(evaluation, questions, batches, compile, parts), questions.tasks
    )
    result = {
        **{key: evaluation.record[key] for key in ("experiment", "stage", "seed", "kind", "split")},
        **evaluation.provenance,
        "tasks": found,
        "exact": None if seen else sum(found.values()) / len(found),
        "seen": sorted(seen),
        "device": device_name(target),
        "seconds": round(time.perf_counter() - began, 3),
        "environment": environment(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out / "validation.json", result)
    cache_finished(out, VALIDATION_FILES, store, evaluation.key)
    return result


def validation_questions(evaluation: Evaluation, device: torch.device) -> Questions:
    """Return the questions: every test input of the run's validation tasks, in every variant."""
    run, config = evaluation.run, evaluation.config
    records = read_tasks(evaluation.tables[0], run.sources)
    tasks = [record.task for record in records if record.split == "validation"]
    variants = read_augmentations(evaluation.tables[1])
    corpus = Corpus(tasks, variants, device, limit=config.variants)
    asked = held_out_questions(corpus)
    episodes = group_by_lane(corpus, asked, run.episodes.canvas, run.episodes.max_demos)
    return Questions(tasks, len(tasks), corpus, all_variants(corpus, episodes, config.variants))


def shares(predictions: pa.Table, tasks: list[Task]) -> dict[str, float]:
    """Return the share of right answers of each task, by its id; 0 for one without an answer."""
    right = predictions.select(["task", "correct"]).to_pandas().groupby("task")["correct"].mean()
    return {task.id: float(right.get(task.id, 0.0)) for task in tasks}
