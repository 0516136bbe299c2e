"""The contrastive loss in training: views of one puzzle, against other variants and other tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, make_trainer, questions_of
from torch import Tensor

from etrm.arc.task import Pair, Task
from etrm.config.execution import ExecutionConfig
from etrm.config.registry import CONTEXT_SOURCES
from etrm.models.build import build_model
from etrm.training import contrast
from etrm.training.contrast import query_view
from etrm.training.trainer import Trainer

VARIATIONAL = [name for name in CONTEXT_SOURCES if name.endswith("variational")]
VARIANTS = 200


def trainer_of(source: str = "standard", **context: Any) -> Trainer:
    """Three tasks in many variants: most of the 24 samples have a puzzle of their own."""
    context = {"contrastive_weight": 1.0, **context}
    episodes = {"canvas": [4], "translate": False}
    train = {"batch_size": 24, "lr": 6e-3, "steps": 100}
    run = make_run(source, context=context, episodes=episodes, train=train)
    return make_trainer(run, make_corpus(make_tasks(3), variants=VARIANTS))


@pytest.fixture(params=["puzzle", "task"])
def given(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Trainer, dict[str, Tensor]]:
    """A trainer after two steps, and the arguments of the loss of the second."""
    seen: dict[str, Tensor] = {}
    formula = contrast.contrastive_loss

    def listen(*args: Any) -> Tensor:
        names = ("anchors", "keys", "bank", "positive", "negative")
        seen.update(zip(names, args[:5], strict=True))
        return formula(*args)

    trainer = trainer_of(contrastive_positives=request.param)
    trainer.step()
    before = trainer.contrast.bank
    monkeypatch.setattr(contrast, "contrastive_loss", listen)
    trainer.step()
    seen.update(zip(("of_bank", "puzzles", "tasks"), before, strict=True))
    return request.param, trainer, seen


def test_the_bank_is_of_other_puzzles(given: tuple[str, Trainer, dict[str, Tensor]]) -> None:
    positives, trainer, seen = given
    batch = trainer.lane_slots[0].carry.batch
    assert torch.equal(seen["bank"], seen["of_bank"])
    assert len(seen["bank"]) == 24
    same_puzzle = batch.puzzle[:, None] == seen["puzzles"]
    variant = (batch.task[:, None] == seen["tasks"]) & ~same_puzzle
    assert bool(same_puzzle.any())  # of the samples that are held for several steps
    assert bool(variant.any(dim=1).all())
    assert torch.equal(seen["positive"], variant & (positives == "task"))
    assert torch.equal(seen["negative"], ~same_puzzle & ~seen["positive"])


def test_a_sample_and_its_key_have_one_puzzle_and_no_common_demo() -> None:
    """The key's demo is one of the puzzle's pairs, coded as demos are, that the sample lacks."""
    trainer = trainer_of()
    trainer.step()
    (lane,), corpus, group = trainer.episodes, trainer.corpus, trainer.lane_slots[0]
    batch, view = group.carry.batch, query_view(group.carry.batch)

    def pairs(of: Any, row: int) -> set[tuple[int, ...]]:
        both = torch.cat([of.demo_inputs, of.demo_outputs], dim=2)[row]
        return {tuple(pair) for pair in both[of.demo_mask[row]].tolist()}

    for row in range(24):
        (key,) = pairs(view, row)
        assert key not in pairs(batch, row)
        questions = (lane.task == batch.task[row]).nonzero()[:, 0]
        variant = batch.puzzle[row] - corpus.first_puzzle[batch.task[row]]
        whole = corpus.assemble(lane, questions, variant.expand(len(questions)))
        assert key in set().union(*(pairs(whole, i) for i in range(len(questions))))


def test_both_sides_give_the_encoder_a_gradient() -> None:
    trainer = trainer_of()
    trainer.step()
    batch, source = trainer.lane_slots[0].carry.batch, trainer.model.context
    with torch.no_grad():
        anchors = source(batch, None)
    loss = trainer.contrast.loss(batch, anchors)
    assert loss.shape == (24,)
    by_keys = torch.autograd.grad(loss.mean(), list(source.parameters()), allow_unused=True)
    assert max(float(g.norm()) for g in by_keys if g is not None) > 1e-4
    anchors = source(batch, None)
    loss = trainer.contrast.loss(batch, anchors).mean()
    assert float(torch.autograd.grad(loss, anchors.tokens)[0].norm()) > 1e-4


def test_the_first_step_has_no_negatives_and_no_loss() -> None:
    trainer = trainer_of()
    trainer.step()
    assert trainer.row()["train/contrastive_loss"] == pytest.approx(0.0, abs=1e-6)
    trainer.step()
    assert abs(trainer.row()["train/contrastive_loss"]) > 1e-3


@pytest.mark.parametrize("name", VARIATIONAL)
def test_the_key_of_a_variational_source_is_its_mean(name: str) -> None:
    trainer = trainer_of(name)
    for _ in range(2):
        trainer.step()
    assert "train/kl_loss" in trainer.row()
    batch = trainer.lane_slots[0].batch(3)
    assert batch.noise is not None
    anchors = trainer.model.context(batch, None)
    first = trainer.contrast.loss(batch, anchors)
    batch.noise = -batch.noise
    assert torch.equal(trainer.contrast.loss(batch, anchors), first)


def test_a_context_of_cells_is_the_mean_of_its_demos_cells() -> None:
    trainer = trainer_of("in_context")
    batch, source = trainer.lane_slots[0].batch(1), trainer.model.context
    encoded = source(batch, None)
    found = source.representation(encoded).mean()
    for row in range(4):
        cells = encoded.real[row] & (encoded.places[row] >= 0)
        expected = encoded.tokens[row, cells].mean(dim=0) / source.scale
        assert torch.allclose(found[row], expected, atol=1e-5)


def test_micro_batches_change_nothing() -> None:
    run = trainer_of().run
    banks = []
    for size in (None, 5):
        corpus = make_corpus(make_tasks(3), variants=9)
        model, lanes = build_model(run, corpus.num_puzzles), questions_of(run, corpus)
        execution = ExecutionConfig(micro_batch=size)
        trainer = Trainer(run, model, corpus, lanes, execution=execution)
        for _ in range(4):
            trainer.step()
        loss = torch.tensor(trainer.row()["train/contrastive_loss"])
        banks.append((*trainer.contrast.bank, loss))
    for first, second in zip(*banks, strict=True):
        assert torch.allclose(first.float(), second.float(), atol=1e-4)


def trained(steps: int = 60, **context: Any) -> dict[str, float]:
    """The last row of a run on tasks with three colours each, by which variants can be told."""
    rng = np.random.default_rng(0)

    def in_three_colours(name: str) -> Task:
        colours = rng.choice(10, 3, replace=False).astype(np.uint8)
        inputs = [colours[rng.integers(0, 3, (3, 3))] for _ in range(5)]
        pairs = [Pair(x, np.ascontiguousarray(np.fliplr(x))) for x in inputs]
        return Task(name, tuple(pairs[:4]), tuple(pairs[4:]))

    rates = {"batch_size": 24, "lr": 5e-3, "steps": steps, "log_every": steps}
    run = make_run(
        context={"pairing": "aligned", "output_scale": 1.0, **context},
        train={**rates, "probe_every": steps, "probe_tasks": 8},
        episodes={"canvas": [3], "translate": False},
    )
    tasks = [in_three_colours(f"task{i}") for i in range(8)]
    trainer = make_trainer(run, make_corpus(tasks, variants=50))
    for _ in range(steps):
        trainer.step()
    return trainer.row()


def test_variants_are_told_apart_unless_tasks_are_the_positives() -> None:
    """The variant's share of what two views of a puzzle have in common: puzzle less task."""
    puzzle, task = (
        trained(contrastive_weight=0.1, contrastive_positives=each) for each in ("puzzle", "task")
    )
    levels = ("encoder/between_puzzle_ratio", "encoder/between_task_ratio")
    shares = [row[levels[0]] - row[levels[1]] for row in (puzzle, task)]
    assert shares[0] > shares[1] + 0.3
    assert puzzle["train/contrastive_loss"] < -0.5  # nearer to the key than to others


def test_without_a_weight_there_is_no_loss_and_no_key() -> None:
    trainer = trainer_of(contrastive_weight=0.0)
    trainer.step()
    assert "train/contrastive_loss" not in trainer.row()
    assert [len(each) for each in trainer.contrast.bank] == [0, 0, 0]


@pytest.mark.parametrize(
    "change", [{"contrastive_temperature": 1.0}, {"contrastive_positives": "task"}]
)
def test_the_options_are_read(change: dict[str, Any]) -> None:
    first, second = (trained(3, contrastive_weight=1.0, **each) for each in ({}, change))
    assert first["train/contrastive_loss"] != second["train/contrastive_loss"]
