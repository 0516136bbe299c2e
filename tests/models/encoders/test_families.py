"""The differences between families of encoders: sampling, losses, states, sizes of contexts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_batch, make_run, make_trainer
from torch import Tensor

from etrm.config.load import read_study
from etrm.config.registry import CONTEXT_SOURCES, context_source
from etrm.data.batch import Batch
from etrm.models.act import act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.encoders.shared import Bottleneck, mean_over

ROOT = Path(__file__).resolve().parents[3]
VARIATIONAL = [n for n in CONTEXT_SOURCES if n.endswith("variational")]
RECURRENT = ["recurrent", "recurrent_trm"]


def build(name: str, **options: Any) -> Any:
    run = make_run(name, context=options)
    torch.manual_seed(0)
    return context_source(name)(run.context, run.model, 8)


def noisy(batch: Batch, source: Any, seed: int = 0) -> Batch:
    size = source.noise_size(batch.demo_mask.shape[1])
    generator = torch.Generator().manual_seed(seed)
    batch.noise = torch.randn(len(batch), size, generator=generator)
    return batch


# --- variational ---


def test_the_bottleneck_is_its_formula() -> None:
    layer, x = Bottleneck(6, 4), torch.randn(3, 6)
    noise = torch.randn(3, 4)
    sample, kl = layer(x, noise)
    mean, log_var = layer.mean(x), layer.log_var(x)
    normal = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(normal, standard).sum(dim=-1)
    assert torch.allclose(kl, expected, atol=1e-5)
    assert torch.allclose(sample, mean + (0.5 * log_var).exp() * noise, atol=1e-6)
    assert torch.equal(layer(x, None)[0], mean)


def test_log_variances_are_held_within_ten() -> None:
    layer = Bottleneck(6, 4)
    torch.nn.init.constant_(layer.log_var.bias, 1e4)
    _, kl = layer(torch.zeros(1, 6), None)
    assert kl.item() == pytest.approx(0.5 * 4 * (math.exp(10.0) - 11.0), rel=1e-5)


@pytest.mark.parametrize("name", VARIATIONAL)
def test_samples_are_drawn_in_training_only(name: str) -> None:
    source = build(name)
    batches = [noisy(make_batch(3), source, seed) for seed in (0, 1)]
    first, second = (source.train()(b, None).tokens for b in batches)
    assert not torch.allclose(first, second, atol=1e-3)
    first, second, third = (source.eval()(b, None).tokens for b in (*batches, make_batch(3)))
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize("name", VARIATIONAL)
def test_each_act_step_draws_anew_and_a_resumed_run_the_same(name: str) -> None:
    trainer = make_trainer(make_run(name))
    noises = [lane.sampler.batch(step).noise for lane in trainer.lane_slots for step in (1, 2, 1)]
    first, second, again = noises[:3]
    assert first is not None
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, second)  # type: ignore[arg-type]
    assert abs(float(first.mean())) < 0.5
    assert 0.5 < float(first.std()) < 1.5


@pytest.mark.parametrize("name", VARIATIONAL)
def test_kl_is_of_each_sample_whatever_the_batch(name: str) -> None:
    source, batch = build(name).train(), make_batch(4)
    noisy(batch, source)
    whole = source(batch, None).losses["kl"]
    assert whole.shape == (4,)
    assert bool((whole > 0).all())
    for i in range(4):
        one = Batch(**{k: v[i : i + 1] for k, v in batch.tensors().items()}, lane=batch.lane)
        one.noise = batch.noise[i : i + 1]  # type: ignore[index]
        assert torch.allclose(source(one, None).losses["kl"], whole[i : i + 1], rtol=1e-3)


@pytest.mark.parametrize("name", VARIATIONAL)
def test_a_heavy_kl_weight_shrinks_the_kl(name: str) -> None:
    divergence = []
    for weight in (0.0, 1.0):
        train = {"lr": 1e-2, "steps": 12}
        trainer = make_trainer(make_run(name, context={"kl_weight": weight}, train=train))
        for _ in range(12):
            trainer.step()
        divergence.append(trainer.row()["train/kl_loss"])
    assert divergence[1] < 0.5 * divergence[0]


# --- lpn ---


def test_the_lpn_of_the_paper_study_has_the_papers_sizes() -> None:
    """Table 16 of 2411.08706, last version, and parameters counted from LPN's code."""
    experiments = read_study(ROOT / "config/paper.yaml").experiments
    options = experiments["etrm_lpn"].context
    head = options.width // options.heads
    assert (options.layers, options.heads, head, options.latent) == (8, 8, 64, 256)
    assert (options.norm, options.pairing, options.kl_weight) == ("pre", "concat", 1e-4)
    with torch.device("meta"):
        source = context_source(options.source)(options, experiments["etrm_lpn"].model, 1)
    blocks, tables = 8 * (4 + 2 * 4) * 512**2, (30 + 30 + 10 + 2 + 30 + 30 + 1) * 512
    published = blocks + tables + 2 * 512 * 256  # attention and MLP, embeddings, μ and log σ²
    assert published == 25_496_064
    encoder = sum(p.numel() for n, p in source.named_parameters() if not n.startswith("expand"))
    assert published < encoder < 1.1 * published  # SwiGLU has a third map
    for name, experiment in experiments.items():
        if experiment.context.source in ("lpn", "lpn_variational"):
            small = (experiment.context.layers, experiment.context.width) == (2, 128)
            assert small == ("small" in name), name
            assert small or experiment.context == options, name


