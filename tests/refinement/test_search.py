"""Latent search: its objective, its promises, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import make_batch, make_run

from etrm.config.refinement import RefinementConfig
from etrm.config.registry import CONTEXT_SOURCES
from etrm.config.schema import ConfigError, parse
from etrm.config.study import HaltingConfig
from etrm.data.batch import Batch
from etrm.evaluation.decode import decode
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.models.losses import sample_losses
from etrm.refinement.demos import demo_likelihood, leave_one_out
from etrm.refinement.search import Points, Refined, choose, refine
from etrm.refinement.spaces import LatentSpace, TokenSpace

HALTING = HaltingConfig(max_steps=3)
STEPS = {"steps": [0, 1, 3], "lr": 0.3}
VARIATIONAL = [name for name in CONTEXT_SOURCES if name.endswith("variational")]


def settings(**changes: Any) -> RefinementConfig:
    config: RefinementConfig = parse(RefinementConfig, STEPS | changes)
    return config


def make_model(source: str, **blocks: Any) -> Model:
    """A model that has not been trained, but whose answers depend on its context."""
    model = build_model(make_run(source, **blocks), num_puzzles=8)
    if source == "embedding":
        generator = torch.Generator().manual_seed(0)
        model.context.weights.copy_(torch.randn(8, 16, generator=generator))
    return model


def questions(size: int = 2, demos: int = 3) -> Batch:
    """Random questions; the last has a demo less, and a cell of a demo is PAD."""
    batch = make_batch(size, demos)
    batch.demo_mask[-1, -1] = demos == 1
    batch.demo_inputs[0, 0, -1] = batch.demo_outputs[0, 0, -1] = 0
    return batch


def part(batch: Batch, rows: list[int]) -> Batch:
    return Batch(**{n: t[rows] for n, t in batch.tensors().items()}, lane=batch.lane)


@pytest.mark.parametrize("source", CONTEXT_SOURCES)
def test_more_steps_never_make_the_demos_less_likely(source: str) -> None:
    model, batch = make_model(source), questions()
    config = settings(demo_starts=1, perturbed_starts=1, random_starts=1)
    found = refine(model, batch, HALTING, config)
    best = torch.stack(found.best)  # [steps, R, B]
    assert best.shape == (4, 4, 2)
    assert (best.diff(dim=0) >= 0).all()
    assert (best[-1, 0] > best[0, 0]).all()  # from the encoder's own context
    start = found.best[0].max(dim=0).values
    for steps, attempts in found.attempts.items():
        assert (attempts.likelihood[0] >= start).all()
        torch.testing.assert_close(attempts.likelihood[0], best[steps].max(dim=0).values)
        assert (attempts.likelihood[0] >= attempts.likelihood[1]).all()


@pytest.mark.parametrize("source", CONTEXT_SOURCES)
def test_without_a_step_the_answer_is_that_of_the_evaluation(source: str) -> None:
    """And the score is that of its demos, each asked about beside the others."""
    model, batch = make_model(source).eval(), questions()
    attempts = refine(model, batch, HALTING, settings(steps=[0])).attempts[0]
    output, _ = decode(model, batch, HALTING)
    torch.testing.assert_close(attempts.tokens[0].long(), output.logits.argmax(dim=-1))
    torch.testing.assert_close(attempts.q_halt[0], output.q_halt)
    shown = part(batch, [0, 0, 0, 1, 1])
    for row, demo in enumerate((0, 1, 2, 0, 1)):
        shown.inputs[row] = shown.demo_inputs[row, demo]
        shown.labels[row] = shown.demo_outputs[row, demo]
        shown.demo_mask[row, demo] = False
    one, _ = decode(model, shown, replace(HALTING, max_steps=1))
    losses = -sample_losses(one, shown.labels).lm
    expected = torch.stack([losses[:3].mean(), losses[3:].mean()])
    torch.testing.assert_close(attempts.likelihood[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["perceiver", "in_context"])
def test_a_result_depends_on_nothing_else_in_its_batch(source: str) -> None:
    """Nor on labels, nor on empty slots of demos; random starts and directions are its own."""
    model, batch = make_model(source), questions(3)
    config = settings(perturbed_starts=1, random_starts=1)
    together = refine(model, batch, HALTING, config)
    alone = refine(model, replace(part(batch, [2]), labels=batch.labels[:1]), HALTING, config)
    fewer = part(batch, [2])
    cut = {"demo_inputs": fewer.demo_inputs[:, :2], "demo_outputs": fewer.demo_outputs[:, :2]}
    fewer = replace(fewer, **cut, demo_mask=fewer.demo_mask[:, :2])
    short = refine(model, fewer, HALTING, config)
    for other in (alone, short):
        for ours, theirs in zip(together.best, other.best, strict=True):
            torch.testing.assert_close(ours[:, 2:], theirs, rtol=1e-3, atol=1e-4)
    wild = refine(model, batch, HALTING, config, lengths=together.lengths).best[-1]
    lone = refine(model, part(batch, [2]), HALTING, config, lengths=alone.lengths).best[-1]
    torch.testing.assert_close(wild[:, 2:], lone, rtol=1e-3, atol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model, batch = make_model("standard").train(), questions()
    model.decoder.lm_head.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    refine(model, batch, HALTING, settings())
    assert model.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_random_directions_are_as_long_as_the_steps_of_the_search() -> None:
    model, batch = make_model("standard"), questions()
    guided = refine(model, batch, HALTING, settings())
    control = refine(model, batch, HALTING, settings(), lengths=guided.lengths)
    torch.testing.assert_close(torch.stack(control.lengths), torch.stack(guided.lengths))
    assert torch.stack(guided.lengths)[1:].min() > 0
    assert (torch.stack(control.best).diff(dim=0) >= 0).all()
    assert (guided.best[-1] > control.best[-1]).all()  # gradients are better than chance


def test_cells_keep_their_shift_in_the_context_without_a_demo() -> None:
    model, batch = make_model("in_context").eval(), questions()
    demos = leave_one_out(batch)
    with torch.no_grad():
        space = TokenSpace(model, batch, demos, 1)
        alone = space.of_demo(0)
    every, rest = space.all, space.others[0]
    assert every.real is not None
    assert every.places is not None
    assert every.demos is not None
    assert rest.real is not None
    assert rest.places is not None
    assert rest.demos is not None
    name = 100.0 * every.demos + every.places  # of each cell
    moved = space.contexts(name[..., None].expand_as(every.tokens))[0].tokens - rest.tokens
    expected = (100.0 * rest.demos + rest.places)[..., None].expand_as(moved)
    torch.testing.assert_close(moved[rest.real], expected[rest.real], rtol=0, atol=1e-3)
    assert rest.real.sum() < every.real[demos.sample].sum()
    mine = (every.demos <= 0) & every.real  # those of demo 0, and the learned token
    assert (alone[mine].abs().sum(dim=-1) > 0).sum() >= mine.sum() - len(batch)
    assert (alone[~mine] == 0).all()


def test_tokens_of_fewer_samples_stay_where_they_are() -> None:
    """Also where the samples that are gone have more cells, by which the others were laid out."""
    model, batch = make_model("in_context").eval(), questions()
    batch.demo_inputs[1, 0, :4] = batch.demo_outputs[1, 0, :4] = 0
    with torch.no_grad():
        space = TokenSpace(model, batch, leave_one_out(batch), 1)
        few = space.narrow(torch.tensor([False, True]))
        shift = torch.randn_like(space.origin)
        every, some = space.contexts(shift)[0], few.contexts(shift[1:])[0]
    rows = space.demos.sample == 1
    assert len(some.tokens) == rows.sum()
    torch.testing.assert_close(some.tokens, every.tokens[rows])
    assert few.demos.batch.labels.equal(space.demos.batch.labels[rows])
    numbers = torch.tensor([0, 3])
    torch.testing.assert_close(few.noise(1, numbers[1:]), space.noise(1, numbers)[1:])


def test_only_the_token_of_an_embedding_is_moved() -> None:
    model, batch = make_model("embedding").eval(), questions()
    space = TokenSpace(model, batch, leave_one_out(batch), 1)
    moved = space.contexts(torch.ones_like(space.origin))[0].tokens - space.others[0].tokens
    torch.testing.assert_close(moved[:, 0], torch.ones_like(moved[:, 0]))
    assert (moved[:, 1:] == 0).all()


@pytest.mark.parametrize("source", VARIATIONAL)
def test_a_latent_is_searched_behind_the_encoder(source: str) -> None:
    model, batch = make_model(source), questions()
    found = refine(model, batch, HALTING, settings(space="latent", demo_starts=1, lr=0.03))
    best = torch.stack(found.best)
    assert (best.diff(dim=0) >= 0).all()
    assert (best[-1] > best[0]).all()
    with torch.no_grad():
        space = LatentSpace(model.eval(), batch, leave_one_out(batch), 1)
        tokens = space.shifted(space.of_demo(1))(batch, None).tokens
        single = replace(batch, demo_mask=batch.demo_mask & torch.tensor([False, True, False]))
        expected = model.context(single, None).tokens
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-4)


def test_a_single_demo_is_its_own() -> None:
    model, batch = make_model("standard").eval(), questions(2, demos=1)
    demos = leave_one_out(batch)
    assert demos.batch.demo_mask.all()
    score, _ = demo_likelihood(model, demos, [model.context(demos.batch, None)], 1, torch.float32)
    found = refine(model, batch, HALTING, settings(steps=[0]))
    torch.testing.assert_close(found.best[0][0], score.detach())


def test_attempts_are_the_two_best_grids() -> None:
    """Of two starts and two pools: one question, canvases of one row and two cells."""

    def points(likelihood: list[float], tokens: list[list[int]]) -> Points:
        zeros = torch.zeros(2)
        return Points(
            torch.tensor(likelihood), zeros, torch.tensor(tokens, dtype=torch.uint8), zeros
        )

    now, first = points([-0.1, -0.2], [[2, 3], [2, 3]]), points([-0.5, -0.4], [[5, 5], [4, 1]])
    chosen = choose((now, first), starts=2, shape=(1, 2))
    assert chosen.tokens.tolist() == [[[2, 3]], [[4, 1]]]
    torch.testing.assert_close(chosen.likelihood, torch.tensor([[-0.1], [-0.4]]))
    alone = choose((now,), starts=2, shape=(1, 2))
    assert alone.tokens.tolist() == [[[2, 3]], [[2, 3]]]


@pytest.mark.parametrize(
    "wrong", [{"steps": [10, 50]}, {"steps": [0, 50, 10]}, {"methods": ["random"]}]
)
def test_settings_that_make_no_sense_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings(**wrong)


def test_a_result_is_of_its_type() -> None:
    found = refine(make_model("standard"), questions(), HALTING, settings(steps=[0, 2]))
    assert isinstance(found, Refined)
    assert list(found.attempts) == [0, 2]
    assert found.attempts[2].tokens.shape == (2, 2, 9)
    assert found.attempts[2].tokens.dtype == torch.uint8


def test_a_start_stops_where_its_demos_are_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two questions, whose demos count as solved from the second step on, and never."""
    model, batch = make_model("standard"), questions()
    given, asked = demo_likelihood, list[int]()
    kept = refine(model, batch, HALTING, settings(steps=[0, 4], until_solved=False))

    def solved(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        likelihood, _ = given(*args)
        asked.append(len(likelihood))
        exact = torch.tensor([float(len(asked) >= 2), 0.5], dtype=torch.float64)
        return likelihood, exact[-len(likelihood) :]

    monkeypatch.setattr("etrm.refinement.search.demo_likelihood", solved)
    found = refine(model, batch, HALTING, settings(steps=[0, 4]))
    assert asked == [2, 2, 1, 1, 1]  # nothing is computed for those that have stopped
    lengths, free = torch.stack(found.lengths), torch.stack(kept.lengths)
    assert lengths[1, 0] > 0
    assert (lengths[1:, 0] == lengths[1, 0]).all()
    torch.testing.assert_close(lengths[:, 1], free[:, 1])  # the other goes on as it would
    assert (free[1:].diff(dim=0) != 0).all()
    torch.testing.assert_close(found.best[-1][:, 1], kept.best[-1][:, 1])


def test_a_search_ends_where_all_have_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, asked = make_model("standard"), questions(), list[int]()

    def solved(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(1)
        return demo_likelihood(*args)[0], torch.ones(2, dtype=torch.float64)

    monkeypatch.setattr("etrm.refinement.search.demo_likelihood", solved)
    found = refine(model, batch, HALTING, settings(steps=[0, 4]))
    control = refine(model, batch, HALTING, settings(steps=[0, 4]), lengths=found.lengths)
    assert len(asked) == 2
    assert len(found.best) == len(control.best) == 5
    for each in (found, control):
        assert torch.equal(each.attempts[4].tokens, each.attempts[0].tokens)
