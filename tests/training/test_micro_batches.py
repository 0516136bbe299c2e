"""Micro-batches are cut by what a backward pass really keeps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import weakref
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import (
    make_corpus,
    make_run,
    make_task,
    make_tasks,
    make_variants,
    questions_of,
    recolour,
    small_context,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etrm.config.execution import ExecutionConfig
from etrm.config.lanes import Lane
from etrm.config.registry import CONTEXT_SOURCES, context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, held_out_questions
from etrm.evaluation.decode import (
    LaneQuestions,
    all_variants,
    cut_to_memory,
    decode_all,
    in_batches,
)
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, Compute
from etrm.models.memory import GIB, MARGIN, activation_budget, decoding_bytes
from etrm.training.micro_batches import max_slots, slot_bytes
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

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
        mock.patch.object(Tensor, "backward"),
    ):
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
    room = activation_budget(torch.device("cpu"), asked)
    assert max_slots(run, model, lane, asked, room) == 5
    assert max_slots(run, model, lane, asked, activation_budget(torch.device("cpu"), asked, 2)) == 2
    assert max_slots(run, model, lane, asked, one / 9) == 1
    few = ExecutionConfig(memory=5.5 * one / GIB, micro_batch=3)
    assert max_slots(run, model, lane, few, room) == 3
    trainer = Trainer(run, model, corpus, [lane], execution=asked)
    assert [len(part.slots) for part in trainer.lane_slots] == [4, 4, 4]
    assert trainer.micro_batches_per_lane() == {"9": 3}


META = torch.device("meta")  # tensors of shapes alone: 20 GB need not be there


@functools.cache
def of_paper_size(
    source: str, slots: int
) -> tuple[RunConfig, Corpus, Model, list[Episodes], list[LaneQuestions]]:
    """A run of the paper's sizes, its model, and what it is asked in training and evaluation."""
    lanes, sizes = [10, 15, 20, 25, 30], {"width": 512, "heads": 8, "layers": 2}
    rng = np.random.default_rng(0)
    tasks = [t for side in lanes for t in make_tasks(8, side, side, f"side{side}_")]
    tasks += [make_task(f"ten{i}", recolour(rng), rng, 10, 1, 30) for i in range(4)]
    model = {**sizes, "context_tokens": 16, "H_cycles": 3, "L_cycles": 6}
    train = {"dtype": "bf16", "batch_size": slots}
    context = {} if source == "embedding" else {**small_context(source), **sizes}
    run = make_run(source, model=model, context=context, episodes={"canvas": lanes}, train=train)
    corpus = Corpus(tasks, make_variants(tasks), META)
    built = build_model(run, corpus.num_puzzles).to(META)
    return run, corpus, built, questions_of(run, corpus), held_out(make_corpus(tasks), lanes)


@pytest.mark.parametrize("card", [24e9, 40e9, 80e9], ids=["24GB", "40GB", "80GB"])
@pytest.mark.parametrize(
    ("source", "slots"), [("embedding", 768), ("standard", 256), ("in_context", 256)]
)
def test_paper_sizes_fit_cards_of_24_40_and_80_gb(
    source: str, slots: int, card: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16: the largest pass of training or evaluation, and all that stays beside it.

    Most tasks fill their canvas, and some of the largest have ten demos: ARC has fewer cells.
    """
    properties = SimpleNamespace(total_memory=card)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    budget = activation_budget(torch.device("cuda"))
    assert budget == 0.7 * card
    run, corpus, built, episodes, questions = of_paper_size(source, slots)
    built = copy.deepcopy(built)
    execution = ExecutionConfig(memory=budget / GIB)
    trainer = Trainer(run, built, corpus, episodes, execution=execution)
    by_lane = {lane.lane: lane for lane in episodes}
    training = [
        len(p.slots) * slot_bytes(run, built, by_lane[p.carry.batch.lane])
        for p in trainer.lane_slots
    ]
    pieces = cut_to_memory(built, in_batches(questions, slots), 2, budget)
    evaluation = [len(i) * decoding_bytes(built, e, i, 2) for e, i, _ in pieces]
    assert max(*training, *evaluation) <= budget
    # Raw, averaged, gradient, m, v, three temporaries of an update; and cast to bf16 once.
    beside = (4 * 8 + 2) * sum(p.numel() for p in built.parameters())
    beside += 4 * 512 * 960_000 * (source == "embedding")  # a table of as many puzzles as ARC's
    carries = [
        sum(t.nbytes for t in (p.carry.z_H, p.carry.z_L, *p.carry.batch.tensors().values()))
        for p in trainer.lane_slots
    ]
    beside += sum(carries) + 2 * max(carries)  # those of a step under way, old and new
    assert max(*training, *evaluation) + beside < 0.95 * card  # the rest: CUDA itself
    cut = max(trainer.micro_batches_per_lane().values()) > 1, len(pieces) > len(questions)
    if source == "in_context" or card == 24e9:
        assert any(cut)  # without pieces it would not fit


def held_out(corpus: Corpus, sides: list[int]) -> list[LaneQuestions]:
    """The test inputs in all variants, by lane."""
    lanes = [Lane(side, side) for side in sides]
    return all_variants(corpus, group_by_lane(corpus, held_out_questions(corpus), lanes))


class Live(TorchDispatchMode):
    """The most bytes of storages that operations have made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {storage_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor) or storage_of(tensor) in self.known | given:
                continue
            storage = tensor.untyped_storage()
            self.known.add(storage_of(tensor))
            self.now += storage.nbytes()
            weakref.finalize(storage, self.free, storage_of(tensor), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


def storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("source", ["embedding", "standard", "in_context"])
def test_decoding_takes_what_is_counted(source: str, dtype: str) -> None:
    run, corpus, _ = setting(source, dtype)
    model = build_model(run, corpus.num_puzzles)
    ((episodes, index, variant),) = held_out(corpus, [9])
    index, variant = index[:8], variant[:8]
    questions = [(episodes, index, variant)]
    with Live() as live:
        for _ in decode_all(model, corpus, questions, run.halting, len(index), DTYPES[dtype]):
            pass
    counted = len(index) * decoding_bytes(model, episodes, index, DTYPES[dtype].itemsize)
    # All blocks of an encoder count, as if they were kept for a backward pass.
    assert (0.5 if source == "embedding" else 0.1) * counted < live.most < counted
