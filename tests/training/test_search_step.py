"""Search in training: contexts are moved by one step, which is a constant to the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_device import FromHost, on_meta
from test_trainer import assert_equal, check_resumption, trainer_of
from tiny import make_batch, make_corpus, make_run, make_tasks, questions_of, rows_of
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.config.registry import encoders
from etrm.config.schema import ConfigError, parse
from etrm.config.study import ExperimentConfig
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.compute import Compute
from etrm.models.losses import sample_losses
from etrm.refinement.demos import demo_likelihood, leave_one_out
from etrm.refinement.search import Adam
from etrm.refinement.spaces import TokenSpace
from etrm.refinement.step import search_step
from etrm.study.plan.spread import LaneShare, Spread
from etrm.study.plan.work import training
from etrm.training.trainer import Trainer

FLOAT = torch.float32


def questions() -> Batch:
    """Random questions with three, two demos and one, which is its own."""
    batch = make_batch(3, 3)
    batch.demo_mask[1, 2:] = batch.demo_mask[2, 1:] = False
    batch.demo_inputs[0, 0, -1] = batch.demo_outputs[0, 0, -1] = 0
    return batch


def model_of(source: str, **blocks: Any) -> Model:
    return build_model(make_run(source, **blocks), num_puzzles=8)


@pytest.mark.parametrize("source", encoders())
def test_a_step_makes_the_demos_of_every_sample_more_likely(source: str) -> None:
    """By the objective of the search, whose gradient it follows."""
    model, batch = model_of(source), questions()
    shift = search_step(model, batch, model.context(batch, None), 0.005, FLOAT)
    assert not shift.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        demos = leave_one_out(batch)
        space = TokenSpace(model, batch, demos, 1)
    point = torch.zeros_like(space.origin, requires_grad=True)
    before, _ = demo_likelihood(model, demos, space.contexts(point), 1, FLOAT)
    (gradient,) = torch.autograd.grad(before.sum(), point)
    expected = Adam(0.005 * space.unit).step(gradient)
    clear = gradient.abs() > 1e-3 * gradient.abs().amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(shift[clear], expected[clear], rtol=1e-2, atol=1e-6)
    assert (shift[gradient == 0.0] == 0.0).all()
    after, _ = demo_likelihood(model, demos, space.contexts(shift), 1, FLOAT)
    assert (after > before).all()


@pytest.mark.parametrize("source", ["standard", "in_context", "recurrent"])
def test_weights_get_the_gradients_of_a_constant_shift(source: str) -> None:
    """Computed by hand: the decoder reads the encoder's context and a number."""
    model, batch = model_of(source), questions()
    model.decoder.q_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    shift = search_step(model, batch, model.context(batch, None), 0.1, FLOAT)

    def searched(asked: Batch, encoded: Any) -> Tensor:
        return search_step(model, asked, encoded, 0.1, FLOAT)

    carry = empty_carry(model, batch, FLOAT)
    _, output = act_step(model, carry, batch, search=searched)
    found = torch.autograd.grad(loss_of(output), [*model.parameters()], allow_unused=True)
    encoded = model.context(batch, None)
    torch.testing.assert_close(output.encoding.tokens, encoded.tokens)
    moved = replace(encoded, tokens=encoded.tokens + shift.detach())
    _, output = act_step(model, carry, batch, encoded=moved)
    expected = torch.autograd.grad(loss_of(output), [*model.parameters()], allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    plain = act_step(model, carry, batch)[1]
    assert not torch.allclose(plain.logits, output.logits, atol=1e-4)


def loss_of(output: Any) -> Tensor:
    losses = sample_losses(output, questions().labels)
    return (losses.lm + losses.q_halt).sum()


def test_training_is_unchanged_until_the_search_starts() -> None:
    plain, searching = trainer_of(), trainer_of(train={"search_from": 3})
    assert rows_of(searching, 3) == rows_of(plain, 3)
    assert_equal(searching.state_dict(), plain.state_dict())
    rows_of(searching, 1), rows_of(plain, 1)
    weights = [each.model.decoder.lm_head.weight for each in (searching, plain)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("source", "cached"), [("standard", True), ("recurrent", False), ("variational", False)]
)
def test_a_run_resumes_exactly_across_its_first_search(
    source: str, cached: bool, tmp_path: Path
) -> None:
    train = {"search_from": 3, "search_lr": 0.1, "cache_context": cached}
    check_resumption(source, {"train": train, "halting": {"max_steps": 4}}, 5, 2, tmp_path)


@pytest.mark.parametrize("parts", ["two micro-batches", "bounds from the host"])
def test_searches_do_not_depend_on_the_cut_of_a_batch(parts: str) -> None:
    corpus = make_corpus(make_tasks(4))
    states = []
    for cut in (False, True):
        run = make_run(train={"search_from": 0, "search_lr": 0.1})
        execution, compute = ExecutionConfig(), None
        if cut and parts == "two micro-batches":
            execution = ExecutionConfig(micro_batch=3)
        elif cut:
            compute = Compute(packing="bounds")
        model, episodes = build_model(run, corpus.num_puzzles), questions_of(run, corpus)
        trainer = Trainer(run, model, corpus, episodes, execution=execution, compute=compute)
        rows_of(trainer, 3)
        states.append(trainer.state_dict()["model"])
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5), name


@pytest.mark.parametrize("source", ["standard", "in_context"])
def test_no_search_takes_anything_from_the_host(source: str) -> None:
    trainer, _ = on_meta(source, train={"log_every": 100, "steps": 100, "search_from": 0})
    trainer.step()
    with FromHost() as watch:
        trainer.step()
    assert watch.seen == []


@pytest.mark.parametrize("place", ["train", "stages"])
def test_a_table_of_embeddings_cannot_search(place: str) -> None:
    """Where it would: a block for a stage that it does not have says nothing."""
    context = {"source": "embedding"}
    asked: dict[str, Any] = {"search_from": 5}
    parse(ExperimentConfig, {"context": context, "stages": {"full": asked}})
    blocks = {"train": asked} if place == "train" else {"stages": {"pretrain": asked}}
    with pytest.raises(ConfigError, match="search_from"):
        parse(ExperimentConfig, {"context": context, **blocks})
    none: dict[str, Any] = {"pretrain": {"search_from": None}}
    parse(ExperimentConfig, {"context": context, "train": asked, "stages": none})
    parse(ExperimentConfig, {"context": {"source": "standard"}, **blocks})


def test_the_plan_counts_the_steps_that_search() -> None:
    """Two demos, answered with gradients but not of weights: more than a training step."""
    demos = TokenBounds(np.full((1, 2), 18), np.full((1, 2), 9))
    lane = LaneShare(9, 1.0, demos, demos.most_cells())
    train = [{"steps": 8}, {"steps": 8, "search_from": 6}, {"steps": 8, "search_from": 0}]
    plain, late, always = (training(make_run(train=each), Spread((lane,))).flops for each in train)
    assert late - plain == pytest.approx((always - plain) / 4)
    assert plain < always - plain < 2 * plain
