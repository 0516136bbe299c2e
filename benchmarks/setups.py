"""Cases to measure: models of the paper's sizes, in the official layout and in ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.mix import Mix
from etrm.config.data import EpisodesConfig
from etrm.config.execution import ExecutionConfig
from etrm.config.health import HealthConfig
from etrm.config.load import plain
from etrm.config.registry import context_source
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, held_out_questions, training_questions
from etrm.data.packing import TokenBounds
from etrm.data.pools import Pools
from etrm.models.act import Model
from etrm.models.build import build_model
from etrm.models.compute import DTYPES, Compute
from etrm.models.memory import activation_budget
from etrm.runtime.distributed import Ranks
from etrm.training.micro_batches import slot_bytes
from etrm.training.optim import AdamATan2
from etrm.training.trainer import Trainer

ONE = Ranks()
SOURCES = {"trm": "embedding", "etrm-standard": "standard"}  # that are measured by default
GPU_SLOTS = {"trm": 768}  # of TRM's paper; of ETRM's: 256
# On a CPU a step of the paper's batch takes minutes. Thirty-five slots, shared out over the lanes,
# cost the decoder on average what all questions do, to 0.7 %; in the official layout all samples
# cost the same. `gflop_of_all` of a row tells how well the demos that this seed draws do.
CPU_SLOTS = {"lanes": 35, "padded": 2}
SEED = 5
CPU_SLOTS_ENCODED_PADDED = 1  # the ten padded demos of one sample are 18,000 tokens


@dataclass(frozen=True)
class Layout:
    """A layout of samples, with its optimisations."""

    name: str  # `padded`: one 30×30 canvas, ten demo slots; `lanes`: canvas lanes, as many as there
    packing: str = "auto"
    hoist: bool = True
    compile: str = "auto"
    flat: bool = True  # the optimizer works on one tensor for each part
    micro_batch: int | None = None  # most slots in a pass; None: as many as memory holds

    @property
    def padded(self) -> bool:
        """Return whether the layout is the official one."""
        return self.name == "padded"

    def compute(self, dtype: str) -> Compute:
        """Its ways of computing in a number format."""
        return Compute(DTYPES[dtype], hoist=self.hoist, packing=self.packing)


PADDED = Layout("padded", packing="none", hoist=False, compile="off")
LANES = Layout("lanes")


@dataclass(frozen=True)
class Setting:
    """The device and the tasks of all cases of one call."""

    device: torch.device
    mix: Mix
    tasks: Path | None = None  # the tasks.parquet that `mix` comes from
    seconds: float = 8.0  # that timed steps take together, about; at least one step is timed
    variants: int = 1000  # of the data set that is built
    # Differences to the paper's sizes, block by block: for tests.
    blocks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slots: int | None = None
    matmul_side: int | None = None

    @property
    def gpu(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.type == "cuda"


def source_of(model: str) -> str:
    """Return the context source of a model: of `trm`, or of `etrm-<source>`."""
    return "embedding" if model == "trm" else model.removeprefix("etrm-")


def run_config(setting: Setting, model: str, layout: Layout, dtype: str, slots: int) -> RunConfig:
    """Return the paper's run, which is what the configuration defaults to, for a model by name."""
    source = source_of(model)
    canvas = [30] if layout.padded else plain(EpisodesConfig().canvas)
    document: dict[str, dict[str, Any]] = {
        "episodes": {"canvas": canvas},
        "model": {},
        "context": {"source": source},
        "decoder": {},
        "halting": {},
        "train": {"batch_size": slots, "dtype": dtype},
        "health": plain(HealthConfig()),
    }
    for name, changes in setting.blocks.items():
        document[name] = document[name] | dict(changes)
    known = {field.name for field in fields(context_source(source).Options)}
    document["context"] = {k: v for k, v in document["context"].items() if k in known}
    head = {"experiment": model, "stage": "pretrain", "seed": SEED, "split": "strict"}
    head |= {"sources": None}
    run: RunConfig = parse(RunConfig, head | document)
    return run


