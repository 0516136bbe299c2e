"""Weights of lanes: each lane counts as in the one batch of official TRM."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    UnevenHalting,
    make_corpus,
    make_run,
    make_task,
    make_tasks,
    make_trainer,
    questions_of,
    recolour,
    rows_of,
    two_lanes,
)

from etrm.models.build import build_model
from etrm.runtime.distributed import Ranks
from etrm.training.lane_weights import LaneWeights
from etrm.training.optim import SignSGD
from etrm.training.slots import LaneSlots
from etrm.training.trainer import Trainer

ONE, CPU = Ranks(), torch.device("cpu")
EASY, MIDDLE, HARD = (0.85, 0.08, 0.03, 0.04), (0.3, 0.3, 0.3, 0.1), (0.05, 0.1, 0.1, 0.75)
LONG = (*[0.0] * 8, *[0.125] * 8)  # of 9 to 16 steps


def mean(steps: tuple[float, ...]) -> float:
    """The mean number of ACT steps, of probabilities of 1, 2, … steps."""
    return float(np.dot(steps, np.arange(1, len(steps) + 1)))


def draw(rng: np.random.Generator, steps: list[tuple[float, ...]], lane: np.ndarray) -> np.ndarray:
    """ACT steps [n] of new samples of these lanes [n]."""
    ends = np.array([np.cumsum(np.pad(p, (0, 16 - len(p)))) for p in steps])
    return 1 + (rng.random(len(lane))[:, None] > ends[lane]).sum(axis=1).clip(max=15)


def official(questions: list[int], steps: list[Any], slots: int, number: int) -> np.ndarray:
    """One batch, simulated: a slot that halts takes a question of all. Lanes' shares a step."""
    rng, chance = np.random.default_rng(0), np.array(questions) / sum(questions)
    lane = rng.choice(len(questions), slots, p=chance)
    left, shares = draw(rng, steps, lane), []
    for _ in range(number):
        shares.append(np.bincount(lane, minlength=len(questions)) / slots)
        left -= 1
        free = left == 0
        lane[free] = rng.choice(len(questions), free.sum(), p=chance)
        left[free] = draw(rng, steps, lane[free])
    return np.array(shares)


def lanes(*questions: int) -> list[Any]:
    return [SimpleNamespace(total_weight=number) for number in questions]


