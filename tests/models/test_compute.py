"""Every way of computing has the results of the plain one, but for the last digits."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest
import torch
from flash_on_cpu import use_flash
from tiny import make_corpus, make_run, make_tasks, questions_of, two_lanes
from torch import Tensor, nn

from etrm.config.execution import ExecutionConfig
from etrm.config.registry import encoders
from etrm.data.batch import Batch
from etrm.data.episodes import Sampler
from etrm.models import layers
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.compute import Compute, compile_blocks, compiles, computing
from etrm.models.layers import Block, Linear, Segments, attend, attend_within
from etrm.models.losses import sample_losses
from etrm.training.trainer import Trainer

# A short recursion: each application of the network, untrained, multiplies rounding errors.
SHORT = {"H_cycles": 1, "L_cycles": 1}


def setting(source: str = "standard", side: int = 5, **context: Any) -> tuple[Model, Batch]:
    """A model and a batch of tasks whose demos differ in number and size."""
    tasks = [*make_tasks(6, side=2), *make_tasks(6, seed=1, side=4, prefix="larger")]
    corpus = make_corpus(tasks)
    run = make_run(source, model=SHORT, context=context, episodes={"canvas": [side]})
    (lane,) = questions_of(run, corpus)
    sampler = Sampler(corpus, lane, torch.arange(9), 0, run.episodes)
    batch = sampler.batch(1)
    batch.token_bounds = sampler.episodes.token_bounds(sampler.members(1))
    return build_model(run, corpus.num_puzzles), batch


def loss_and_gradient(model: Model, batch: Batch, compute: Compute) -> tuple[float, Tensor]:
    """The loss of a first ACT step, and all of its gradients."""
    model.zero_grad(set_to_none=True)
    with computing(model, compute):
        _, output = act_step(model, empty_carry(model, batch, compute.dtype), batch)
    loss = sample_losses(output, batch.labels).total(0.5, model.context.loss_weights).mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat([g.flatten() for g in gradients])


def attended_within(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of a row in each attention within segments, as they come."""
    seen: list[int] = []

    def listen(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        seen.append(q.shape[1])
        return attend_within(q, k, v, segments)

    monkeypatch.setattr(layers, "attend_within", listen)
    return seen


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("pairing", ["aligned", "concat"])
@pytest.mark.parametrize("packing", ["exact", "bounds", "auto"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention", "weighted"])
def test_packed_demos_give_what_padded_ones_give(pairing: str, packing: str, pooling: str) -> None:
    model, batch = setting(pairing=pairing, pooling=pooling)
    loss, gradient = loss_and_gradient(model, batch, Compute(packing="none"))
    found, of_packed = loss_and_gradient(model, batch, Compute(packing=packing))
    assert found == pytest.approx(loss, rel=1e-6)
    assert distance(of_packed, gradient) < 1e-5


@pytest.mark.parametrize("packing", ["exact", "bounds", "none"])
@pytest.mark.parametrize("source", encoders())
def test_packing_and_cells_of_the_lane_change_no_result(source: str, packing: str) -> None:
    model, batch = setting(source)
    whole = replace(batch, most_cells=None)  # a context of cells has room for all of the canvas
    loss, gradient = loss_and_gradient(model, whole, Compute(packing="none"))
    found, of_packed = loss_and_gradient(model, batch, Compute(packing=packing))
    assert found == pytest.approx(loss, rel=1e-6)
    assert distance(of_packed, gradient) < 2e-5


@pytest.mark.parametrize("packing", ["exact", "bounds", "none"])
@pytest.mark.parametrize("source", encoders())
def test_segments_give_what_masks_give(
    source: str, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose flash kernels take no mask; here with a plain kernel of the operator."""
    model, batch = setting(source)
    loss, gradient = loss_and_gradient(model, batch, Compute(packing=packing))
    use_flash(monkeypatch)
    seen = attended_within(monkeypatch)
    found, of_segments = loss_and_gradient(model, batch, Compute(packing=packing))
    assert seen
    assert found == pytest.approx(loss, rel=1e-6)
    assert distance(of_segments, gradient) < 2e-5


@pytest.mark.parametrize("source", encoders())
def test_flash_kernels_are_lost_to_no_mask(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No attention among cells has one; only learned queries do, which are few."""
    model, batch = setting(source)
    use_flash(monkeypatch)
    seen: list[int] = []

    def listen(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            seen.append(q.shape[1])
        return attend(q, k, v, mask)

    monkeypatch.setattr(layers, "attend", listen)
    loss_and_gradient(model, batch, Compute(packing="bounds"))
    few = max(8, model.config.context_tokens, batch.demo_mask.shape[1])  # 8: inducing points
    assert max(seen, default=0) <= few < batch.inputs.shape[1]


@pytest.mark.parametrize("packing", ["exact", "bounds"])
def test_packing_computes_fewer_tokens(packing: str) -> None:
    model, batch = setting()
    tokens = {}
    for way in ("none", packing):
        with computing(model, Compute(packing=way)):
            groups = list(model.context.pairs.groups(batch))
        tokens[way] = sum(pairs.tokens.shape[:2].numel() for _, pairs in groups)
        rows = torch.cat([rows for rows, _ in groups])
        assert len(rows.unique()) == len(rows)
    real = int((batch.demo_inputs > 0).sum() + (batch.demo_outputs > 0).sum())
    assert real <= tokens[packing] < 0.6 * tokens["none"]


def test_demos_beyond_the_mask_are_not_looked_at() -> None:
    """A demo that does not exist can hold anything."""
    model, batch = setting()
    before = model.context(batch, None).tokens
    batch.demo_inputs[~batch.demo_mask] = 7
    batch.demo_outputs[~batch.demo_mask] = 3
    for packing in ("none", "exact", "bounds"):
        with computing(model, Compute(packing=packing)):
            assert torch.allclose(model.context(batch, None).tokens, before, atol=1e-5)


def test_hoisted_casts_give_what_a_cast_at_each_use_gives() -> None:
    model, batch = setting()
    bf16 = torch.bfloat16
    loss, gradient = loss_and_gradient(model, batch, Compute(bf16, hoist=False))
    found, of_hoisted = loss_and_gradient(model, batch, Compute(bf16))
    assert found == loss  # the same numbers go forward
    assert distance(of_hoisted, gradient) < 2.0**-7  # gradients of uses are summed in bf16
    exact, _ = loss_and_gradient(model, batch, Compute())
    assert found != exact
    assert found == pytest.approx(exact, rel=0.02)


def test_weights_are_cast_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = setting()
    seen: set[int] = set()
    calls = 0
    forward = Linear.forward

    def listen(layer: Linear, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert layer.hoisted is not None
        assert layer.hoisted.dtype == x.dtype == torch.bfloat16
        seen.add(id(layer.hoisted))
        return forward(layer, x)

    monkeypatch.setattr(Linear, "forward", listen)
    loss_and_gradient(model, batch, Compute(torch.bfloat16))
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    assert len(seen) == len(layers) < calls
    assert all(layer.hoisted is None for layer in layers)


def test_a_model_is_left_as_it_was_also_after_an_error() -> None:
    model, batch = setting()
    before = model.context(batch, None).tokens
    with pytest.raises(ZeroDivisionError), computing(model, Compute(torch.bfloat16, True, "none")):
        _ = 1 / 0
    assert torch.equal(model.context(batch, None).tokens, before)
    assert all(p.dtype == torch.float32 for p in model.parameters())


# --- compilation ---


def test_compilation_is_for_gpus_unless_asked_for() -> None:
    devices = torch.device("cpu"), torch.device("cuda")
    wanted = {w: [compiles(w, d) for d in devices] for w in ("auto", "on", "off")}
    assert wanted == {"auto": [False, True], "on": [True, True], "off": [False, False]}


@pytest.fixture
def few_graphs() -> Iterator[None]:
    """An error where shapes that change cost a graph each; code for any processor."""
    torch._dynamo.reset()
    limit = torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True)
    with limit, torch._inductor.config.patch({"cpp.vec_isa_ok": False}):  # no programs probe it
        yield


COMPILED = {
    "standard": ["context.blocks.0", "context.set.blocks.0", "decoder.L_level"],
    "cross_attention": [
        *("context.across.0", "context.set.blocks.0", "context.within.0", "decoder.L_level"),
    ],
    "in_context": ["context.blocks.0", "decoder.L_level"],
}


@pytest.mark.parametrize("source", COMPILED)
def test_networks_and_the_blocks_outside_of_them_are_compiled(source: str) -> None:
    model, _ = setting(source)
    compile_blocks(model)
    compiled = [n for n, m in model.named_modules() if m._compiled_call_impl is not None]
    assert sorted(compiled) == COMPILED[source]


@pytest.mark.usefixtures("few_graphs")
@pytest.mark.parametrize("flash", [False, True], ids=["masks", "segments"])
@pytest.mark.parametrize("source", ["cross_attention", "in_context"])
def test_lanes_packings_and_micro_batches_share_a_handful_of_graphs(
    source: str, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a compiler, and run without one; the blocks of others are among these."""
    if flash:
        use_flash(monkeypatch)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    sizes = {"width": 24, "heads": 1}  # equal to no other size, as sizes that happen to be equal
    (plain, batch), (fast, _) = setting(source, **sizes), setting(source, **sizes)
    fast.load_state_dict(plain.state_dict())
    compile_blocks(fast)
    bf16 = Compute(torch.bfloat16)
    _, larger = setting(source, side=7, **sizes)
    for size, lane in ((9, batch), (4, larger), (7, batch)):
        part = Batch(**{k: v[:size] for k, v in lane.tensors().items()}, lane=lane.lane)
        loss, gradient = loss_and_gradient(plain, part, bf16)
        found, of_compiled = loss_and_gradient(fast, part, bf16)
        assert found == pytest.approx(loss, rel=0.01)
        assert distance(of_compiled, gradient) < 0.05


@pytest.mark.usefixtures("few_graphs")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_block_computes_as_a_plain_one() -> None:
    plain = nn.ModuleList([Block(8, 1, 0.1)])
    fast = copy.deepcopy(plain)
    compile_blocks(fast)
    for size, length in ((3, 7), (4, 5)):
        x = torch.randn(size, length, 8, generator=torch.Generator().manual_seed(0))
        results = []
        for model in (plain, fast):
            model.zero_grad()
            with computing(model, Compute(torch.bfloat16)):
                y = model[0](x.bfloat16())
            y.float().square().mul(x).sum().backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            results.append((y.detach().float(), torch.cat(gradients)))
        for expected, found in zip(*results, strict=True):
            assert distance(found, expected) < 0.02


# --- micro-batches ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_micro_batches_give_what_whole_lanes_give(source: str) -> None:
    found = []
    for most in (None, 2, 1):
        corpus = make_corpus(two_lanes())
        run = make_run(source, model=SHORT, train={"batch_size": 9})
        model = build_model(run, corpus.num_puzzles)
        execution = ExecutionConfig(micro_batch=most)
        trainer = Trainer(run, model, corpus, questions_of(run, corpus), execution=execution)
        passes = sum(trainer.micro_batches_per_lane().values())
        assert passes == {None: 2, 2: 5, 1: 9}[most]
        assert max(len(lane.slots) for lane in trainer.lane_slots) <= (most or 9)
        for _ in range(4):
            trainer.step()
        found.append((trainer.row(), trainer.state_dict()))
    (row, state), *others = found
    assert state is not None
    for other_row, other in others:
        assert other is not None
        for name, tensor in state["model"].items():
            assert torch.allclose(other["model"][name], tensor, atol=1e-5), name
        for first, second in zip(state["lanes"], other["lanes"], strict=True):
            assert torch.equal(first["batch"]["inputs"], second["batch"]["inputs"])
        for name in ("train/lm_loss", "grad/total_norm", "train/halted"):
            assert other_row[name] == pytest.approx(row[name], rel=1e-4)
