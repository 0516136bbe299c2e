"""The probe: measures of representations by formula, on a fixed set, that change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, make_trainer, questions_of, two_lanes
from torch import Tensor

from etrm.config.study import TrainConfig
from etrm.models.encoders.base import Encoded
from etrm.training.probe import VARIANTS, VIEWS, make_probe, permute_contexts, separation
from etrm.training.trainer import Trainer

MEASURES = (
    *("between_task_ratio", "between_puzzle_ratio", "task_knn_accuracy", "puzzle_knn_accuracy"),
    *("effective_rank", "context_swap_drop"),
)
NAMES = {f"encoder/{name}" for name in MEASURES}


def trainer_of(source: str = "standard", tasks: int = 6, **train: Any) -> Trainer:
    corpus = make_corpus(two_lanes(tasks, tasks))
    return make_trainer(make_run(source, train={"probe_every": 3, **train}), corpus)


# --- separation, by cases whose answer is known ---

# Four tasks, two variants each, two views each.
TASK = torch.arange(4).repeat_interleave(4)
PUZZLE = torch.arange(8).repeat_interleave(2)
VIEW = torch.arange(16) % 2


def measures(x: Tensor, task: Tensor = TASK, puzzle: Tensor = PUZZLE) -> dict[str, float]:
    found = separation(x, task, puzzle, torch.arange(len(x)) % 2)
    return {name.partition("/")[2]: float(value) for name, value in found.items()}


def test_contexts_that_are_their_puzzle_are_told_apart_perfectly() -> None:
    found = measures(torch.eye(8)[PUZZLE] * 5.0)
    assert found["puzzle_knn_accuracy"] == found["between_puzzle_ratio"] == pytest.approx(1.0)
    assert found["task_knn_accuracy"] == 0.0  # another variant is as far as another task
    assert found["between_task_ratio"] == pytest.approx(-1 / 7)  # of centred one-hot vectors
    assert found["effective_rank"] == pytest.approx(7.0)


def test_contexts_that_are_their_task_do_not_tell_variants_apart() -> None:
    found = measures(torch.eye(4)[TASK] * 5.0)
    for name in ("task_knn_accuracy", "between_task_ratio", "between_puzzle_ratio"):
        assert found[name] == pytest.approx(1.0)
    assert found["puzzle_knn_accuracy"] == 0.0


def test_contexts_that_show_their_demos_alone_are_not_a_puzzle() -> None:
    """What the variants of one view have in common does not count: they share all demos."""
    x = torch.eye(8)[2 * TASK + VIEW]
    found = measures(x)
    assert found["task_knn_accuracy"] == found["puzzle_knn_accuracy"] == 0.0
    assert found["between_task_ratio"] < 0.0


def test_noise_has_no_puzzle_in_it() -> None:
    task, puzzle = torch.arange(40).repeat_interleave(4), torch.arange(80).repeat_interleave(2)
    x = torch.randn(160, 16, generator=torch.Generator().manual_seed(0))
    found = measures(x, task, puzzle)
    assert found["between_puzzle_ratio"] == pytest.approx(0.0, abs=0.1)
    assert found["between_task_ratio"] == pytest.approx(0.0, abs=0.1)
    assert max(found["puzzle_knn_accuracy"], found["task_knn_accuracy"]) < 0.1
    assert found["effective_rank"] > 14.0


def test_shares_of_task_variant_and_demos_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    task, puzzle = torch.arange(400).repeat_interleave(4), torch.arange(800).repeat_interleave(2)
    of_task, of_puzzle = (torch.randn(n, 8, generator=generator) for n in (400, 800))
    x = of_task[task] + of_puzzle[puzzle] + torch.randn(1600, 8, generator=generator)
    found = measures(x, task, puzzle)
    assert found["between_task_ratio"] == pytest.approx(1 / 3, abs=0.05)
    assert found["between_puzzle_ratio"] == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_measures_do_not_depend_on_the_scale_or_the_origin(scale: float) -> None:
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    assert measures(scale * (x + 7.0)) == pytest.approx(measures(x), rel=1e-2, abs=1e-3)


def test_a_collapsed_encoder_has_rank_one_and_a_constant_one_tells_nothing_apart() -> None:
    line = torch.arange(16.0)[:, None] @ torch.ones(1, 8)
    assert measures(line)["effective_rank"] == pytest.approx(1.0, abs=1e-3)
    constant = measures(torch.full((16, 8), 0.1))
    assert all(map(math.isfinite, constant.values()))
    for name in ("puzzle_knn_accuracy", "task_knn_accuracy"):
        assert constant[name] < 0.3
    assert abs(constant["between_puzzle_ratio"]) < 1e-3


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
    for batch in (lane.questions for lane in probe.lanes):
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


def demos(batch: Any, row: int) -> list[tuple[int, ...]]:
    """Tokens of the real demos of a sample."""
    tokens = torch.cat([batch.demo_inputs[row], batch.demo_outputs[row]], dim=1)
    return [tuple(demo) for demo in tokens[batch.demo_mask[row]].tolist()]


def test_views_of_a_puzzle_have_no_demo_in_common_and_the_query_is_in_neither() -> None:
    probe = trainer_of().probe
    assert probe.act_steps == 3  # no more than halting allows
    tasks: list[int] = []
    for lane in probe.lanes:
        views, questions = lane.views, lane.questions
        assert len(views) == VIEWS * len(questions) == VIEWS * VARIANTS * len(views.task.unique())
        assert torch.equal(views.puzzle, questions.puzzle.repeat_interleave(VIEWS))
        assert len(questions.puzzle.unique()) == len(questions)
        for row in range(len(questions)):
            first, second = demos(views, VIEWS * row), demos(views, VIEWS * row + 1)
            whole = demos(questions, row)
            assert first
            assert second
            assert sorted(first + second) == sorted(whole)
            query = (*questions.inputs[row].tolist(), *questions.labels[row].tolist())
            assert query not in first + second
        tasks += views.task.unique().tolist()
    assert len(tasks) == len(set(tasks)) >= 4  # a task is on one lane


class Reading(torch.nn.Module):
    """A context source of the puzzle's number, the task's, or nothing."""

    needs_demos = True

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads

    def initial_state(self, batch: int) -> None:
        return None

    def forward(self, batch: Any, state: Tensor | None) -> Encoded:
        number = getattr(batch, self.reads) if self.reads else torch.zeros_like(batch.task)
        feature = torch.nn.functional.one_hot(number, 64).float()
        return Encoded(feature[:, None])


def read(reads: str) -> dict[str, float]:
    trainer = trainer_of()
    trainer.model.context = Reading(reads)
    found = trainer.probe._separation(trainer.model)
    return {name.partition("/")[2]: float(value) for name, value in found.items()}


def test_only_an_encoder_that_reads_the_puzzle_reaches_one() -> None:
    assert read("puzzle")["puzzle_knn_accuracy"] == 1.0
    assert read("puzzle")["between_puzzle_ratio"] == pytest.approx(1.0)
    assert read("task")["task_knn_accuracy"] == 1.0
    assert read("task")["puzzle_knn_accuracy"] == 0.0
    constant = read("")
    del constant["effective_rank"]
    assert all(abs(value) < 1e-6 for value in constant.values())


@pytest.mark.parametrize("source", ["standard", "variational", "recurrent", "in_context"])
def test_an_untrained_encoder_is_far_from_one(source: str) -> None:
    trainer = trainer_of(source, tasks=20)
    found = trainer.initial_row()
    assert found["encoder/puzzle_knn_accuracy"] < 0.7
    assert found["encoder/task_knn_accuracy"] < 0.5
    assert found["encoder/between_task_ratio"] < 0.7


def test_the_set_is_fixed_by_the_seed_and_has_its_size() -> None:
    def tasks(**changes: Any) -> list[int]:
        lanes = trainer_of(**changes).probe.lanes
        return [task for lane in lanes for task in lane.views.task.tolist()]

    assert tasks() == tasks()
    assert len(tasks(probe_tasks=4)) == 4 * VARIANTS * VIEWS < len(tasks())


def test_with_one_variant_of_each_task_puzzles_are_measured_alone() -> None:
    run = make_run(train={"probe_every": 1})
    trainer = make_trainer(run, make_corpus(make_tasks(8), variants=1))
    found = trainer.initial_row()
    assert "encoder/puzzle_knn_accuracy" in found
    assert "encoder/task_knn_accuracy" not in found


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
    probed = VARIANTS * defaults.probe_tasks * (VIEWS + 2 * 4)
    # A training sample costs a forward pass, and a backward one of a third of it, twice over.
    trained = defaults.probe_every * defaults.batch_size * (1 + 2 / 3)
    assert probed < 0.03 * trained
