"""No tensor of a step is left on the host: every operation runs on the device of the corpus.

Shown without a GPU on the `meta` device, which computes shapes only and, like any device, refuses
tensors of another one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flash_on_cpu import use_flash
from tiny import make_run, make_tasks, make_variants, questions_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etrm.config.registry import CONTEXT_SOURCES
from etrm.data.corpus import Corpus
from etrm.evaluation.decode import decode
from etrm.models.build import build_model
from etrm.training.trainer import Trainer

META = torch.device("meta")


def on_meta(source: str, **blocks: object) -> tuple[Trainer, Corpus]:
    run = make_run(source, **blocks)
    tasks = make_tasks()
    episodes = questions_of(run, Corpus(tasks, make_variants(tasks)))
    corpus = Corpus(tasks, make_variants(tasks), META)
    moved = questions_of(run, corpus)
    assert [len(lane) for lane in moved] == [len(lane) for lane in episodes]
    return Trainer(run, build_model(run, corpus.num_puzzles).to(META), corpus, moved), corpus


@pytest.mark.parametrize("source", ["embedding", "standard"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_training_step_stays_on_its_device(source: str, cached: bool) -> None:
    changes = {"episodes": {"max_demos": 2}, "train": {"cache_context": cached, "log_every": 1}}
    trainer, _ = on_meta(source, **changes)
    trainer.step()
    trainer.step()
    batches = [t for lane in trainer.lane_slots for t in lane.carry.batch.tensors().values()]
    tensors = [*trainer.model.parameters(), *batches, *trainer.window.sums.values()]
    assert {tensor.device for tensor in tensors} == {META}


class FromHost(TorchDispatchMode):
    """Notes operations that take a tensor of the host to the device: each would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cpu" for t in given):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("flash", [False, True], ids=["masks", "segments"])
@pytest.mark.parametrize("pairing", ["aligned", "concat"])
@pytest.mark.parametrize("source", CONTEXT_SOURCES)
def test_no_step_takes_anything_from_the_host(
    source: str, pairing: str, flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps between rows; what a lane needs is on the device after its first step."""
    if flash:
        use_flash(monkeypatch)
    options = {"pairing": pairing, "contrastive_weight": 0.1}
    context = {} if source == "embedding" else options
    train, one_lane = {"log_every": 100, "steps": 100}, {"canvas": [4]}
    trainer, _ = on_meta(source, context=context, train=train, episodes=one_lane)
    trainer.step()
    with FromHost() as watch:
        trainer.step()
    assert watch.seen == []
    with FromHost() as watch:
        torch.zeros(2).to(META)
    assert watch.seen  # it can fail


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_decoding_stays_on_its_device(source: str) -> None:
    trainer, corpus = on_meta(source)
    lane = trainer.episodes[0]
    index = torch.arange(len(lane), device=META)
    batch = corpus.assemble(lane, index, torch.zeros_like(index))
    output, steps = decode(trainer.model.eval(), batch, trainer.halting)
    assert output.logits.device == steps.device == META
