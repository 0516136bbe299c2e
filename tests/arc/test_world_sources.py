"""Worlds as sources: their tasks and ground truth reach tasks.parquet, and a study reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from etrm.arc.augment import draw_variants
from etrm.arc.overlap import TaskContent
from etrm.arc.sources import SourceError, load_sources
from etrm.config.data import DataConfig
from etrm.config.sources import WorldSource
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.data.tables import read_augmentations, read_tasks
from etrm.storage.digests import code_digests
from etrm.worlds.generate import generate

WORLD_CODE = ("lines", "planes", "objects", "inputs", "identify", "world", "generate", "registry")


def study(**options: int) -> DataConfig:
    sources = {
        "seen": WorldSource(part="training", tasks=300),
        "unseen": WorldSource(part="held_out", tasks=40),
    }
    return DataConfig(
        sources=sources, training=("seen",), evaluation=("unseen",), variants=1, **options
    )


def test_a_study_of_a_world(tmp_path: Path) -> None:
    data, path = study(validation_tasks=0), tmp_path / "tasks.parquet"
    prepare_tasks(data, path)
    records = read_tasks(path)
    assert Counter(r.split for r in records) == {"training": 300, "evaluation": 40}
    for record, made in zip(records, generate(data.sources["seen"], 0, 300), strict=False):
        task = record.task
        assert task.rule is not None
        assert (task.id, task.rule.name, task.rule.parameters) == (
            made.id,
            made.rule,
            made.parameters,
        )
        assert [p.input.tolist() for p in task.demos] == [x.tolist() for x, _ in made.pairs[:3]]
    novel = {r.task.rule.novelty for r in records[300:] if r.task.rule}
    assert novel == {"parameters", "grids"}
    # Of the intervals between two cells there are few, up to reflection and colours.
    assert [r for r in records if r.duplicate_of] == []
    assert "fewer" not in prepare_augmentations(path, tmp_path / "a.parquet", 5, seed=0)
    assert {len(each) for each in read_augmentations(tmp_path / "a.parquet").values()} == {1}


def test_tasks_of_a_world_may_have_variants() -> None:
    """Their content counts as that of tasks of ARC then."""
    [between] = load_sources(
        {"w": WorldSource(part="training", rules=("between",), tasks=400, augment=True)}
    ).values()
    assert not any(task.exact for task in between.tasks)
    assert len(draw_variants(between.tasks[0], 5, seed=0)) == 5
    assert (
        len({key for own in TaskContent.of_all(between.tasks).values() for key in own.cells}) < 30
    )


def test_a_world_without_tasks_is_a_problem_of_its_source() -> None:
    bad = WorldSource(part="training", rules=("shift",), size=(1, 1))
    with pytest.raises(SourceError) as caught:
        load_sources({"bad": bad, "worse": bad})
    assert len(caught.value.problems) == 2


def test_the_stage_depends_on_the_code_of_every_primitive() -> None:
    found = code_digests("etrm.data.prepare:prepare_tasks")
    assert {f"etrm.worlds.{name}" for name in WORLD_CODE} <= found.keys()
