"""New tasks of a world in the course of training: which, when, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_run

from etrm.config.data import DataConfig
from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.evaluation.run import held_out_claim, held_out_tasks
from etrm.runtime.distributed import Ranks
from etrm.training.build import build_trainer
from etrm.training.renewal import RenewalError
from etrm.training.run import RunPaths, train_run
from etrm.training.slots import LaneSlots
from etrm.training.trainer import Trainer

WORLD: dict[str, Any] = {"kind": "world", "rules": ["recolour", "mirror"], "size": [1, 6]}
TASKS, EVERY = 8, 3
EPISODES = {"canvas": [[1, 6]], "queries": "test_pairs", "translate": False}


def study(folder: Path, **other: dict[str, Any]) -> RunPaths:
    folder.mkdir(exist_ok=True)
    sources = {
        "seen": {**WORLD, "part": "training", "tasks": TASKS},
        "unseen": {**WORLD, "part": "held_out", "tasks": 4, **other},
    }
    data = {"sources": sources, "training": ["seen"], "evaluation": ["unseen"]}
    names = ("tasks.parquet", "augmentations.parquet")
    prepare_tasks(parse(DataConfig, data), folder / names[0])
    prepare_augmentations(folder / names[0], folder / names[1], variants=1, seed=0)
    places = {name: folder / name for name in ("out", "state", "wandb")}
    return RunPaths(folder / names[0], folder / names[1], None, **places)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return study(tmp_path_factory.mktemp("world") / "study")


def run_of(**changes: Any) -> RunConfig:
    train = {"new_tasks_every": EVERY, "steps": 8, **changes.pop("train", {})}
    episodes = EPISODES | changes.pop("episodes", {})
    return make_run(changes.pop("source", "perceiver"), train=train, episodes=episodes, **changes)


def trainer_of(run: RunConfig, paths: RunPaths) -> Trainer:
    tables = paths.tasks, paths.augmentations
    return build_trainer(run, tables, None, Ranks(), ExecutionConfig())[0]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[bytes]]:
    """By step: the test inputs and first demos of what slots are offered."""
    found: dict[int, set[bytes]] = {}
    batch_of = LaneSlots.batch

    def spy(self: LaneSlots, step: int) -> Batch:
        batch = batch_of(self, step)
        rows = torch.cat([batch.inputs, batch.demo_inputs[:, 0]], dim=1)
        found[step] = {row.numpy().tobytes() for row in rows}
        return batch

    monkeypatch.setattr(LaneSlots, "batch", spy)
    return found


def test_tasks_are_new_every_so_many_steps(paths: RunPaths, taken: dict[int, set[bytes]]) -> None:
    trainer = trainer_of(run_of(train={"batch_size": 64}), paths)
    for _ in range(9):
        trainer.step()
    periods = [set.union(*(taken[s] for s in range(n, n + EVERY))) for n in (1, 4, 7)]
    assert [len(period) for period in periods] == [TASKS] * 3  # 192 draws of eight tasks
    assert len(set.union(*periods)) == 3 * TASKS
    assert trainer.evaluate()["all.exact_accuracy"] >= 0  # of the tables' tasks
    assert len(trainer.corpus.tasks) == TASKS


def test_a_run_with_new_tasks_resumes_bit_for_bit(paths: RunPaths) -> None:
    """Also where some slots still hold tasks of the period before."""
    run = run_of(halting={"max_steps": 3})
    whole, killed = trainer_of(run, paths), trainer_of(run, paths)
    for _ in range(5):
        killed.step()
        whole.step()
    resumed = trainer_of(run, paths)
    resumed.load_state_dict(killed.state_dict() or {})
    for _ in range(3):
        resumed.step()
        whole.step()
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_new_tasks_show_as_many_demos_as_the_first(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform numbers of demos are drawn in every period."""
    shown: dict[int, set[int]] = {}
    batch_of = LaneSlots.batch

    def spy(self: LaneSlots, step: int) -> Batch:
        batch = batch_of(self, step)
        shown[step] = set(batch.demo_mask.sum(dim=1).tolist())
        return batch

    monkeypatch.setattr(LaneSlots, "batch", spy)
    numbers = {"shown": "uniform", "min_demos": 1, "max_demos": 3}
    trainer = trainer_of(run_of(train={"batch_size": 64}, episodes=numbers), paths)
    for _ in range(5):
        trainer.step()
    assert shown[1] == shown[5] == {1, 2, 3}


def test_without_the_option_tasks_stay(paths: RunPaths, taken: dict[int, set[bytes]]) -> None:
    trainer = trainer_of(run_of(train={"new_tasks_every": None, "batch_size": 64}), paths)
    for _ in range(6):
        trainer.step()
    assert len(set.union(*taken.values())) == TASKS


@pytest.mark.parametrize(("other", "status"), [({}, "proven"), ({"seed": 1}, "not proven")])
def test_only_the_parts_of_one_world_are_known_to_be_apart(
    other: dict[str, Any], status: str, tmp_path: Path
) -> None:
    places = study(tmp_path / "study", **other)
    record = train_run(run_of(), places, TrackingConfig(wandb="disabled"), device="cpu")
    assert held_out_claim(record, held_out_tasks(places.tasks))["status"] == status


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"source": "embedding"}, "source embedding"),
        ({"context": {"contrastive_weight": 0.1}}, "contrastive"),
    ],
)
def test_what_goes_by_the_numbers_of_tasks_is_refused(
    changes: dict[str, Any], found: str, paths: RunPaths
) -> None:
    with pytest.raises(RenewalError, match=found):
        trainer_of(run_of(**changes), paths)


def test_tasks_of_files_are_refused(paths: RunPaths, tmp_path: Path) -> None:
    places = study(tmp_path / "study")
    fixed = replace(places, tasks=tmp_path / "t.parquet")
    data = {
        "sources": {
            "seen": {**WORLD, "part": "training", "augment": True, "tasks": 4},
            "unseen": {**WORLD, "part": "held_out", "tasks": 2},
        },
        "training": ["seen"],
        "evaluation": ["unseen"],
    }
    prepare_tasks(parse(DataConfig, data), fixed.tasks)
    prepare_augmentations(fixed.tasks, fixed.augmentations, variants=2, seed=0)
    with pytest.raises(RenewalError, match="tasks of seen"):
        trainer_of(run_of(), fixed)
