"""The contract of context sources, and the use of every option and setting."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import MODEL, make_batch, make_corpus, make_options, make_run, make_trainer
from torch import Tensor

import etrm
from etrm.config.data import EpisodesConfig
from etrm.config.health import GateConfig, HealthConfig, HealthRule, StuckRule
from etrm.config.lanes import Lane
from etrm.config.refinement import RefinementConfig
from etrm.config.registry import CONTEXT_SOURCES, context_source
from etrm.config.schema import ConfigError
from etrm.config.study import (
    DecoderConfig,
    EvaluationConfig,
    HaltingConfig,
    ModelConfig,
    TrainConfig,
)
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus
from etrm.models.encoders.base import ContextSource, Encoded
from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.models.encoders.shared import EncoderOptions
from etrm.training.trainer import Trainer

# Another value of options whose type and default do not tell one.
BY_HAND: dict[str, list[Any]] = {
    "expansion": [40.0],  # inner widths are rounded up to 256s
    "layer_scale": [0.1],
    "output_scale": [2.0],
    "kl_weight": [0.5],
    "contrastive_weight": [0.5],
    "contrastive_temperature": [0.5],
}
# Options that change a loss, not the output: each has a test of its effect on training.
OF_LOSSES = {
    "kl_weight",
    "unseen",  # of evaluation alone: tests/evaluation/test_controls.py
    *(f"contrastive_{name}" for name in ("weight", "positives", "temperature")),
}


def variations(name: str) -> dict[str, list[dict[str, Any]]]:
    """Every option of a source with other values of it, each as a change to the small source."""
    found = {}
    for field in dataclasses.fields(context_source(name).Options):
        old = getattr(make_options(name), field.name)
        if field.name in BY_HAND:
            values = BY_HAND[field.name]
        elif field.metadata["choices"]:
            values = [choice for choice in field.metadata["choices"] if choice != old]
        elif isinstance(old, bool):
            values = [not old]
        else:
            values = [2 * old] if isinstance(old, int) else []
        found[field.name] = [{field.name: value} for value in values]
    del found["source"]
    return found


VARIATIONS = {name: variations(name) for name in CONTEXT_SOURCES}
ENCODERS = [name for name in CONTEXT_SOURCES if context_source(name).needs_demos]
EVERY = [
    (name, changes)
    for name in CONTEXT_SOURCES
    for changes in [{}, *(c for each in VARIATIONS[name].values() for c in each)]
]
# Options of all encoders: one code for all, so `standard` stands for the others.
COMMON = {f.name for f in dataclasses.fields(EncoderOptions)} - {"pairing", "layers"}
CASES = [(n, c) for n, c in EVERY if n == "standard" or not set(c) & (COMMON | OF_LOSSES)]


def label(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    return getattr(value, "__name__", str(value))


def build(name: str, **options: Any) -> ContextSource:
    """A source on a decoder of width 16, with weights of one seed."""
    run = make_run(name, context=options)
    torch.manual_seed(0)
    source: ContextSource = context_source(name)(run.context, run.model, 8)
    if isinstance(source, PuzzleEmbedding):
        torch.nn.init.normal_(source.weights)
    return source.eval()


@functools.cache
def _built(name: str, options: tuple[tuple[str, Any], ...]) -> tuple[ContextSource, Tensor]:
    source = build(name, **dict(options))
    return source, encode(source, ragged())


def built(name: str, options: dict[str, Any]) -> tuple[ContextSource, Tensor]:
    """A source and its output for `ragged()`, made once for all tests."""
    return _built(name, tuple(options.items()))


def encode(source: ContextSource, batch: Batch) -> Tensor:
    with torch.no_grad():
        encoded: Encoded = source(batch, source.initial_state(len(batch)))
    if encoded.real is None:
        return encoded.tokens
    # Of a context of cells, the real ones; in the order of places, which carry no order of demos.
    assert encoded.places is not None
    tokens = encoded.tokens * encoded.real[..., None]
    key = encoded.places + 10_000 * ~encoded.real + 1e-3 * tokens[..., 0].sigmoid().double()
    tokens = tokens.gather(1, key.argsort(dim=1)[..., None].expand_as(tokens))
    return tokens[:, : int(encoded.real.sum(dim=1).max())]


def replace(batch: Batch, **changes: Any) -> Batch:
    return dataclasses.replace(batch, **changes)


def ragged() -> Batch:
    """Three samples with three, two and one demos; the rest is PAD."""
    batch = make_batch(3, demos=3)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    blank = [t * mask[..., None] for t in (batch.demo_inputs, batch.demo_outputs)]
    return replace(batch, demo_mask=mask, demo_inputs=blank[0], demo_outputs=blank[1])


PAIR = ("demo_inputs", "demo_outputs")  # of a batch


# --- the contract ---


@pytest.mark.parametrize("name", CONTEXT_SOURCES)
def test_every_option_has_another_value_here(name: str) -> None:
    """A number without a whole default needs a value in BY_HAND."""
    default = make_options(name)
    for field, changes in VARIATIONS[name].items():
        assert changes, f"{name}: no other value of {field}: give one in BY_HAND"
        for change in changes:
            assert getattr(make_options(name, **change), field) != getattr(default, field)


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_output_is_context_tokens_of_the_decoder(name: str, options: dict[str, Any]) -> None:
    source, _ = built(name, options)
    shapes = make_batch(2, demos=1, side=5), make_batch(side=(1, 12))
    for batch in (make_batch(3), *shapes, ragged()):
        encoded = source(batch, source.initial_state(len(batch)))
        shape = (len(batch), source.context_size(batch.cells), MODEL["width"])
        assert encoded.tokens.shape == shape
        if encoded.real is None:
            assert shape[1] == MODEL["context_tokens"]
        assert bool(torch.isfinite(encoded.tokens).all())
        assert all(loss.shape == (len(batch),) for loss in encoded.losses.values())


def padded_demos(batch: Batch) -> Batch:
    """Room for four more demos, none of them real."""
    room = torch.zeros(3, 4, 9, dtype=torch.int64)
    return replace(
        batch,
        demo_inputs=torch.cat([batch.demo_inputs, room], dim=1),
        demo_outputs=torch.cat([batch.demo_outputs, room], dim=1),
        demo_mask=torch.cat([batch.demo_mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1),
    )


def junk_in_padded_demos(batch: Batch) -> Batch:
    junk, real = make_batch(3, demos=3, seed=9), batch.demo_mask[..., None]
    return replace(
        batch,
        demo_inputs=torch.where(real, batch.demo_inputs, junk.demo_inputs),
        demo_outputs=torch.where(real, batch.demo_outputs, junk.demo_outputs),
    )


def larger_canvas(batch: Batch, rows: int = 5, columns: int = 5) -> Batch:
    """More PAD around the same grids; positions are those of every lane."""

    def grown(tokens: Tensor) -> Tensor:
        canvas = tokens.new_zeros(*tokens.shape[:-1], rows, columns)
        canvas[..., :3, :3] = tokens.unflatten(-1, (3, 3))
        return canvas.flatten(-2)

    keys = ("inputs", "labels", "demo_inputs", "demo_outputs")
    grids = {key: grown(batch.tensors()[key]) for key in keys}
    return replace(batch, **grids, lane=Lane(rows, columns))


def wider_canvas(batch: Batch) -> Batch:
    return larger_canvas(batch, 3, 7)


def taller_canvas(batch: Batch) -> Batch:
    return larger_canvas(batch, 7, 3)


def order_of_demos(batch: Batch) -> Batch:
    keys = (*PAIR, "demo_mask")
    return replace(batch, **{key: batch.tensors()[key][:, [2, 0, 1]] for key in keys})


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_the_output_does_not_depend_on_padding_nor_on_the_order_where_that_is_claimed(
    name: str, options: dict[str, Any]
) -> None:
    source, usual = built(name, options)
    paddings = (padded_demos, junk_in_padded_demos, larger_canvas, wider_canvas, taller_canvas)
    for change in paddings:
        found = encode(source, change(ragged()))
        assert torch.allclose(found, usual, atol=1e-5), change.__name__
    if source.order_invariant:
        assert torch.allclose(encode(source, order_of_demos(ragged())), usual, atol=1e-4)


def exchanged(batch: Batch, keys: Sequence[str], cells: int) -> Batch:
    """The first cells of the first two demos, exchanged: each cell stays at its place."""
    moved = {key: batch.tensors()[key].clone() for key in keys}
    for tokens in moved.values():
        tokens[:, :2, :cells] = tokens[:, [1, 0], :cells]
    return replace(batch, **moved)


def change(found: Tensor, usual: Tensor) -> Tensor:
    """How far an output is from the usual one, relative to its size, by sample."""
    return (found - usual).norm(dim=(1, 2)) / usual.norm(dim=(1, 2))


@pytest.mark.parametrize(
    ("keys", "cells"), [(PAIR, 5), (PAIR[1:], 5), (PAIR, 1)], ids=["half", "outputs", "one"]
)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_knows_which_demo_a_cell_belongs_to(
    name: str, keys: Sequence[str], cells: int
) -> None:
    """A bag of the cells of all demos, or of inputs and outputs apart, would be the same bag."""
    batch = make_batch(3)
    for changes in pairings(name):
        source, _ = built(name, changes)
        usual = encode(source, batch)
        assert change(encode(source, exchanged(batch, keys, cells)), usual).min() > 2e-3
        assert change(encode(source, order_of_demos(batch)), usual).max() < 1e-5  # float noise


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_samples_are_encoded_apart_and_always_the_same(name: str, options: dict[str, Any]) -> None:
    source, usual = built(name, options)
    assert torch.equal(encode(source, ragged()), usual)
    order = torch.tensor([2, 0, 1])
    other = replace(ragged(), **{n: t[order] for n, t in ragged().tensors().items()})
    assert torch.allclose(encode(source, other), usual[order], atol=1e-4)


def pairings(name: str) -> list[dict[str, Any]]:
    """Every pairing of a source that has several, or its one way."""
    return [{}, *VARIATIONS[name].get("pairing", [])]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_reads_inputs_and_outputs_of_every_demo(name: str) -> None:
    for changes in pairings(name):
        (source, usual), batch = built(name, changes), ragged()
        for key in PAIR:
            for demo in range(3):
                tokens = batch.tensors()[key].clone()
                tokens[:, demo] = torch.where(tokens[:, demo] > 0, 13 - tokens[:, demo], 0)
                changed = encode(source, replace(batch, **{key: tokens}))
                moved = (changed - usual).abs().amax(dim=(1, 2)) > 1e-4
                assert moved.tolist() == batch.demo_mask[:, demo].tolist()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_tells_an_input_from_its_output(name: str) -> None:
    for changes in pairings(name):
        (source, usual), batch = built(name, changes), ragged()
        swapped = replace(batch, demo_inputs=batch.demo_outputs, demo_outputs=batch.demo_inputs)
        assert not torch.allclose(encode(source, swapped), usual, atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_does_not_look_at_the_query_or_its_label(name: str) -> None:
    (source, usual), batch, other = built(name, {}), ragged(), make_batch(3, seed=5)
    changed = replace(batch, inputs=other.inputs, labels=other.labels, puzzle=batch.puzzle + 1)
    assert torch.equal(encode(source, changed), usual)


# --- every option is read ---


def shapes(source: ContextSource) -> tuple[Any, ...]:
    """Shapes of weights, and the size of the noise."""
    weights = ((n, tuple(p.shape)) for n, p in source.state_dict().items())
    return (*weights, source.noise_size(3))


def equal_outputs(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"), [case for case in EVERY if set(case[1]) - OF_LOSSES], ids=label
)
def test_every_option_changes_the_weights_or_the_output(name: str, changes: dict) -> None:
    (source, usual), (other, output) = built(name, {}), built(name, changes)
    assert shapes(source) != shapes(other) or not equal_outputs(usual, output)


@pytest.mark.parametrize("name", ENCODERS)
def test_options_that_keep_the_weights_change_the_output(name: str) -> None:
    """With equal weights, not by another draw of them."""
    base, usual = built(name, {})
    candidates = ({"heads": 4}, {"qk_norm": True}, {"output_scale": 2.0}, {"pooling": "max"})
    for changes in (c for c in candidates if set(c) <= set(VARIATIONS[name])):
        other = build(name, **changes)
        other.load_state_dict(base.state_dict())
        assert not equal_outputs(encode(other, ragged()), usual), changes


def test_two_configs_give_two_models() -> None:
    seen: dict[tuple[Any, ...], list[Tensor]] = {}
    for name, options in (case for case in EVERY if not set(case[1]) & OF_LOSSES):
        source, output = built(name, options)
        others = seen.setdefault(shapes(source), [])
        assert not any(equal_outputs(output, other) for other in others), (name, options)
        others.append(output)


@pytest.mark.parametrize("name", [n for n in ENCODERS if "output_scale" in VARIATIONS[n]])
def test_output_scale_is_the_rms_in_the_stream_of_the_decoder(name: str) -> None:
    for scale, expected in ((None, 4.0), (1.0, 1.0), (0.25, 0.25)):
        rms = encode(build(name, output_scale=scale), ragged()).square().mean(dim=-1).sqrt()
        rms = rms[rms > 0]  # not the places of cells that do not exist
        assert torch.allclose(rms, torch.full_like(rms, expected), rtol=1e-2)


def test_head_sizes_that_positions_cannot_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 16 with 8 heads"):
        make_options("standard", heads=8)
    with pytest.raises(ConfigError, match="width 18 with 2 heads"):
        make_run(model={"width": 18, "positions": "rope_2d"})


# --- gradients, through a real trainer ---


@functools.cache
def corpus() -> Corpus:
    return make_corpus()


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_every_parameter_gets_a_gradient_from_the_task_loss(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(name, context=options, episodes={"canvas": [4]}, halting={"loss_weight": 0.0})
    trainer = make_trainer(run, corpus())
    seen: dict[str, float] = {}
    update = trainer._update

    def listen() -> None:
        for key, p in trainer.model.named_parameters():
            seen[key] = 0.0 if p.grad is None else float(p.grad.norm())
        update()

    monkeypatch.setattr(trainer, "_update", listen)
    before = weights_of(trainer)
    table = trainer.model.state_dict().get("context.weights", torch.zeros(0)).clone()
    trainer.step()
    without = {key for key, norm in seen.items() if not norm > 1e-9}
    assert without == {"decoder.q_head.weight", "decoder.q_head.bias"}  # the halting loss is off
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved >= set(before) - without
    if name == "embedding":
        used = {int(p) for lane in trainer.lane_slots for p in lane.carry.batch.puzzle}
        after = trainer.model.state_dict()["context.weights"]
        rows = (after != table).any(dim=1).nonzero().flatten().tolist()
        assert set(rows) == used


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in CONTEXT_SOURCES), ("standard", {"layer_scale": 0.1, "norm": "pre"})],
    ids=label,
)
def test_gradients_of_both_number_formats_reach_every_parameter(
    name: str, options: dict[str, Any]
) -> None:
    """Casts made where gradients are off must not be used where they are on."""
    blocks = {"context": options, "model": {"H_cycles": 3}}
    rows = []
    for dtype in ("bf16", "fp32"):
        trainer = make_trainer(make_run(name, train={"dtype": dtype}, **blocks), corpus())
        before = weights_of(trainer)
        trainer.step()
        assert all(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
        rows.append(trainer.row())
    for key in ("train/lm_loss", "grad/total_norm", "grad/inner_norm"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=0.1)
    assert rows[0]["train/lm_loss"] != rows[1]["train/lm_loss"]


@pytest.mark.parametrize("name", CONTEXT_SOURCES)
def test_a_task_of_two_pairs_trains(name: str) -> None:
    """Each is asked about the other, its only demo."""
    trainer = make_trainer(make_run(name, episodes={"max_demos": 1}), corpus())
    trainer.step()
    assert trainer.row()["train/lm_loss"] > 0


# --- every setting is read ---


@functools.cache
def attributes_read() -> set[str]:
    """Names of attributes that the package reads, outside its config."""
    folder = Path(etrm.__path__[0])
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        if "config" not in path.relative_to(folder).parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
    return found


BLOCKS = {
    "model": ModelConfig,
    "halting": HaltingConfig,
    "train": TrainConfig,
    "episodes": EpisodesConfig,
    "decoder": DecoderConfig,
}
OTHERS = (EvaluationConfig, RefinementConfig, HealthConfig, HealthRule, StuckRule, GateConfig)


@pytest.mark.parametrize("config", [*BLOCKS.values(), *OTHERS], ids=label)
def test_every_setting_is_read(config: type) -> None:
    read = attributes_read() | {"warn", "fail", "stop"}  # these three by getattr
    assert {field.name for field in dataclasses.fields(config)} <= read


# Settings that change a run of a few steps, each with another value.
DIFFERENT: dict[str, dict[str, Any]] = yaml.safe_load("""
model: {width: 32, heads: 4, layers: 2, expansion: 40.0, context_tokens: 3, H_cycles: 3,
    L_cycles: 2, positions: rope_2d, rope_theta: 10.0,
    loss_type: softmax_cross_entropy}
