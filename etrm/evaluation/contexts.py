"""The contexts of tasks as a finished run gives them: `contexts.parquet`, and features for others.

T tasks, F features of a context: its tokens one after the other, or their mean where their number
varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from etrm.arc.augment import draw_variants
from etrm.arc.task import Task
from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.data.tables import TaskRecord, read_augmentations, read_tasks
from etrm.evaluation.decode import all_variants, batches
from etrm.models.act import Model
from etrm.storage.digests import digest

MOST = 1000  # tasks in the file: the held-out ones, then as many others, the same for every run
BATCH = 256  # tasks encoded at once

COLUMNS = {
    "task": (pa.string(), "task id"),
    "source": (pa.string(), "name of its source"),
    "split": (pa.string(), "training, validation or evaluation"),
    "rule": (pa.string(), "the name of its rule, where it is known"),
    "context": (
        pa.list_(pa.float32()),
        "of the task unchanged, from all of its demos, at the last ACT step: the tokens one after"
        " the other, or their mean where their number varies; of TRM the embedding of the task",
    ),
}
CONTEXTS = pa.schema(
    [pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in COLUMNS.items()]
)


def choose_records(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return at most `MOST` records: held-out ones first, then a fixed draw, in their old order."""
    order = sorted(
        range(len(records)),
        key=lambda i: (records[i].split != "evaluation", digest(["contexts", records[i].task.id])),
    )
    return [records[i] for i in sorted(order[:MOST])]


def context_table(records: Sequence[TaskRecord], features: np.ndarray) -> pa.Table:
    """Return `contexts.parquet`: a row for each record, with its row of `features` [T, F]."""
    tasks = [record.task for record in records]
    rows = {
        "task": [task.id for task in tasks],
        "source": [record.source for record in records],
        "split": [record.split for record in records],
        "rule": [task.rule.name if task.rule else None for task in tasks],
        "context": list(features.astype(np.float32)),
    }
    return pa.table(rows, schema=CONTEXTS)


@torch.no_grad()
def encode_tasks(model: Model, run: RunConfig, tasks: Sequence[Task]) -> np.ndarray:
    """Return the contexts [T, F] float64 of tasks as they are, at the last ACT step."""
    device = next(model.parameters()).device
    corpus = Corpus(tasks, {task.id: draw_variants(task, 1, seed=0) for task in tasks}, device)
    of_task = {question.task: question for question in held_out_questions(corpus)}
    config = run.episodes
    lanes = group_by_lane(corpus, list(of_task.values()), config.canvas, config.max_demos)
    model.eval()
    found: dict[int, np.ndarray] = {}
    for _, _, _, batch in batches(corpus, all_variants(corpus, lanes), BATCH):
        state = model.context.initial_state(len(batch))
        for _ in range(1 if state is None else run.halting.max_steps):
            encoded = model.context(batch, state)
            state = encoded.state
        rows = encoded.summary().flatten(1).double().cpu().numpy()
        found |= dict(zip(batch.task.tolist(), rows, strict=True))
    return np.stack([found[number] for number in range(len(tasks))])


def contexts_of(
    model: Model, run: RunConfig, seen: Sequence[str], tasks: Path, augmentations: Path
) -> pa.Table:
    """Return `contexts.parquet` of the model of a run: an encoder's contexts of its sources' tasks.

    Of TRM, its embeddings of the tasks that it has `seen`, by id, in the order of its table. The
    tables are tasks.parquet and augmentations.parquet.
    """
    records = read_tasks(tasks, run.sources)
    if context_source(run.context.source).needs_demos:
        records = choose_records(records)
        return context_table(records, encode_tasks(model, run, [r.task for r in records]))
    by_id, variants = {r.task.id: r for r in records}, read_augmentations(augmentations)
    counts = [min(len(variants[name]), run.train.variants or len(variants[name])) for name in seen]
    first = np.cumsum([0, *counts[:-1]])  # the unchanged puzzle is the first of a task
    table = model.state_dict()["context.weights"].double().cpu().numpy()  # [puzzles, D]
    rows = dict(zip(seen, first, strict=True))
    records = choose_records([by_id[name] for name in seen])
    return context_table(records, table[[rows[r.task.id] for r in records]])
