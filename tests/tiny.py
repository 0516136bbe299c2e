"""Tiny tasks with a rule, and tiny runs on them: what the suites of the numerical core share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etrm.arc.augment import Variants, draw_variants
from etrm.arc.task import Pair, Task
from etrm.config.health import HealthConfig
from etrm.config.lanes import Lane
from etrm.config.load import plain
from etrm.config.registry import context_source
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import group_by_lane, training_questions
from etrm.data.tables import TaskRecord, write_augmentations, write_tasks
from etrm.models.act import Carry
from etrm.models.build import build_model
from etrm.training.run import RunPaths
from etrm.training.trainer import Trainer

Rule = Callable[[np.ndarray], np.ndarray]
# Sizes of a small encoder, as far as it has such options.
SMALL = {"width": 16, "heads": 2, "layers": 1, "set_layers": 1}
MODEL = {"width": 16, "heads": 2, "layers": 1, "context_tokens": 2, "H_cycles": 2, "L_cycles": 1}
TRAIN = {
    "steps": 4,
    "batch_size": 6,
    "lr": 1e-3,
    "warmup_steps": 2,
    "ema_decay": 0.9,
    "log_every": 1,
    "save_every": 2,
}


def lanes_of(*sides: int | tuple[int, int]) -> tuple[Lane, ...]:
    """Lanes as a study writes them, `lanes_of(3, (1, 12))`."""
    return tuple(Lane(n, n) if isinstance(n, int) else Lane(*n) for n in sides)


def grid(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colours drawn at random, uint8 [height, width]."""
    return rng.integers(0, 10, (height, width)).astype(np.uint8)


def recolour(rng: np.random.Generator) -> Rule:
    """Every colour becomes another."""
    colors = rng.permutation(10).astype(np.uint8)
    return lambda x: colors[x]


def flip(rng: np.random.Generator) -> Rule:
    """Left and right change places."""
    return np.fliplr


def crop_corner(rng: np.random.Generator) -> Rule:
    """The two by two cells at the top left: the output is smaller than the input."""
    return lambda x: x[:2, :2]


def make_task(
    name: str, rule: Rule, rng: np.random.Generator, demos: int = 3, queries: int = 1, side: int = 3
) -> Task:
    """A task of grids with sides 2..side."""

    def pair() -> Pair:
        x = grid(rng, *rng.integers(2, side + 1, 2))
        return Pair(x, np.ascontiguousarray(rule(x)))

    pairs = [pair() for _ in range(demos + queries)]
    return Task(name, tuple(pairs[:demos]), tuple(pairs[demos:]))


def make_tasks(count: int = 4, seed: int = 0, side: int = 3, prefix: str = "task") -> list[Task]:
    """Tasks of alternating rules, with two to four demos and one or two queries."""
    rng = np.random.default_rng(seed)
    rules = (recolour, flip, crop_corner)
    return [
        make_task(f"{prefix}{i}", rules[i % 3](rng), rng, 2 + i % 3, 1 + i % 2, side)
        for i in range(count)
    ]


def make_variants(tasks: Sequence[Task], count: int = 4, seed: int = 0) -> dict[str, Variants]:
    """Recipes of every task."""
    return {task.id: draw_variants(task, count, seed) for task in tasks}


def make_corpus(tasks: Sequence[Task] | None = None, variants: int = 4) -> Corpus:
    """Tasks and their variants, on the CPU."""
    tasks = make_tasks() if tasks is None else tasks
    return Corpus(tasks, make_variants(tasks, variants))


def small_context(source: str) -> dict[str, Any]:
    """The smallest block of a context source."""
    options = {field.name for field in dataclasses.fields(context_source(source).Options)}
    return {"source": source, **{k: v for k, v in SMALL.items() if k in options}}