halting: {max_steps: 1, exploration_prob: 0.0, loss_weight: 0.1}
train: {batch_size: 7, lr: 2.0e-3, warmup_steps: 3, betas: [0.8, 0.95], weight_decay: 0.5,
    context_lr_scale: 0.5, context_frozen_steps: 2, grad_clip: 1.0e-3, ema_decay: 0.5,
    search_from: 1, cache_context: true, dtype: bf16}
episodes: {queries: test_pairs, draw: task, max_demos: 1, translate: false, translate_once: true,
    canvas: [5]}
decoder: {frozen_steps: 2, frozen: true}
""")
# Settings that other tests vary: those of training, of the workflow, and the one below.
ELSEWHERE = {
    "episodes": "order shown min_demos",
    "train": "steps tasks variants hoist_casts embedding_lr embedding_weight_decay log_every"
    " save_every eval_every eval_episodes probe_every probe_tasks target_exact_accuracy"
    " stop_on_health new_tasks_every search_lr",
    "decoder": "init weights init_seed init_trust init_differs init_sha256",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_setting_of_a_run_is_varied(block: str) -> None:
    names = {field.name for field in dataclasses.fields(BLOCKS[block])}
    elsewhere = set(ELSEWHERE.get(block, "").split())
    assert elsewhere <= names
    assert set(DIFFERENT[block]) == names - elsewhere


def outcome(source: str, steps: int = 4, **blocks: Any) -> dict[str, Tensor]:
    """Weights, raw and averaged, after steps in which samples halt by themselves."""
    trainer = make_trainer(make_run(source, **blocks), corpus())
    with torch.no_grad():
        trainer.model.decoder.q_head.bias.fill_(1.0)
    for _ in range(steps):
        trainer.step()
    averaged = {f"ema.{n}": t for n, t in trainer.ema.values.items()}
    return {**trainer.model.state_dict(), **averaged}


@pytest.fixture(scope="module")
def usual() -> dict[str, dict[str, Tensor]]:
    return {source: outcome(source) for source in ("embedding", "standard")}


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        return True
    return any(not torch.equal(t, second[n]) for n, t in first.items())


@pytest.mark.parametrize(
    ("block", "field"), [(block, field) for block, each in DIFFERENT.items() for field in each]
)
def test_every_setting_changes_the_result(
    block: str, field: str, usual: dict[str, dict[str, Tensor]]
) -> None:
    changed = outcome("standard", **{block: {field: DIFFERENT[block][field]}})
    assert differ(changed, usual["standard"])


@pytest.mark.parametrize(
    ("field", "value"), [("embedding_lr", 2e-2), ("embedding_weight_decay", 0.5)]
)
def test_settings_of_the_embedding_change_its_table(
    field: str, value: float, usual: dict[str, dict[str, Tensor]]
) -> None:
    changed = outcome("embedding", train={field: value})
    assert not torch.equal(changed["context.weights"], usual["embedding"]["context.weights"])


@pytest.mark.parametrize("source", CONTEXT_SOURCES)
def test_the_same_settings_give_the_same_result(source: str) -> None:
    assert not differ(outcome(source, steps=2), outcome(source, steps=2))
