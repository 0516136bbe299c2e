"""The ACT step: the carry of a sample, halting, detached states, cached encodings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import make_batch, make_run, make_trainer
from torch import Tensor

from etrm.config.study import HaltingConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.models.act import Carry, Model, StepOutput, act_step, decide_halting, empty_carry
from etrm.models.build import build_model
from etrm.models.encoders.base import ContextSource, Encoded
from etrm.models.losses import sample_losses

CONFIG = HaltingConfig(max_steps=5, exploration_prob=0.4)


def model_of(source: str = "standard", **blocks: Any) -> Model:
    return build_model(make_run(source, **blocks), 8)


class Counter(ContextSource):
    """A source with a state: how many ACT steps a sample has had."""

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(self, batch: Batch, state: Tensor | None) -> Encoded:
        assert state is not None
        after = state + 1.0
        tokens = after[:, :, None].expand(-1, self.model.context_tokens, self.model.width)
        return Encoded(tokens, after.requires_grad_(), {"extra": after[:, 0]})


def with_states() -> Model:
    model = model_of()
    return Model(Counter(None, model.config, 1), model.decoder)


# --- the carry ---


def test_free_slots_take_new_samples_and_the_others_keep_all_of_theirs() -> None:
    model = model_of()
    first, second = make_batch(4, seed=1), make_batch(4, seed=2)
    carry, _ = act_step(model, empty_carry(model, first, torch.float32), first)
    held = carry.batch.tensors()
    assert all(torch.equal(held[name], tensor) for name, tensor in first.tensors().items())
    carry.halted = torch.tensor([False, True, False, True])
    carry, _ = act_step(model, carry, second)
    for name, tensor in carry.batch.tensors().items():
        assert torch.equal(tensor[[0, 2]], first.tensors()[name][[0, 2]]), name
        assert torch.equal(tensor[[1, 3]], second.tensors()[name][[1, 3]]), name
    assert carry.steps.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_sample_computes_the_same_whatever_its_neighbours_do(source: str) -> None:
    """Slot 0 goes on while slot 1 restarts; both equal runs of their own."""
    model = model_of(source).eval()
    first, second = make_batch(2, seed=1), make_batch(2, seed=2)
    carry, _ = act_step(model, empty_carry(model, first, torch.float32), first)
    carry.halted = torch.tensor([False, True])
    carry, mixed = act_step(model, carry, second)

    alone, _ = act_step(model, empty_carry(model, first, torch.float32), first)
    alone.halted = torch.zeros(2, dtype=torch.bool)
    _, gone_on = act_step(model, alone, second)
    _, restarted = act_step(model, empty_carry(model, second, torch.float32), second)
    assert torch.allclose(mixed.logits[0], gone_on.logits[0], atol=1e-5)
    assert torch.allclose(mixed.logits[1], restarted.logits[1], atol=1e-5)
    assert not torch.allclose(mixed.logits[0], restarted.logits[0], atol=1e-3)


def test_losses_of_a_trainer_are_against_the_labels_in_the_carry() -> None:
    """Every slot's loss is that of the sample it holds, never that of the incoming batch."""
    trainer = make_trainer(make_run(halting={"max_steps": 5, "exploration_prob": 1.0}))
    going_on = 0
    for _ in range(6):
        trainer.step_number += 1
        for lane in trainer.lane_slots:
            held, going = lane.carry.batch, ~lane.carry.halted
            incoming = lane.sampler.batch(trainer.step_number)
            output, losses, _ = trainer._forward_backward(lane)
            assert torch.equal(lane.carry.batch.labels[going], held.labels[going])
            assert torch.equal(lane.carry.batch.labels[~going], incoming.labels[~going])
            again = sample_losses(output, lane.carry.batch.labels)
            assert torch.equal(losses.lm, again.lm)
            wrong = sample_losses(output, incoming.labels)
            going_on += int((losses.lm != wrong.lm)[going].sum())
    assert going_on > 3


def test_a_state_of_the_source_is_carried_restarted_and_detached() -> None:
    model = with_states()
    batch = make_batch(3)
    carry, output = act_step(model, empty_carry(model, batch, torch.float32), batch)
    assert carry.state is not None
    assert output.losses["extra"].tolist() == [1, 1, 1]
    carry.halted = torch.tensor([False, True, False])
    carry, output = act_step(model, carry, batch)
    assert output.losses["extra"].tolist() == [2, 1, 2]
    assert carry.state.flatten().tolist() == [2, 1, 2]
    assert not carry.state.requires_grad


@pytest.mark.parametrize("cached", [False, True])
def test_the_carry_is_detached(cached: bool) -> None:
    model = model_of()
    batch = make_batch(3)
    carry, output = act_step(model, empty_carry(model, batch, torch.float32), batch, cached)
    assert output.logits.requires_grad
    assert output.encoding.tokens.requires_grad
    tensors = [getattr(carry, field.name) for field in dataclasses.fields(Carry)]
    tensors = [t for t in tensors if isinstance(t, Tensor)] + [*carry.batch.tensors().values()]
    assert not any(t.requires_grad for t in tensors)
    assert (carry.context is not None) == cached


