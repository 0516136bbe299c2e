"""The trainer of a run before its first step, from tables, configuration and first weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from etrm.arc.task import Pair, Task
from etrm.config.execution import ExecutionConfig
from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import (
    demo_numbers,
    group_by_lane,
    held_out_questions,
    training_questions,
)
from etrm.data.tables import TaskRecord, read_augmentations, read_tasks
from etrm.errors import UserError
from etrm.evaluation.decode import LaneQuestions, all_variants
from etrm.models.build import build_model
from etrm.runtime.distributed import Ranks
from etrm.storage.digests import digest
from etrm.training.initial_weights import Parent, load_initial_weights
from etrm.training.renewal import Renewal, make_renewal, without_bounds
from etrm.training.trainer import Trainer

log = logging.getLogger(__name__)


def build_trainer(
    run: RunConfig,
    tables: tuple[Path, Path],
    parent: Parent | None,
    ranks: Ranks,
    execution: ExecutionConfig,
) -> tuple[Trainer, dict[str, Any] | None]:
    """Return the trainer before its first step, and the report of its parent's weights.

    `tables`: tasks.parquet and augmentations.parquet.
    """
    corpus, episodes, renewal = training_data(run, *tables, ranks.device)
    model = build_model(run, corpus.num_puzzles).to(ranks.device)
    report = None
    if parent is not None:
        report = load_initial_weights(model.decoder, parent, run)
    validation = validation_data(run, *tables, parent, ranks.device)
    trainer = Trainer(run, model, corpus, episodes, ranks, execution, None, validation, renewal)
    return trainer, report


def training_data(
    run: RunConfig, tasks: Path, augmentations: Path, device: torch.device
) -> tuple[Corpus, list[Episodes], Renewal | None]:
    """Return the corpus of a run, its questions by lane, and where new tasks come from.

    It is all that the run trains on, but for new tasks.

    Every run leaves out training tasks that hold a test pair of a held-out task, a strict run those
    as well that overlap one in another way. Test outputs of held-out tasks are removed before
    anything else sees them. Validation tasks are left out of every run but a transductive one
    without an encoder, TRM's protocol: it trains on all tasks, and no validation could be asked.
    """
    needs_demos = context_source(run.context.source).needs_demos
    records, held_out = training_tasks(run, read_tasks(tasks, run.sources))
    numbers = demo_numbers(run.episodes, [r.task for r in held_out])
    # From here on, nothing has seen an answer of a held-out task.
    used = visible_tasks(records)
    if not used:
        named = ", ".join(run.sources or ()) or "the study"
        raise UserError(
            f"{run.experiment}: found no task to train on from {named}, expected one at least: a"
            " split, data.max_side or an overlap with held-out tasks leaves out all of them"
        )
    corpus = Corpus(used, read_augmentations(augmentations), device, limit=run.train.variants)
    hidden, canvas = [r.task.id for r in held_out], run.episodes.canvas
    questions = training_questions(corpus, hidden, run.episodes, needs_demos)
    # A lane must hold the answer too, where the loss needs it.
    episodes = group_by_lane(corpus, questions, canvas, see_answers=True, numbers=numbers)
    renewal = make_renewal(run, tasks, records, held_out, numbers, device)
    if renewal is not None:
        episodes = [without_bounds(each) for each in episodes]
    return corpus, episodes, renewal


def training_tasks(
    run: RunConfig, records: Sequence[TaskRecord]
) -> tuple[list[TaskRecord], list[TaskRecord]]:
    """Return the tasks that a run trains on, see `training_data`, and those that are held out."""
    records = [r for r in records if r.answer_of is None]  # of no held-out test pair
    held_out = [r for r in records if r.split == "evaluation"]
    if run.split == "strict":
        records = [r for r in records if r.split == "training" and r.duplicate_of is None]
    elif context_source(run.context.source).needs_demos:
        records = [r for r in records if r.split != "validation"]
    if run.train.tasks is not None:  # the same subset for every seed, nested by size
        order = sorted((r.task.id for r in records), key=lambda name: digest(["subset", name]))
        chosen = set(order[: run.train.tasks])
        records = [r for r in records if r.task.id in chosen]
    return records, held_out


def validation_data(
    run: RunConfig, tasks: Path, augmentations: Path, parent: Parent | None, device: torch.device
) -> tuple[Corpus, list[LaneQuestions]] | None:
    """Return a corpus of the validation tasks alone, and their test inputs in every variant.

    None for a run that is not validated: one of another stage than `full` (a table of embeddings
    has no row for a new task), and one whose first weights may have seen a validation task.
    """
    held_out = [r.task for r in read_tasks(tasks, run.sources) if r.split == "validation"]
    if run.stage != "full" or not held_out:
        return None
    if parent is not None and parent.may_have_seen(held_out):
        log.warning(
            "%s: there is no validation, because %s may have seen validation tasks",
            *(run.experiment, parent.name),
        )
        return None
    corpus = Corpus(held_out, read_augmentations(augmentations), device, limit=run.train.variants)
    questions, canvas = held_out_questions(corpus), run.episodes.canvas
    return corpus, all_variants(
        corpus, group_by_lane(corpus, questions, canvas, run.episodes.max_demos)
    )


def visible_tasks(records: Sequence[TaskRecord]) -> list[Task]:
    """Return the tasks, those that are held out without their answers."""
    return [hide_answers(r.task) if r.split == "evaluation" else r.task for r in records]


def hide_answers(task: Task) -> Task:
    """Return the task without the outputs of its test pairs."""
    return replace(task, queries=tuple(Pair(q.input, None) for q in task.queries))
