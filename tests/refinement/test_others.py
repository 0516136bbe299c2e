"""Test-time training, more ACT steps, and the counts of FLOPs by which methods are compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_search import HALTING, make_model, part, questions, settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from etrm.evaluation.decode import decode
from etrm.refinement.costs import Costs
from etrm.refinement.demos import demo_likelihood
from etrm.refinement.others import fine_tune, more_act_steps
from etrm.refinement.search import refine


@pytest.mark.parametrize(
    ("source", "tuned"), [("standard", "encoder"), ("in_context", "all"), ("recurrent_trm", "all")]
)
def test_every_question_is_tuned_for_itself_and_weights_are_restored(
    source: str, tuned: str
) -> None:
    model, batch = make_model(source).train(), questions()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = settings(tuned=tuned, tuning_lr=1e-2, steps=[0, 3])
    found = fine_tune(model, batch, HALTING, config)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    start, after = found.attempts[0], found.attempts[3]
    assert (after.likelihood[0] > start.likelihood[0]).all()
    alone = fine_tune(model, part(batch, [1]), HALTING, config).attempts[3]
    torch.testing.assert_close(after.likelihood[:, 1:], alone.likelihood, rtol=1e-3, atol=1e-4)
    searched = refine(model, batch, HALTING, settings(steps=[0])).attempts[0]
    torch.testing.assert_close(start.tokens[0], searched.tokens[0])
    torch.testing.assert_close(start.likelihood[0], searched.likelihood[0])


def test_tuning_stops_where_the_demos_are_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model("standard"), questions(1)
    given = demo_likelihood

    def solved(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return given(*args)[0], torch.ones(1, dtype=torch.float64)

    monkeypatch.setattr("etrm.refinement.others.demo_likelihood", solved)
    for until, moved in ((True, False), (False, True)):
        config = settings(tuning_lr=1e-2, steps=[0, 2], until_solved=until)
        found = fine_tune(model, batch, HALTING, config).attempts
        assert bool(found[2].likelihood[0] > found[0].likelihood[0]) == moved


def test_weights_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model("standard"), questions()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(*_: object) -> None:
        if any(not torch.equal(before[n], t) for n, t in model.state_dict().items()):
            raise KeyboardInterrupt
        return real(*_)

    real = decode
    monkeypatch.setattr("etrm.refinement.others.decode", fail)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model, batch, HALTING, settings(steps=[0, 2]))
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize("source", ["standard", "recurrent"])
def test_more_act_steps_cost_what_the_search_would(source: str) -> None:
    """The first question has three demos, the other two: each has its own number of ACT steps."""
    model, batch, config = make_model(source), questions(), settings(steps=[0, 2])
    costs = Costs.of(model, batch, HALTING, config)
    three, two = costs.more_act_steps(2)
    assert three > two > 0
    assert three * costs.act_step == pytest.approx(2 * costs.step("search")[0], rel=0.2)
    found = more_act_steps(model, batch, HALTING, config)
    for row, more in ((0, three), (1, two)):
        longer = replace(HALTING, max_steps=HALTING.max_steps + more)
        output, _ = decode(model, part(batch, [row]), longer)
        expected = output.logits.argmax(dim=-1)[0]
        assert torch.equal(found.attempts[2].tokens[0, row].long(), expected)
    usual, _ = decode(model, batch, HALTING)
    assert torch.equal(found.attempts[0].tokens[0].long(), usual.logits.argmax(dim=-1))


def test_the_flops_of_a_step_are_those_that_pytorch_counts() -> None:
    """By the difference of two searches: encodings and answers are in both."""
    model, batch = make_model("in_context"), questions(2)
    config, counted = settings(act_steps=2, perturbed_starts=1), []
    for last in (1, 2):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            refine(model, batch, replace(HALTING, max_steps=1), replace(config, steps=(0, last)))
        counted.append(counter.get_total_flops())
    costs = Costs.of(model, batch, HALTING, config)
    assert sum(costs.step("search")) == pytest.approx(counted[1] - counted[0], rel=0.05)
