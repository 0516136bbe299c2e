"""The contexts of tasks as a finished run gives them: `contexts.parquet`, and features for others.

T tasks, F features of a context: its tokens one after the other, or their mean where their number
varies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from etrm.arc.augment import Variants, draw_variants
from etrm.arc.task import Task
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.data.tables import TaskRecord
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


def embedded_tasks(
    model: Model, known: Sequence[Task], variants: Mapping[str, Variants], limit: int | None
) -> dict[str, np.ndarray]:
    """Return the embedding [D] of each task that a table of puzzles was trained on, unchanged.

    `known`, with the first `limit` of their variants each, are the rows of the table in order; a
    task's first variant is the identity.
    """
    counts = [min(len(variants[task.id]), limit or len(variants[task.id])) for task in known]
    first = np.cumsum([0, *counts[:-1]])
    table = model.state_dict()["context.weights"].double().cpu().numpy()  # [puzzles, D]
    return {task.id: table[i] for task, i in zip(known, first, strict=True)}
