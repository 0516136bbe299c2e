"""Answers to a few training questions in the course of training: W&B's table of pictures."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa

from etrm.config.study import EvaluationConfig
from etrm.data.corpus import Corpus
from etrm.evaluation.decode import NotFiniteError, all_variants, in_order, predict, thin_out
from etrm.evaluation.voting import to_array
from etrm.training.optim import averaged_weights
from etrm.training.trainer import Trainer

log = logging.getLogger(__name__)

TABLE = "train_predictions"  # the guide's name
ROWS = 8  # questions, the same at every evaluation
COLUMNS = ("task", "question", "variant", "input", "output", "answer", "steps", "right")


def answer_rows(trainer: Trainer) -> list[list[Any]]:
    """Return a row of `COLUMNS` for each of up to `ROWS` training questions; grids are lists.

    As they are evaluated: with averaged weights, and all ACT steps. Grids are in the colours and
    the orientation of the task, whichever `variant` of it was asked; an empty answer is None.
    Nothing of the trainer changes. No rows where answers are not finite: the run has diverged.
    """
    run, corpus = trainer.run, trainer.corpus
    most = run.episodes.max_demos if trainer.model.context.needs_demos else 0
    lanes = all_variants(corpus, [lane.truncate_demos(most) for lane in trainer.episodes])
    lanes, dtype = thin_out(lanes, ROWS, run.seed), trainer.compute.dtype
    with averaged_weights(trainer.model, trainer.ema):
        try:
            asked = EvaluationConfig(batch_size=ROWS)
            answers = predict(trainer.model, corpus, lanes, run.halting, asked, dtype)
        except NotFiniteError as error:
            log.info("%s: %s", TABLE, error)
            return []
    return _rows(corpus, in_order([answers]))


def _rows(corpus: Corpus, answers: pa.Table) -> list[list[Any]]:
    place = {task.id: number for number, task in enumerate(corpus.tasks)}
    rows: list[list[Any]] = []
    for each in answers.to_pylist():
        task, query = place[each["task"]], each["query"]
        # A question may be a demo that the others show: it stands before the first query.
        demo = len(corpus.demo_pairs[task]) + query
        question = f"test {query + 1}" if query >= 0 else f"demo {demo + 1}"
        pair = corpus.pairs[corpus.query_pairs[task].start + query]
        answer = to_array(each["height"], each["width"], each["grid"])
        known = None if pair.output is None else pair.output.tolist()
        shown = answer.tolist() if answer.size else None
        asked = each["task"], question, each["variant"]
        rows.append([*asked, pair.input.tolist(), known, shown, each["steps"], each["correct"]])
    return rows
