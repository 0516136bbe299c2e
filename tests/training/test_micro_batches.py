"""Micro-batches are cut by what a backward pass really keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, questions_of
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.config.registry import CONTEXT_SOURCES, context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, Compute
from etrm.training.micro_batches import GIB, MARGIN, activation_budget, max_slots, slot_bytes
from etrm.training.trainer import Trainer


def setting(
    source: str, dtype: str, context: dict[str, Any] | None = None, **changes: Any
) -> tuple[RunConfig, Corpus, Episodes]:
    """Sizes at which blocks outweigh all else, as they do at paper size."""
    width = {"width": 128, "heads": 2}
    blocks: dict[str, Any] = {"model": {**width, "layers": 2, "L_cycles": 3}, **changes}
    blocks["episodes"] = {"canvas": [9]}
    blocks["train"] = {"dtype": dtype, "batch_size": 12}
    options = {field.name for field in dataclasses.fields(context_source(source).Options)}
    sizes = {**width, "layers": 2, "set_layers": 2}
    if source != "embedding":
        blocks["context"] = {name: value for name, value in sizes.items() if name in options}
        blocks["context"].update(context or {})
    corpus = make_corpus(make_tasks(6, side=8))
    run = make_run(source, **blocks)
    (lane,) = questions_of(run, corpus)
    return run, corpus, lane


def kept_bytes(trainer: Trainer) -> int:
    """Bytes that a backward pass keeps, each storage once, without the model's own."""
    (lane,) = trainer.lane_slots
    own = {t.untyped_storage().data_ptr() for t in trainer.model.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        trainer._forward_backward(lane)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("embedding", "fp32"),
        ("standard", "fp32"),
        *((source, "bf16") for source in CONTEXT_SOURCES),
    ],
)
def test_the_estimate_is_what_is_kept(source: str, dtype: str) -> None:
    run, corpus, lane = setting(source, dtype)
    model = build_model(run, corpus.num_puzzles)
    trainer = Trainer(run, model, corpus, [lane])
    estimate = 12 * slot_bytes(run, model, lane) / MARGIN
    assert estimate == pytest.approx(kept_bytes(trainer), rel=0.2)


def test_the_second_view_of_a_contrastive_loss_counts() -> None:
    """On a GPU, which does not look at the lengths of demos without bounds."""
    kept, estimates = [], []
    for weight in (0.0, 0.1):
        context = {"layers": 8, "set_layers": 1, "contrastive_weight": weight}
        run, corpus, lane = setting("standard", "bf16", context)
        model = build_model(run, corpus.num_puzzles)
        compute = Compute(DTYPES["bf16"], packing="bounds")
        kept.append(kept_bytes(Trainer(run, model, corpus, [lane], compute=compute)))
        estimates.append(12 * slot_bytes(run, model, lane) / MARGIN)
    assert kept[1] > 1.1 * kept[0]
    assert estimates[1] - estimates[0] == pytest.approx(kept[1] - kept[0], rel=0.2)


def test_a_lane_is_cut_to_its_budget() -> None:
    run, corpus, lane = setting("standard", "bf16")
    model = build_model(run, corpus.num_puzzles)
    one = slot_bytes(run, model, lane)
    asked = ExecutionConfig(memory=5.5 * one / GIB)
    room = activation_budget(asked, torch.device("cpu"), 1)
    assert max_slots(run, model, lane, asked, room) == 5
    assert max_slots(run, model, lane, asked, activation_budget(asked, torch.device("cpu"), 2)) == 2
    assert max_slots(run, model, lane, asked, one / 9) == 1
    few = ExecutionConfig(memory=5.5 * one / GIB, micro_batch=3)
    assert max_slots(run, model, lane, few, room) == 3
    trainer = Trainer(run, model, corpus, [lane], execution=asked)
    assert [len(part.slots) for part in trainer.lane_slots] == [4, 4, 4]
    assert trainer.micro_batches_per_lane() == {"9": 3}


def test_paper_size_etrm_fits_a_gpu_of_24_gb() -> None:
    """Batch 256 in bf16: what is kept of any pass, and all else that stays, in 24 GB."""
    lanes, sizes = [10, 15, 20, 25, 30], {"width": 512, "heads": 8, "layers": 2}
    model = {**sizes, "context_tokens": 16, "H_cycles": 3, "L_cycles": 6}
    tasks = [t for side in lanes for t in make_tasks(8, side, side, f"side{side}_")]
    run = make_run(
        model=model,
        context={**sizes, "set_layers": 2},
        episodes={"canvas": lanes},
        train={"dtype": "bf16", "batch_size": 256},
    )
    corpus = make_corpus(tasks)
    built = build_model(run, corpus.num_puzzles)
    card, execution = 24e9, ExecutionConfig(memory=0.7 * 24e9 / GIB)
    room = activation_budget(execution, torch.device("cuda"), 1)
    trainer = Trainer(run, built, corpus, questions_of(run, corpus), execution=execution)
    by_lane = {episodes.lane: episodes for episodes in trainer.episodes}
    assert len(by_lane) == 5
    passes = [
        len(p.slots) * slot_bytes(run, built, by_lane[p.carry.batch.lane])
        for p in trainer.lane_slots
    ]
    assert max(passes) <= room
    assert max(trainer.micro_batches_per_lane().values()) > 1  # without them it would not fit
    carries = sum(
        t.nbytes for p in trainer.lane_slots for t in (p.carry.z_H, p.carry.z_L) if t is not None
    )
    carries += sum(t.nbytes for p in trainer.lane_slots for t in p.carry.batch.tensors().values())
    weights = 4 * sum(p.numel() for p in built.parameters()) * 5  # raw, averaged, gradient, m, v
    assert max(passes) + 2 * carries + weights < 0.9 * card
