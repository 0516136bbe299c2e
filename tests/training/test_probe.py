"""The probe: measures of representations by formula, on a fixed set, that change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, make_trainer, questions_of
from torch import Tensor

from etrm.config.study import TrainConfig
from etrm.models.encoders.base import Encoded
from etrm.training.probe import VIEWS, make_probe, permute_contexts, separation
from etrm.training.trainer import Trainer

MEASURES = ("between_task_ratio", "effective_rank", "task_knn_accuracy", "context_swap_drop")
NAMES = {f"encoder/{name}" for name in MEASURES}


def trainer_of(source: str = "standard", **train: Any) -> Trainer:
    tasks = [*make_tasks(4, side=3), *make_tasks(4, seed=1, side=4, prefix="larger")]
    return make_trainer(make_run(source, train={"probe_every": 3, **train}), make_corpus(tasks))


# --- separation, by cases whose answer is known ---


def measures(x: Tensor, tasks: Tensor) -> dict[str, float]:
    return {name.partition("/")[2]: float(value) for name, value in separation(x, tasks).items()}


def test_contexts_that_are_their_task_are_told_apart_perfectly() -> None:
    tasks = torch.tensor([0, 0, 1, 1, 2, 2])
    found = measures(torch.eye(3)[tasks] * 5.0, tasks)
    # Centred, they lie in a plane.
    expected = {"between_task_ratio": 1.0, "task_knn_accuracy": 1.0, "effective_rank": 2.0}
    assert found == pytest.approx(expected)


def test_contexts_without_a_task_in_them_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = torch.arange(40).repeat_interleave(2)
    found = measures(torch.randn(80, 16, generator=generator), tasks)
    # Of two random vectors, half of the variance is that of their mean.
    assert found["between_task_ratio"] == pytest.approx(0.5, abs=0.1)
    assert found["task_knn_accuracy"] < 0.2
    assert found["effective_rank"] > 14.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_measures_do_not_depend_on_the_scale_or_the_origin(scale: float) -> None:
    tasks = torch.tensor([0, 0, 1, 1, 2, 2])
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert measures(scale * (x + 7.0), tasks) == pytest.approx(measures(x, tasks), rel=1e-2)


def test_a_collapsed_encoder_has_rank_one_and_no_crash() -> None:
    tasks = torch.tensor([0, 0, 1, 1])
    line = torch.tensor([[1.0], [2.0], [3.0], [5.0]]) @ torch.ones(1, 8)
    assert measures(line, tasks)["effective_rank"] == pytest.approx(1.0, abs=1e-3)
    constant = measures(torch.ones(4, 8), tasks)
    assert constant["between_task_ratio"] == 0.0
    assert all(map(math.isfinite, constant.values()))


# --- swapping ---


class Telling(torch.nn.Module):
    """A context source that gives the task's number away, or nothing at all."""

    needs_demos = True

    def __init__(self, width: int, tokens: int, tells: bool) -> None:
        super().__init__()
        self.shape, self.tells = (tokens, width), tells

    def context_size(self, most: Any) -> int:
        return self.shape[0]

    def initial_state(self, batch: int) -> None:
        return None

    def forward(self, batch: Any, state: Tensor | None) -> Encoded:
        value = batch.task.float() if self.tells else torch.zeros_like(batch.task).float()
        return Encoded(value[:, None, None].expand(-1, *self.shape))


def test_a_swapped_context_is_that_of_another_task() -> None:
    trainer = trainer_of()
    probe = trainer.probe
    seen: list[tuple[Tensor, Tensor]] = []
    decoder = trainer.model.decoder
    forward = decoder.forward

    def listen(inputs: Tensor, context: Tensor, *rest: Any) -> Any:
        seen.append((inputs, context[:, 0, 0]))
        return forward(inputs, context, *rest)

    decoder.forward = listen
    trainer.model.context = Telling(16, 2, True)
    probe.measure(trainer.model, trainer.compute)
    own: dict[tuple[int, ...], int] = {}
    for batch in probe.batches:
        own |= dict(zip(map(tuple, batch.inputs.tolist()), batch.task.tolist(), strict=True))
    swaps = [
        int(context) != own[tuple(question)]
        for inputs, contexts in seen
        for question, context in zip(inputs.tolist(), contexts, strict=True)
    ]
    assert sum(swaps) == len(swaps) / 2  # all of the second pass, none of the first