def weighted(
    questions: list[int], steps: list[Any], slots: int, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lanes of fixed slots: weighted shares of slots and of finished samples; slots of a lane."""
    rng = np.random.default_rng(1)
    weights = LaneWeights(lanes(*questions), slots, CPU)
    lane = weights.lane_of_slot.numpy()
    left, shares, finished = draw(rng, steps, lane), [], np.zeros(len(questions))
    for _ in range(number):
        by_slot = weights.by_slot.numpy()
        assert by_slot.sum() == pytest.approx(slots)  # the scale of the loss stays
        shares.append(np.bincount(lane, by_slot) / slots)
        left -= 1
        free = left == 0
        finished += np.bincount(lane[free], by_slot[free], minlength=len(questions))
        weights.advance(torch.from_numpy(np.bincount(lane[free], minlength=len(questions))), ONE)
        left[free] = draw(rng, steps, lane[free])
    return np.array(shares), finished / finished.sum(), weights.slot_share.numpy()


@pytest.mark.parametrize(
    ("questions", "steps", "slots"),
    [
        ([250, 750], [EASY, HARD], 32),  # the mini study's
        ([400, 350, 250], [EASY, MIDDLE, HARD], 64),
        ([500, 300, 200], [EASY, HARD, LONG], 256),
        ([10, 900, 990], [LONG, EASY, HARD], 24),  # the first has one slot, too many already
    ],
)
def test_each_lane_counts_as_in_one_batch(
    questions: list[int], steps: list[Any], slots: int
) -> None:
    """Within 2 % of the share that official replacement gives; slots alone are far off."""
    number = 100_000 // slots
    expected = np.array([n * mean(p) for n, p in zip(questions, steps, strict=True)])
    expected /= expected.sum()
    simulated = official(questions, steps, slots, number).mean(axis=0)
    assert simulated[1:] == pytest.approx(expected[1:], rel=0.02)
    shares, finished, slot_share = weighted(questions, steps, slots, number)
    assert shares.mean(axis=0)[1:] == pytest.approx(simulated[1:], rel=0.02)
    assert shares.mean(axis=0) == pytest.approx(expected, rel=0.02)
    assert finished == pytest.approx(np.array(questions) / sum(questions), rel=0.03)
    assert max(abs(slot_share / expected - 1)) > 0.1


def test_the_start_is_that_of_one_batch() -> None:
    """No lane jumps before its first samples are done: the shares follow step by step."""
    arguments = [250, 750], [EASY, HARD], 20_000, 60
    difference = abs(weighted(*arguments)[0] - official(*arguments))
    assert difference.max() < 0.1  # where the first hard samples end, all at once
    assert difference.mean() < 0.015


def test_lanes_in_which_nothing_halts_keep_their_shares() -> None:
    weights = LaneWeights(lanes(1, 99), 10, CPU)
    assert weights.by_lane.tolist() == pytest.approx([0.1, 1.1])  # 1 % on a slot of ten
    for _ in range(2000):
        weights.advance(torch.zeros(2), ONE)
    assert weights.share.tolist() == pytest.approx([0.01, 0.99])
    weights.advance(torch.tensor([1, 0]), ONE)
    assert bool(weights.by_lane.isfinite().all())


def test_one_lane_has_the_weight_one_exactly() -> None:
    weights = LaneWeights(lanes(7), 3, CPU)
    for number in (0, 1, 3, 2):
        weights.advance(torch.tensor([number]), ONE)
        assert weights.by_slot.tolist() == [1.0, 1.0, 1.0]


# --- in a run ---


def uneven(source: str = "standard", draw: str = "question", **train: Any) -> UnevenHalting:
    """Two lanes, of one and of four ACT steps a sample."""
    corpus = make_corpus(two_lanes(4, 2))
    train = {"steps": 60, "batch_size": 12, "log_every": 20, **train}
    run = make_run(source, halting={"max_steps": 4}, train=train, episodes={"draw": draw})
    return UnevenHalting(
        run, build_model(run, corpus.num_puzzles), corpus, questions_of(run, corpus)
    )


def test_a_run_learns_and_logs_as_in_one_batch() -> None:
    trainer = uneven()
    *_, row = rows_of(trainer, 60)
    first, second = (len(lane) for lane in trainer.episodes)
    total = first + 4 * second  # slot-steps that each question once takes
    assert row["train/lane_share/3"] == pytest.approx(first / total, rel=0.02)
    assert row["train/lane_share/4"] == pytest.approx(4 * second / total, rel=0.02)
    assert abs(float(trainer.lane_weights.slot_share[1]) / (4 * second / total) - 1) > 0.2
    steps = total / (first + second)  # a question; as many halt a step as one batch would see
    assert row["train/steps"] == pytest.approx(steps, rel=0.02)
    assert row["train/halted"] == pytest.approx(12 / steps, rel=0.02)


def test_lanes_have_the_shares_of_their_tasks_where_these_are_drawn_alike() -> None:
    """Four tasks on a lane count as four, however many questions they have."""
    rng = np.random.default_rng(0)
    tasks = [*make_tasks(4, side=3), make_task("many", recolour(rng), rng, demos=40, side=4)]
    corpus = make_corpus(tasks)
    run = make_run(train={"batch_size": 10}, episodes={"draw": "task"})
    trainer = Trainer(run, build_model(run, corpus.num_puzzles), corpus, questions_of(run, corpus))
    assert trainer.lane_weights.share.tolist() == pytest.approx([0.8, 0.2])
    assert trainer.lane_weights.slots.tolist() == [8, 2]
    questions = [len(lane) for lane in trainer.episodes]
    assert questions[0] / sum(questions) < 0.4


def test_means_over_slots_have_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = uneven(log_every=1)
    rows_of(trainer, 30)
    parts: list[Any] = []
    forward = trainer._forward_backward

    def listen(group: LaneSlots) -> Any:
        parts.append(forward(group))
        return parts[-1]

    monkeypatch.setattr(trainer, "_forward_backward", listen)
    share = trainer.lane_weights.share.tolist()
    (row,) = rows_of(trainer, 1)
    losses = [float(losses.lm.detach().mean()) for _, losses, _ in parts]
    assert row["train/lm_loss"] == pytest.approx(np.dot(losses, share))
    assert row["train/lm_loss"] != pytest.approx(
        np.dot(losses, trainer.lane_weights.slot_share.numpy())
    )


def test_gradients_of_a_lane_have_its_weight() -> None:
    gradients = []
    for share in (0.5, 0.8):
        trainer = uneven()
        trainer.lane_weights.share[0] = share * trainer.lane_weights.slot_share[0]
        trainer.step_number = 1
        trainer._forward_backward(trainer.lane_slots[0])
        gradients.append(trainer.updater.parameters.gradient.clone())
    assert torch.allclose(1.6 * gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert bool(gradients[0].any())


def test_a_puzzle_moves_as_often_as_its_lane_counts() -> None:
    """Signs have no weight: the rate of a row has that of the slots which used it."""
    trainer, lr = uneven("embedding", warmup_steps=0, embedding_lr=0.1), 0.1
    rows_of(trainer, 30)
    table, weights = trainer.model.context.weights, trainer.lane_weights.by_lane.tolist()
    assert isinstance(trainer.updater.embedding, SignSGD)
    trainer.updater.embedding.weight_decay = 0.0
    before = table.clone()
    trainer.step()
    for group in trainer.lane_slots:
        puzzles = group.carry.batch.puzzle
        moved = (table[puzzles] - before[puzzles]).abs().amax(dim=1)
        assert moved.tolist() == pytest.approx([lr * weights[group.lane]] * len(puzzles), rel=1e-4)
    assert weights[0] < 0.8 < 1.2 < weights[1]


@pytest.mark.parametrize(("source", "draw"), [("embedding", "question"), ("standard", "task")])
def test_weights_resume_exactly(source: str, draw: str) -> None:
    whole, second = (uneven(source, draw, log_every=4) for _ in range(2))
    rows_of(whole, 10)
    second.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert rows_of(second, 10) == rows_of(whole, 10)
    assert torch.equal(second.lane_weights.share, whole.lane_weights.share)
    assert torch.equal(second.lane_weights.halted, whole.lane_weights.halted)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_one_lane_logs_no_share() -> None:
    trainer = make_trainer(make_run(episodes={"canvas": [4]}))
    trainer.step()
    assert not [name for name in trainer.row() if name.startswith("train/lane_share")]
