"""W&B gets the answers to a few training questions as pictures, and training is none the wiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_corpus, make_run, make_trainer

from etrm.training import shown_answers
from etrm.training.loop import evaluate
from etrm.training.recorder import Recorder
from etrm.training.trainer import Trainer


def trained(source: str = "standard", steps: int = 3) -> Trainer:
    trainer = make_trainer(make_run(source))
    for _ in range(steps):
        trainer.step()
    return trainer


@pytest.mark.parametrize("source", ["standard", "embedding"])
def test_rows_are_questions_in_the_colours_of_their_task(source: str) -> None:
    trainer = trained(source)
    rows = shown_answers.answer_rows(trainer)
    assert 0 < len(rows) <= shown_answers.ROWS
    tasks = {task.id: task for task in trainer.corpus.tasks}
    for row in rows:
        each = dict(zip(shown_answers.COLUMNS, row, strict=True))
        kind, number = each["question"].split()
        pairs = tasks[each["task"]].demos if kind == "demo" else tasks[each["task"]].queries
        pair = pairs[int(number) - 1]
        assert each["input"] == pair.input.tolist()
        assert pair.output is not None
        assert each["output"] == pair.output.tolist()
        assert each["right"] is (each["answer"] == each["output"])
        assert each["steps"] == trainer.halting.max_steps
    assert [row[:3] for row in rows] == [row[:3] for row in shown_answers.answer_rows(trainer)]


def test_answers_of_a_run_that_diverged_are_not_shown() -> None:
    trainer = trained()
    for values in trainer.ema.values.values():
        values.fill_(torch.nan)
    assert shown_answers.answer_rows(trainer) == []


class Sent:
    """A tracker that keeps what it is given."""

    def __init__(self, mirrors: bool) -> None:
        self.mirrors, self.rows, self.tables = mirrors, list[dict[str, float]](), list[Any]()

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def table(self, *content: Any) -> None:
        self.tables.append(content)


def test_an_evaluation_sends_them_and_the_next_steps_are_the_same() -> None:
    weights = []
    for mirrors in (False, True):
        trainer = make_trainer(make_run("standard"), make_corpus())
        sent: Any = Sent(mirrors)
        nothing: Any = _Nothing()
        recorder = Recorder(trainer, sent, nothing, trainer.ranks, nothing, nothing, nothing, 0.0)
        recorder._slow_evaluation = False
        for _ in range(2):
            trainer.step()
        evaluate(trainer, recorder)
        for _ in range(2):
            trainer.step()
        tables = [(step, name) for step, name, *_ in sent.tables]
        assert tables == ([(2, "train_predictions")] if mirrors else [])
        assert [row["step"] for row in sent.rows] == [2.0]
        weights.append([value.clone() for value in trainer.model.state_dict().values()])
    assert all(np.array_equal(*both) for both in zip(*weights, strict=True))


class _Nothing:
    """Takes every call."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
