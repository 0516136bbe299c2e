"""Runs in the official order of samples, and with the official casts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_device import META, FromHost
from tiny import make_corpus, make_run, make_tasks, make_variants, questions_of
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.data.corpus import Corpus
from etrm.data.epochs import EpochOrder
from etrm.models.build import build_model
from etrm.runtime.distributed import Ranks
from etrm.training import slots
from etrm.training.trainer import Trainer

EPOCHS = {"canvas": [4], "order": "epochs", "translate_once": True}


def trainer_of(
    source: str, micro_batch: int | None = None, ranks: Ranks | None = None, **train: Any
) -> Trainer:
    corpus = make_corpus(make_tasks(6))
    train = {"steps": 20, "batch_size": 9, **train}
    run = make_run(source, episodes=EPOCHS, train=train)
    torch.manual_seed(0)
    model, questions = build_model(run, corpus.num_puzzles), questions_of(run, corpus)
    execution = ExecutionConfig(micro_batch=micro_batch)
    return Trainer(run, model, corpus, questions, ranks or Ranks(), execution)


def held(trainer: Trainer) -> Tensor:
    """Puzzle and query of every slot, in order."""
    groups = trainer.lane_slots
    order = torch.cat([group.slots for group in groups]).argsort()
    batches = [group.carry.batch for group in groups]
    rows = [torch.cat([b.puzzle[:, None], b.inputs], dim=1) for b in batches]
    return torch.cat(rows)[order]


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_slots_that_halted_take_the_sample_at_their_place_and_others_keep_theirs(
    source: str,
) -> None:
    trainer = trainer_of(source)
    (group,) = trainer.lane_slots
    kept = 0
    for step in range(1, 15):
        before, free = held(trainer), group.carry.halted.clone()
        trainer.step()
        batch = group.sampler.batch(step)
        assert len(batch.puzzle.unique()) <= 4  # 9 slots, tasks of at least 3 pairs
        new = torch.cat([batch.puzzle[:, None], batch.inputs], dim=1)
        assert torch.equal(held(trainer), torch.where(free[:, None], new, before))
        if group.host_tracker is not None:
            assert torch.equal(group.host_tracker.held >= 0, group.carry.batch.demo_mask)
        kept += int((~free).sum())
    assert kept > 0


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_samples_do_not_depend_on_micro_batches_and_ranks(source: str) -> None:
    whole, cut = trainer_of(source), trainer_of(source, micro_batch=2)
    assert len(cut.lane_slots) == 5
    for _ in range(6):
        whole.step()
        cut.step()
        assert torch.equal(held(whole), held(cut))
    step = whole.step_number + 1
    new = whole.lane_slots[0].sampler.batch(step).inputs
    for rank in range(2):
        (own,) = trainer_of(source, ranks=Ranks(rank, 2)).lane_slots
        assert torch.equal(own.sampler.batch(step).inputs, new[own.slots])


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_resumed_run_has_the_same_samples_and_weights(source: str) -> None:
    whole, first, second = (trainer_of(source) for _ in range(3))
    for _ in range(12):
        whole.step()
    for _ in range(5):
        first.step()
    state = first.state_dict()
    assert state is not None
    second.load_state_dict(state)
    for _ in range(7):
        second.step()
    assert torch.equal(held(second), held(whole))
    for a, b in zip(
        second.model.state_dict().values(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_the_order_is_computed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the steps at which the host plans ahead."""
    tasks = make_tasks(6)
    run = make_run(
        "embedding", episodes=EPOCHS, train={"batch_size": 9, "log_every": 100, "steps": 100}
    )
    (on_host,) = questions_of(run, Corpus(tasks, make_variants(tasks)))

    def planned(task: Tensor, *args: Any) -> EpochOrder:
        order = EpochOrder(on_host.task, *args)  # `meta` has no values to plan from
        ((first, size),) = order.on.values()
        order.on[task.device] = first.to(task.device), size.to(task.device)
        return order

    monkeypatch.setattr(slots, "EpochOrder", planned)
    corpus = Corpus(tasks, make_variants(tasks), META)
    model = build_model(run, corpus.num_puzzles).to(META)
    trainer = Trainer(run, model, corpus, questions_of(run, corpus))
    trainer.step()
    with FromHost() as watch:
        trainer.step()
    assert watch.seen == []


def test_casts_at_every_use_are_an_option_of_the_run() -> None:
    """Forward, both give the same; the sums of gradients differ, and so do weights after them."""
    after = {}
    for hoist in (True, False):
        trainer = trainer_of("embedding", dtype="bf16", hoist_casts=hoist)
        assert trainer.compute.hoist == hoist
        for _ in range(4):
            trainer.step()
        after[hoist] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    assert not torch.equal(after[True], after[False])
    assert torch.allclose(after[True], after[False], atol=0.02)