def test_an_encoding_that_is_given_is_used() -> None:
    model = model_of().eval()
    batch = make_batch(2)
    carry = empty_carry(model, batch, torch.float32)
    usual = act_step(model, carry, batch)[1]
    given = act_step(model, carry, batch, encoded=model.context(batch, None))[1]
    other = act_step(model, carry, batch, encoded=Encoded(torch.zeros_like(usual.encoding.tokens)))[
        1
    ]
    assert torch.equal(given.logits, usual.logits)
    assert not torch.equal(other.logits, usual.logits)


# --- halting ---


def reference_halt(
    step: int, q: float, config: HaltingConfig, explore: float, minimum: float
) -> bool:
    """Official TRM's rule for one sample, its random integer made from a uniform number."""
    if config.max_steps == 1:
        return True
    halted = step >= config.max_steps or q > 0
    low, high = 2, config.max_steps  # of `randint(low=2, high=halt_max_steps + 1)`
    least = low + int(minimum * (high - low + 1)) if explore < config.exploration_prob else 0
    return halted and step >= least


@pytest.mark.parametrize("max_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("exploration", [0.0, 0.4, 1.0])
def test_halting_is_the_official_rule(max_steps: int, exploration: float) -> None:
    config = HaltingConfig(max_steps=max_steps, exploration_prob=exploration)
    generator = torch.Generator().manual_seed(0)
    count = 4000
    steps = torch.randint(1, max_steps + 1, (count,), generator=generator)
    q = torch.randn(count, generator=generator)
    q[:5] = 0.0
    explore, minimum = torch.rand(2, count, generator=generator, dtype=torch.float64)
    found = decide_halting(steps, q, config, explore, minimum)
    rows = zip(steps.tolist(), q.tolist(), explore.tolist(), minimum.tolist(), strict=True)
    assert found.tolist() == [reference_halt(s, v, config, e, m) for s, v, e, m in rows]


def test_every_sample_halts_at_the_limit() -> None:
    steps = torch.full((1000,), CONFIG.max_steps)
    explore, minimum = torch.zeros(1000), torch.linspace(0, 1, 1000)  # 1.0 itself included
    assert bool(decide_halting(steps, torch.full((1000,), -9.0), CONFIG, explore, minimum).all())


def test_exploration_delays_its_share_by_a_uniform_number_of_steps() -> None:
    """Samples whose q-head says stop at once halt after 1 step, or after 2..max uniformly."""
    slots = torch.arange(20_000)
    explore = random.uniform(0, 1, random.EXPLORE, slots)[:, 0]
    minimum = random.uniform(0, 1, random.MINIMUM, slots)[:, 0]
    certain = torch.ones(len(slots))
    first = torch.zeros(len(slots), dtype=torch.int64)
    for step in range(CONFIG.max_steps, 0, -1):
        halts = decide_halting(torch.full_like(slots, step), certain, CONFIG, explore, minimum)
        first[halts] = step
    share = first.bincount(minlength=6)[1:] / len(slots)
    expected = [0.6, 0.1, 0.1, 0.1, 0.1]
    assert share.tolist() == pytest.approx(expected, abs=0.015)


def test_a_trainer_explores_with_fresh_numbers_at_every_step() -> None:
    trainer = make_trainer(make_run())
    lane = trainer.lane_slots[0]
    lane.carry.steps = torch.full((len(lane.slots),), 2)
    halted = []
    for trainer.step_number in range(200):
        certain = torch.ones(len(lane.slots))
        halted.append(trainer._halting(lane.carry, certain, lane.slots, CONFIG))
    share = torch.stack(halted).float().mean(dim=0)
    # Goes on where it explores (0.4) and asks for 3, 4 or 5 of 2..5 steps.
    assert float(share.mean()) == pytest.approx(0.7, abs=0.05)
    assert bool(((share > 0.55) & (share < 0.85)).all())


# --- cached encodings ---


def gradients_of(model: Model, output: StepOutput, row: int) -> float:
    """Norm of the context source's gradient from one sample."""
    model.zero_grad()
    output.logits[row].square().sum().backward(retain_graph=True)
    found = [p.grad.norm() for p in model.context.parameters() if p.grad is not None]
    return float(torch.stack(found).norm()) if found else 0.0


@pytest.mark.parametrize("cached", [False, True])
def test_a_cached_encoding_gives_gradients_at_the_first_step_only(cached: bool) -> None:
    model = model_of()
    first, second = make_batch(4, seed=1), make_batch(4, seed=2)
    carry = empty_carry(model, first, torch.float32)
    carry, output = act_step(model, carry, first, cache_context=cached)
    assert output.encoded.tolist() == [True] * 4
    before = output.encoding.tokens.detach().clone()
    carry.halted = torch.tensor([False, True, False, True])
    with torch.no_grad():
        for p in model.context.parameters():
            p.mul_(1.5)
    carry, output = act_step(model, carry, second, cache_context=cached)
    fresh = [not cached, True, not cached, True]
    anew = model.context(carry.batch, None).tokens
    assert output.encoded.tolist() == fresh
    for row, encoded in enumerate(fresh):
        assert torch.equal(output.encoding.tokens[row], (anew if encoded else before)[row])
        assert (gradients_of(model, output, row) > 0.0) == encoded


def test_a_whole_task_of_one_demo_works() -> None:
    model, batch = model_of(), make_batch(2, demos=1)
    _, output = act_step(model, empty_carry(model, batch, torch.float32), batch)
    assert bool(torch.isfinite(output.logits).all())