def slots_of(setting: Setting, model: str, layout: Layout) -> int:
    """Return the batch size of a measurement of training."""
    if setting.slots is not None:
        return setting.slots
    if setting.gpu:
        return GPU_SLOTS.get(model, 256)
    encoded = model != "trm" and layout.padded
    return CPU_SLOTS_ENCODED_PADDED if encoded else CPU_SLOTS[layout.name]


def make_trainer(
    setting: Setting, model: str, layout: Layout, dtype: str, ranks: Ranks = ONE
) -> Trainer:
    """Return a trainer as a run has it, on leave-one-out questions of the training tasks."""
    run = run_config(setting, model, layout, dtype, slots_of(setting, model, layout))
    corpus = Corpus(setting.mix.training, setting.mix.variants, setting.device)
    needs_demos = context_source(run.context.source).needs_demos
    questions = training_questions(corpus, (), run.episodes, needs_demos)
    episodes = group_by_lane(corpus, questions, run.episodes.canvas, see_answers=True)
    if layout.padded:
        episodes = [with_all_slots(lane, run.episodes.max_demos) for lane in episodes]
    net = build_model(run, corpus.num_puzzles).to(setting.device)
    execution = _execution(run, net, layout, episodes, setting.device, ranks)
    trainer = Trainer(run, net, corpus, episodes, ranks, execution, layout.compute(dtype))
    if not layout.flat:
        parts = [net.decoder.parameters(), net.context.parameters()]
        groups = [{"params": list(part), "scale": 1.0} for part in parts]
        betas = run.train.betas[0], run.train.betas[1]
        trainer.updater.optimizer = AdamATan2(groups, run.train.lr, betas, run.train.weight_decay)
    return trainer


def questions_of_tests(
    setting: Setting, model: str, layout: Layout, dtype: str, held_out: bool = False
) -> tuple[RunConfig, Corpus, list[Episodes]]:
    """Test inputs of the training tasks, or of the held-out ones, by lane."""
    run = run_config(setting, model, layout, dtype, 1)
    tasks = setting.mix.held_out if held_out else setting.mix.training
    corpus = Corpus(tasks, setting.mix.variants, setting.device)
    most = run.episodes.max_demos
    episodes = group_by_lane(corpus, held_out_questions(corpus), run.episodes.canvas, most)
    if layout.padded:
        episodes = [with_all_slots(lane, most) for lane in episodes]
    return run, corpus, episodes


def with_all_slots(lane: Episodes, slots: int) -> Episodes:
    """Return the questions with places for at least `slots` demos, as in the official layout."""
    return lane if lane.most >= slots else replace(lane, most=slots)


def _execution(
    run: RunConfig,
    model: Model,
    layout: Layout,
    episodes: Sequence[Episodes],
    device: torch.device,
    ranks: Ranks,
) -> ExecutionConfig:
    """Ours, or, where demos are not packed, with the micro-batches that padded ones need."""
    execution = ExecutionConfig(compile=layout.compile, micro_batch=layout.micro_batch)
    if layout.packing != "none":
        return execution
    largest = max(padded_bytes(run, model, lane) for lane in episodes)
    fitting = max(1, int(activation_budget(device, execution, ranks.world_size) / largest))
    return replace(execution, micro_batch=fitting)


def padded_bytes(run: RunConfig, model: Model, lane: Episodes) -> float:
    """Return the bytes kept for the backward pass of a slot with all demos at full length."""
    most = run.episodes.max_demos
    full = np.full(most, 2 * lane.lane.cells)
    pools = Pools.of([range(most)], [0], [-1])  # one question, and its query is none of them
    padded = replace(lane, task=lane.task[:1], pools=pools, most=most)
    return slot_bytes(run, model, replace(padded, tokens=TokenBounds(full, full)))