def make_run(source: str = "standard", **blocks: Any) -> RunConfig:
    """The configuration of a tiny run; `blocks` change single keys, as in `train={"lr": 0.1}`."""
    document: dict[str, Any] = {
        "experiment": "tiny",
        "stage": "pretrain" if source == "embedding" else "overfit",
        "seed": 0,
        "split": "strict",
        "sources": None,
        "episodes": {"canvas": [3, 4]},
        "model": MODEL,
        "context": small_context(source),
        "decoder": {},
        "halting": {"max_steps": 3},
        "train": TRAIN,
        "health": plain(HealthConfig()),
    }
    for name, value in blocks.items():
        old = document[name]
        document[name] = {**old, **value} if isinstance(old, Mapping) else value
    run: RunConfig = parse(RunConfig, document)
    return run


def make_options(source: str, **changes: Any) -> Any:
    """The options of a context source, small, with `changes`."""
    return make_run(source, context=changes).context


def questions_of(run: RunConfig, corpus: Corpus, held_out: Sequence[str] = ()) -> list[Episodes]:
    """The training questions of a run, by lane."""
    needs_demos = context_source(run.context.source).needs_demos
    questions = training_questions(corpus, held_out, run.episodes, needs_demos)
    return group_by_lane(corpus, questions, run.episodes.canvas, see_answers=True)


def demos_of(lane: Episodes) -> torch.Tensor:
    """The first demos of all questions, [E, K] pair indices."""
    return lane.pairs(lane.members(torch.arange(len(lane))))


def make_trainer(run: RunConfig, corpus: Corpus | None = None) -> Trainer:
    """A trainer as `train_run` builds it."""
    corpus = make_corpus() if corpus is None else corpus
    return Trainer(run, build_model(run, corpus.num_puzzles), corpus, questions_of(run, corpus))


def two_lanes(first: int = 3, second: int = 3) -> list[Task]:
    """Tasks with grids of sides up to 3, and up to 4: both lanes are used."""
    larger = make_tasks(second, seed=1, side=4, prefix="larger")
    return [*make_tasks(first, side=3), *larger]


def rows_of(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """Train; the logged rows but for columns that depend on the clock."""
    rows = []
    for _ in range(steps):
        trainer.step()
        if trainer.step_number % trainer.train.log_every == 0:
            row = trainer.row()
            rows.append({k: v for k, v in row.items() if not k.startswith("perf/")})
    return rows


class UnevenHalting(Trainer):
    """Samples of lane 0 halt after one ACT step, those of others after four, a slot at a time."""

    def _halting(self, carry: Carry, q_halt: Tensor, slots: Tensor, halting: Any) -> Tensor:
        small = carry.batch.lane == self.episodes[0].lane
        return (slots + self.step_number) % (1 if small else 4) == 0


def make_batch(
    size: int = 3,
    demos: int = 3,
    side: int | tuple[int, int] = 3,
    puzzles: int = 8,
    seed: int = 0,
) -> Batch:
    """Random samples: every cell of every grid has a colour, all demos are real."""
    generator = torch.Generator().manual_seed(seed)
    (lane,) = lanes_of(side)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(2, 12, shape, generator=generator)

    return Batch(
        puzzle=torch.arange(size) % puzzles,
        task=torch.arange(size) % puzzles,
        inputs=tokens(size, lane.cells),
        labels=tokens(size, lane.cells),
        demo_inputs=tokens(size, demos, lane.cells),
        demo_outputs=tokens(size, demos, lane.cells),
        demo_mask=torch.ones(size, demos, dtype=torch.bool),
        lane=lane,
    )


def write_study(
    folder: Path,
    training: Sequence[Task],
    evaluation: Sequence[Task],
    validation: Sequence[Task] = (),
) -> RunPaths:
    """The tables of a study in `folder`, and where a run on them reads and writes."""
    records = [TaskRecord(task, "made", "training") for task in training]
    records += [TaskRecord(task, "made", "validation") for task in validation]
    records += [TaskRecord(task, "made", "evaluation") for task in evaluation]
    write_tasks(folder / "tasks.parquet", records)
    write_augmentations(folder / "augmentations.parquet", make_variants([r.task for r in records]))
    return paths_in(folder)


def paths_in(folder: Path) -> RunPaths:
    """The places of a run on the tables in `folder`."""
    return RunPaths(
        tasks=folder / "tasks.parquet",
        augmentations=folder / "augmentations.parquet",
        parent=None,
        out=folder / "run",
        state=folder / "state",
        wandb=folder / "wandb",
    )