def test_a_token_has_the_channels_of_the_grids_that_it_shows() -> None:
    batch = make_batch(1, demos=1)
    batch.demo_inputs[0, 0, 3:6] = 0  # the middle row is of the output alone,
    batch.demo_outputs[0, 0, 6:] = 0  # the last one of the input
    for pairing, grids in {
        "aligned": [(1, 1), (0, 1), (1, 0)],
        "concat": [(1, 0), (1, 0), (0, 1), (0, 1)],  # the rows that exist, one grid's by one
    }.items():
        source, seen = build("lpn", pairing=pairing), list[Tensor]()
        torch.nn.init.zeros_(source.encode.places.rows)
        torch.nn.init.zeros_(source.encode.places.columns)
        source.encode.blocks.register_forward_pre_hook(lambda _, x, s=seen: s.append(x[0]))
        source(batch, None)
        ((_, pairs),) = source.pairs.groups(batch)
        added = seen[0][0, 1:] - pairs.tokens[0]  # CLS stands before them
        shown = torch.tensor(grids, dtype=added.dtype).repeat_interleave(3, dim=0)
        assert torch.allclose(added, shown @ source.encode.channels, atol=1e-6)


# --- recurrent ---


@pytest.mark.parametrize("name", RECURRENT)
def test_the_second_step_reaches_the_recurrence(name: str) -> None:
    """The loss of an ACT step after the first gives every parameter of the encoder a gradient."""
    model, batch = build_model(make_run(name), 8), make_batch(3)
    carry, _ = act_step(model, empty_carry(model, batch, torch.float32), batch)
    first = carry.state
    assert first is not None
    assert not first.requires_grad
    carry.halted = torch.zeros_like(carry.halted)
    carry, output = act_step(model, carry, batch)
    assert carry.state is not None
    assert not torch.equal(carry.state, first)
    output.logits.square().sum().backward()
    silent = [n for n, p in model.context.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == (["start"] if name == "recurrent" else [])  # only those that begin start


@pytest.mark.parametrize("name", RECURRENT)
def test_a_state_is_a_samples_own_and_begins_anew(name: str) -> None:
    model, batch = build_model(make_run(name), 8), make_batch(3)
    carry, first = act_step(model, empty_carry(model, batch, torch.float32), batch)
    carry.halted = torch.tensor([True, False, False])
    carry, second = act_step(model, carry, batch)
    assert torch.allclose(second.encoding.tokens[0], first.encoding.tokens[0], atol=1e-5)
    assert not torch.allclose(second.encoding.tokens[1], first.encoding.tokens[1], atol=1e-3)


# --- perceiver ---


@pytest.mark.parametrize(("pairing", "cells"), [("aligned", 9), ("concat", 18)])
def test_the_queries_read_every_real_cell_and_no_other(pairing: str, cells: int) -> None:
    source, batch = build("perceiver", pairing=pairing), make_batch(2, demos=3)
    batch.demo_mask[1, 2] = False
    seen: list[Any] = []
    source.set.register_forward_pre_hook(lambda _, given: seen.extend(given))
    source(batch, None)
    read, mask = seen
    assert read.shape == (2, 3 * cells, 16)
    assert mask.sum(dim=1).tolist() == [3 * cells, 2 * cells]


# --- in context ---


def test_the_decoder_reads_the_cells_of_the_demos() -> None:
    source, batch = build("in_context", layers=0), make_batch(2, demos=2)
    batch.demo_inputs[1, 1] = batch.demo_outputs[1, 1] = 0
    batch.demo_mask[1, 1] = False
    encoded = source(batch, None)
    assert encoded.real.sum(dim=1).tolist() == [1 + 18, 1 + 9]
    assert encoded.places[0, :10].tolist() == [-1, *range(9)]
    assert encoded.places[1, 10:].unique().tolist() == [-1] or not encoded.real[1, 10:].any()


@pytest.mark.parametrize("pairing", ["aligned", "concat"])
@pytest.mark.parametrize("layers", [0, 1])
def test_answers_depend_on_which_demo_a_cell_belongs_to(pairing: str, layers: int) -> None:
    model = build_model(make_run("in_context", context={"pairing": pairing, "layers": layers}), 8)
    keys, batch = ("demo_inputs", "demo_outputs"), make_batch(3)
    exchanged, reordered = make_batch(3), make_batch(3)
    for key in keys:
        before = getattr(batch, key)
        getattr(exchanged, key)[:, :2, :5] = before[:, [1, 0], :5]  # at the same places
        getattr(reordered, key)[:] = before[:, [2, 0, 1]]
    with torch.no_grad():
        usual, moved, same = (
            act_step(model, empty_carry(model, each, torch.float32), each)[1].logits
            for each in (batch, exchanged, reordered)
        )
    assert (moved - usual).norm() > 1e-2 * usual.norm()
    assert (same - usual).norm() < 1e-5 * usual.norm()


def codes(*demos: Tensor) -> Tensor:
    """The codes of demos with these inputs [S], and with outputs of one colour, [K, E]."""
    inputs = torch.stack(demos)[None]
    batch = make_batch(1, demos=len(demos), side=math.isqrt(inputs.shape[-1]))
    batch.demo_inputs, batch.demo_outputs = inputs, torch.full_like(inputs, 5)
    source, found = build("in_context", layers=0), list[Tensor]()
    source.codes.register_forward_hook(lambda _, given, out: found.append(out[0]))
    source(batch, None)
    own = found[0].unflatten(0, (len(demos), -1))  # [K, S, E]
    assert torch.allclose(own, own[:, :1].expand_as(own), atol=1e-6)  # one for all cells of a demo
    return own[:, 0].detach()


def test_a_code_is_of_a_demo_among_others() -> None:
    first, other = make_batch(2, side=10).inputs
    near, turned = first.clone(), first.flip(0)  # one cell differs; the same cells elsewhere
    near[42] = 13 - near[42]
    found = codes(first, near, other, turned)
    distances = torch.cdist(found, found) / math.sqrt(found.shape[1])
    assert distances[~torch.eye(4, dtype=torch.bool)].min() > 0.5
    again = codes(other, first, turned, near)[[1, 3, 0, 2]]
    assert torch.allclose(again, found, atol=1e-5)
    assert torch.allclose(*codes(first, first, other)[:2], atol=1e-4)
    assert not codes(first).any()


def test_cells_that_do_not_exist_change_no_answer() -> None:
    model = build_model(make_run("in_context"), 8).eval()
    batch = make_batch(2, demos=2)
    carry = empty_carry(model, batch, torch.float32)
    with torch.no_grad():
        _, usual = act_step(model, carry, batch)
        room = {
            key: torch.cat([batch.tensors()[key], torch.zeros(2, 3, 9).long()], dim=1)
            for key in ("demo_inputs", "demo_outputs")
        }
        mask = torch.cat([batch.demo_mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
        more = Batch(**{**batch.tensors(), **room, "demo_mask": mask}, lane=batch.lane)
        _, found = act_step(model, empty_carry(model, more, torch.float32), more)
    assert torch.allclose(found.logits, usual.logits, atol=1e-3)


def test_mean_over_real_demos() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert mean_over(x, mask).tolist() == [[1.0, 2.0], [10.0, 11.0]]
