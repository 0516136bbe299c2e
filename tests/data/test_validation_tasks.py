"""The draw of validation tasks: by content apart from all others, stratified, seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prepare import some_pairs, write_source

from etrm.arc.augment import Augmentation
from etrm.arc.task import Pair, Task
from etrm.config.data import DataConfig
from etrm.config.sources import WorldSource
from etrm.data.prepare import prepare_tasks, select_tasks
from etrm.data.seen_tasks import find_touched, seen_tasks
from etrm.data.tables import TaskRecord, read_tasks

RECOLOURED = (0, 9, 8, 7, 6, 5, 4, 3, 2, 1)


def task_of(name: str, side: int, pairs: int) -> Task:
    rng = np.random.default_rng(list(name.encode()))
    made = [Pair(*rng.integers(0, 10, (2, side, side), dtype=np.uint8)) for _ in range(pairs)]
    return Task(name, tuple(made[1:]), (made[0],))


def study(folder: Path, **change: Any) -> DataConfig:
    """Twelve tasks of each stratum: 2 sources × sides 3 and 12 × 3 or 4 pairs; 4 held out."""
    kinds = [*product((3, 12), (3, 4), range(12))]
    sources = {
        source: write_source(
            folder / source, [task_of(f"{source}{s}_{p}_{i}", s, p) for s, p, i in kinds]
        )
        for source in "ab"
    }
    sources["c"] = write_source(folder / "c", [task_of(f"c{i}", 4, 3) for i in range(4)])
    return replace(DataConfig(sources, ("a", "b"), ("c",), validation_tasks=20), **change)


def split_of(data: DataConfig, split: str = "validation") -> list[TaskRecord]:
    return [record for record in select_tasks(data)[0] if record.split == split]


def names(records: Sequence[TaskRecord]) -> list[str]:
    return [record.task.id for record in records]


def test_each_stratum_gives_its_share(tmp_path: Path) -> None:
    """20 of 96 tasks in eight strata of twelve: two or three of each."""
    drawn = split_of(study(tmp_path))
    strata = Counter(record.task.id.rpartition("_")[0] for record in drawn)
    assert len(drawn) == 20
    assert len(strata) == 8
    assert set(strata.values()) == {2, 3}


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    data = study(tmp_path)
    drawn = names(split_of(data))
    assert sorted(names(split_of(replace(data, training=("b", "a"))))) == sorted(drawn)
    assert names(split_of(replace(data, evaluation=()))) == drawn
    assert names(split_of(replace(data, variants=1))) == drawn
    assert set(names(split_of(replace(data, seed=1)))) != set(drawn)


def test_training_tasks_are_drawn_from_the_others(tmp_path: Path) -> None:
    """Few of them are the same tasks as without validation: the two draws begin at two ends."""
    data = study(tmp_path, training_tasks=10)
    training, drawn = names(split_of(data, "training")), names(split_of(data))
    assert (len(training), len(drawn)) == (10, 20)
    assert not set(training) & set(drawn)
    assert training == names(split_of(replace(data, validation_tasks=0), "training"))
    everything = replace(data, training_tasks=None)
    assert len(split_of(everything, "training")) == 96 - 20


def test_by_default_a_tenth_is_held_out(tmp_path: Path) -> None:
    data = study(tmp_path, validation_tasks=None)
    assert len(split_of(data)) == 9
    assert split_of(replace(data, validation_tasks=0)) == []


def test_a_study_of_validation_tasks_alone_is_refused(tmp_path: Path) -> None:
    data = study(tmp_path, validation_tasks=96)
    with pytest.raises(ValueError, match=r"no training task left: 96 of 96 .*96 of them for valid"):
        select_tasks(data)


@pytest.mark.parametrize("seed", range(4))
def test_validation_tasks_touch_no_other_task(tmp_path: Path, seed: int) -> None:
    """Tasks of pairs out of a small pool, turned and recoloured: many share one with another."""
    pool, rng = some_pairs(180, colors=4, seed=seed), np.random.default_rng(seed)

    def tasks(prefix: str, count: int) -> list[Task]:
        drawn = [[pool[i] for i in rng.permutation(len(pool))[:3]] for _ in range(count)]
        made = [Task(f"{prefix}{i}", tuple(p[:2]), tuple(p[2:])) for i, p in enumerate(drawn)]
        return [Augmentation(i % 8, RECOLOURED).apply_to_task(t) for i, t in enumerate(made)]

    sources = {"t": write_source(tmp_path / "t", tasks("t", 25))}
    sources["h"] = write_source(tmp_path / "h", tasks("h", 4))
    prepare_tasks(DataConfig(sources, ("t",), ("h",), validation_tasks=20), tmp_path / "t.parquet")
    records = read_tasks(tmp_path / "t.parquet")
    of = {s: [r.task for r in records if r.split == s] for s in ("training", "validation")}
    rest = [record.task for record in records if record.split != "validation"]
    assert 0 < len(of["validation"]) < 20  # the others are not eligible
    assert find_touched(seen_tasks(rest, []), of["validation"]) == {}
    assert find_touched(seen_tasks(of["validation"], []), rest) == {}
    assert not any(r.duplicate_of or r.answer_of for r in records if r.split == "validation")


def test_a_world_beside_other_tasks_keeps_its_number_and_gives_no_validation(
    tmp_path: Path,
) -> None:
    world = WorldSource(rules=("fill", "keep"), size=(1, 6), tasks=30, part="training")
    base = study(tmp_path, training_tasks=10)
    data = replace(base, sources={**base.sources, "w": world}, training=("a", "b", "w"))
    of = Counter((record.source == "w", record.split) for record in select_tasks(data)[0])
    assert of[True, "training"] == 30
    assert of[True, "validation"] == 0
    assert of[False, "training"] == 10
    assert of[False, "validation"] == 20
    alone = replace(data, training=("w",), validation_tasks=5)
    of = Counter((record.source == "w", record.split) for record in select_tasks(alone)[0])
    assert (of[True, "training"], of[True, "validation"]) == (25, 5)