def test_a_decoder_that_is_told_nothing_loses_nothing() -> None:
    trainer = trainer_of()
    trainer.model.context = Telling(16, 2, False)
    found = trainer.probe.measure(trainer.model, trainer.compute)
    assert float(found["encoder/context_swap_drop"]) == 0.0


def test_reordering_takes_everything_along() -> None:
    tokens, order = torch.randn(3, 2, 4), torch.tensor([2, 0, 1])
    real, places = torch.rand(3, 2) < 0.5, torch.arange(6).reshape(3, 2)
    found = permute_contexts(Encoded(tokens, real=real, places=places), order)
    assert torch.equal(found.tokens, tokens[order])
    for moved, given in ((found.real, real), (found.places, places)):
        assert torch.equal(moved, given[order])


# --- the set ---


def test_views_of_a_task_are_other_questions_with_other_demos() -> None:
    probe = trainer_of().probe
    assert probe.act_steps == 3  # no more than halting allows
    for batch in probe.batches:
        tasks = batch.task.reshape(-1, VIEWS)
        assert torch.equal(tasks, tasks[:, :1].expand_as(tasks))
        assert len(tasks[:, 0].unique()) == len(tasks) >= 2
        first, second = batch.inputs.reshape(len(tasks), VIEWS, -1).unbind(dim=1)
        assert bool((first != second).any(dim=1).all())


def test_the_set_is_fixed_by_the_seed_and_has_its_size() -> None:
    def tasks(**changes: Any) -> list[int]:
        batches = trainer_of(**changes).probe.batches
        return [task for batch in batches for task in batch.task.tolist()]

    assert tasks() == tasks()
    assert len(tasks(probe_tasks=4)) == 4 * VIEWS < len(tasks())


def test_without_two_tasks_to_tell_apart_there_is_no_probe() -> None:
    corpus = make_corpus(make_tasks(1))
    run = make_run()
    assert make_probe(run, corpus, questions_of(run, corpus)) is None
    trainer = make_trainer(run, corpus)
    trainer.step()
    assert not NAMES & set(trainer.row())


# --- in training ---


@pytest.mark.parametrize("source", ["standard", "recurrent", "in_context", "variational"])
def test_measures_are_logged_at_their_interval_and_at_the_end(source: str) -> None:
    trainer = trainer_of(source, steps=7)
    rows = []
    for _ in range(7):
        trainer.step()
        rows.append(trainer.row())
    assert [row["step"] for row in rows if set(row) >= NAMES] == [3, 6, 7]
    assert not any(NAMES & set(row) for row in rows if row["step"] not in (3, 6, 7))
    assert 0.0 <= rows[2]["encoder/task_knn_accuracy"] <= 1.0
    assert rows[2]["encoder/effective_rank"] >= 1.0


def test_null_measures_nothing_and_embeddings_have_no_probe() -> None:
    for trainer in (trainer_of(probe_every=None, steps=3), trainer_of("embedding", steps=3)):
        for _ in range(3):
            trainer.step()
        assert not NAMES & set(trainer.row())


@pytest.mark.parametrize("source", ["standard", "recurrent_trm", "variational"])
def test_measuring_changes_nothing(source: str) -> None:
    states = []
    for every in (1, None):
        trainer = trainer_of(source, probe_every=every)
        for _ in range(3):
            trainer.step()
        assert trainer.model.training
        states.append({n: t.clone() for n, t in trainer.model.state_dict().items()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_probe_is_cheap_beside_training() -> None:
    """Forward passes of samples: of a probe, against those of the steps between two, by default."""
    defaults = TrainConfig()
    probed = VIEWS * defaults.probe_tasks * (1 + 2 * 4)
    # A training sample costs a forward pass, and a backward one of a third of it, twice over.
    trained = defaults.probe_every * defaults.batch_size * (1 + 2 / 3)
    assert probed < 0.03 * trained
