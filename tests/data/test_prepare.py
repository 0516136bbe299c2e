"""The stages `tasks` and `augment`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.arc.sources import SourceError
from etrm.arc.task import Pair, Task
from etrm.config.sources import FolderSource, SourceConfig
from etrm.config.study import DataConfig
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.data.seen_tasks import find_touched, seen_tasks
from etrm.data.tables import TaskRecord, read_augmentations, read_tasks


def write_source(folder: Path, sides: dict[str, int], output_side: int = 3) -> FolderSource:
    """A folder of tasks whose demos and query inputs have the given sides."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(list(folder.name.encode()))
    for name, side in sides.items():
        pairs = [
            {
                "input": rng.integers(0, 10, (side, 2)).tolist(),
                "output": rng.integers(0, 10, (output_side, 2)).tolist(),
            }
            for _ in range(3)
        ]
        task = {"train": pairs[:2], "test": pairs[2:]}
        (folder / f"{name}.json").write_text(json.dumps(task))
    return FolderSource(kind="folder", path=str(folder), labelled=True, hint="")


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return DataConfig(
        sources={
            "a": write_source(tmp_path / "a", {f"a{i:02}": 3 + i % 4 for i in range(20)}),
            "b": write_source(tmp_path / "b", {f"b{i:02}": 3 + i % 4 for i in range(20)}),
            "c": write_source(tmp_path / "c", {"c0": 5, "c1": 3}),
        },
        training=("c", "a"),
        evaluation=("b",),
        max_side=None,
        training_tasks=None,
        evaluation_tasks=None,
        variants=8,
        seed=0,
    )


def prepared(data: DataConfig, out: Path) -> list[TaskRecord]:
    prepare_tasks(data, out)
    return read_tasks(out)


def ids(records: list[TaskRecord], split: str) -> list[str]:
    return [record.task.id for record in records if record.split == split]


def test_tasks_are_in_the_order_of_the_sources(data: DataConfig, tmp_path: Path) -> None:
    records = prepared(data, tmp_path / "tasks.parquet")
    assert ids(records, "training") == ["c0", "c1", *(f"a{i:02}" for i in range(20))]
    assert ids(records, "evaluation") == [f"b{i:02}" for i in range(20)]
    assert {record.task.id[0]: record.source for record in records} == {
        "a": "a",
        "b": "b",
        "c": "c",
    }
    assert records[0].task.queries[0].output is not None


def test_only_named_sources_are_loaded(data: DataConfig, tmp_path: Path) -> None:
    missing = FolderSource(kind="folder", path=str(tmp_path / "no"), labelled=True, hint="")
    data = replace(data, sources={**data.sources, "missing": missing}, training=("c",))
    assert ids(prepared(data, tmp_path / "t.parquet"), "training") == ["c0", "c1"]


def test_max_side_looks_at_demos_and_query_inputs_only(tmp_path: Path) -> None:
    """Each task has one grid of side 7; only where it is the answer is the task kept."""
    folder = tmp_path / "s"
    folder.mkdir()
    small, large = [[1]], [[1]] * 7
    grids = {"demo_in": 0, "demo_out": 1, "query_in": 2, "query_out": 3}
    for name, place in grids.items():
        four = [large if i == place else small for i in range(4)]
        task = {
            "train": [{"input": four[0], "output": four[1]}],
            "test": [{"input": four[2], "output": four[3]}],
        }
        (folder / f"{name}.json").write_text(json.dumps(task))
    source = FolderSource(kind="folder", path=str(folder), labelled=True, hint="")
    data = DataConfig(sources={"s": source}, training=("s",), evaluation=(), max_side=6)
    assert ids(prepared(data, tmp_path / "t.parquet"), "training") == ["query_out"]
    kept = ids(prepared(replace(data, max_side=7), tmp_path / "t.parquet"), "training")
    assert kept == sorted(grids)


def test_a_larger_draw_keeps_the_tasks_of_a_smaller_one(data: DataConfig, tmp_path: Path) -> None:
    draws = [
        ids(prepared(replace(data, training_tasks=n), tmp_path / "t.parquet"), "training")
        for n in (1, 5, 12, 22, 100)
    ]
    assert [len(draw) for draw in draws] == [1, 5, 12, 22, 22]
    for small, large in pairwise(draws):
        assert set(small) < set(large) or small == large
        assert [task_id for task_id in large if task_id in small] == small
    other = replace(data, training_tasks=12, seed=1)
    assert ids(prepared(other, tmp_path / "t.parquet"), "training") != draws[2]


def test_the_draw_does_not_depend_on_other_tasks(data: DataConfig, tmp_path: Path) -> None:
    """Of the tasks drawn before, those still there are drawn again when a source is added."""
    alone = replace(data, training=("a",), training_tasks=10)
    before = set(ids(prepared(alone, tmp_path / "t.parquet"), "training"))
    after = ids(prepared(replace(alone, training=("a", "c")), tmp_path / "t.parquet"), "training")
    from_a = {task_id for task_id in after if task_id.startswith("a")}
    assert len(from_a) >= 8
    assert from_a <= before


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_an_empty_result_is_an_error(data: DataConfig, tmp_path: Path, split: str) -> None:
    out = tmp_path / "tasks.parquet"
    small = replace(data, max_side=2)
    if split == "evaluation":
        (tmp_path / "d").mkdir()
        tiny = {"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1]]}]}
        (tmp_path / "d" / "d0.json").write_text(json.dumps(tiny))
        source = FolderSource(kind="folder", path=str(tmp_path / "d"), labelled=False, hint="")
        small = replace(small, sources={**data.sources, "d": source}, training=("d",))
    with pytest.raises(ValueError, match=f"no {split} task left: 0 of .*max_side = 2.* has 3"):
        prepare_tasks(small, out)
    assert not out.exists()


def test_nothing_is_written_for_bad_sources(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a" / "a03.json").write_text("{}")
    (tmp_path / "b" / "b03.json").write_text("[")
    out = tmp_path / "results" / "tasks.parquet"
    with pytest.raises(SourceError) as caught:
        prepare_tasks(data, out)
    assert "a03.json: task a03" in str(caught.value)
    assert "b03.json: found truncated JSON" in str(caught.value)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": ("a", "x")}, "no source 'x'; it has a, b, c"),
        ({"evaluation": ("a",)}, "source 'a' is named twice"),
        ({"training": (), "evaluation": ()}, "name no source"),
    ],
)
def test_names_that_cannot_be_meant(
    data: DataConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_tasks(replace(data, **change), tmp_path / "t.parquet")


def test_the_summary_counts_what_was_kept(data: DataConfig, tmp_path: Path) -> None:
    summary = prepare_tasks(replace(data, max_side=4, evaluation_tasks=5), tmp_path / "t.parquet")
    assert summary.splitlines() == [
        "training: 11 tasks kept of 11 small enough of 22; 22 demos, 11 queries",
        "evaluation: 5 tasks kept of 10 small enough of 20; 10 demos, 5 queries",
    ]


def test_both_tables_are_the_same_bytes_each_time(data: DataConfig, tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        prepare_tasks(data, folder / "t.parquet")
        prepare_augmentations(folder / "t.parquet", folder / "a.parquet", data.variants, data.seed)
    for name in ("t.parquet", "a.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_augmentations_of_all_tasks(data: DataConfig, tmp_path: Path) -> None:
    tasks, out = tmp_path / "t.parquet", tmp_path / "a.parquet"
    records = prepared(data, tasks)
    summary = prepare_augmentations(tasks, out, 8, seed=0)
    assert summary == "336 augmented puzzles of 42 tasks"
    variants = read_augmentations(out)
    assert list(variants) == [record.task.id for record in records]
    assert {len(drawn) for drawn in variants.values()} == {8}
    for drawn in variants.values():
        assert drawn.dihedral[0] == 0
        assert drawn.permutation[0].tolist() == list(range(10))


def test_adding_a_task_changes_no_other_tasks_variants(data: DataConfig, tmp_path: Path) -> None:
    tasks, out = tmp_path / "t.parquet", tmp_path / "a.parquet"
    read = []
    for training in (("a",), ("c", "a")):
        prepare_tasks(replace(data, training=training), tasks)
        prepare_augmentations(tasks, out, 6, seed=0)
        read.append(read_augmentations(out))
    before, after = read
    assert set(after) - set(before) == {"c0", "c1"}
    for task_id, drawn in before.items():
        assert np.array_equal(drawn.dihedral, after[task_id].dihedral)
        assert np.array_equal(drawn.permutation, after[task_id].permutation)
        assert np.array_equal(drawn.digest, after[task_id].digest)


def test_the_summary_names_tasks_with_few_variants(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    dot = {"input": [[0]], "output": [[3]]}
    (folder / "dot.json").write_text(json.dumps({"train": [dot], "test": [dot]}))
    source = FolderSource(kind="folder", path=str(folder), labelled=True, hint="")
    data = DataConfig(sources={"s": source}, training=("s",), evaluation=())
    prepare_tasks(data, tmp_path / "t.parquet")
    summary = prepare_augmentations(tmp_path / "t.parquet", tmp_path / "a.parquet", 1000, seed=0)
    assert summary.splitlines() == [
        "9 augmented puzzles of 1 tasks",
        "1 tasks have fewer than 1,000 distinct: dot (9)",
    ]


def test_a_held_out_task_under_another_id_is_marked_and_reported(
    data: DataConfig, tmp_path: Path
) -> None:
    """Turned, recoloured, its pairs in another order: the content gives it away."""
    source = data.sources["b"]
    assert isinstance(source, FolderSource)
    content = json.loads((Path(source.path) / "b07.json").read_text())
    swap = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    for pair in [*content["train"], *content["test"]]:
        for key in ("input", "output"):
            turned = np.rot90(np.array(pair[key])).tolist()
            pair[key] = [[swap[c] for c in row] for row in turned]
    content["train"], content["test"] = content["test"] + content["train"][:1], content["train"][1:]
    folder = Path(data.sources["a"].path)  # type: ignore[union-attr]
    (folder / "hidden.json").write_text(json.dumps(content))
    summary = prepare_tasks(data, tmp_path / "t.parquet")
    assert "training task hidden holds a test pair of held-out task b07" in summary
    assert marks(tmp_path / "t.parquet") == {"hidden": ("b07", "b07")}


# --- leaks ---


def marks(tasks: Path) -> dict[str, tuple[str | None, str | None]]:
    """Tasks that are left out of training: id → `duplicate_of`, `answer_of`."""
    marked = {r.task.id: (r.duplicate_of, r.answer_of) for r in read_tasks(tasks)}
    return {name: both for name, both in marked.items() if any(both)}


def studied(folder: Path, training: list[Task], held_out: list[Task]) -> DataConfig:
    """A study of these tasks, written to `folder`."""
    sources: dict[str, SourceConfig] = {}
    for name, tasks in (("training", training), ("held_out", held_out)):
        (folder / name).mkdir(parents=True)
        for task in tasks:
            (folder / name / f"{task.id}.json").write_text(json.dumps(as_json(task)))
        path = str(folder / name)
        sources[name] = FolderSource(kind="folder", path=path, labelled=True, hint="")
    return DataConfig(sources=sources, training=("training",), evaluation=("held_out",))


def as_json(task: Task) -> dict[str, Any]:
    def pairs(of: tuple[Pair, ...]) -> list[dict[str, Any]]:
        return [{"input": p.input.tolist(), "output": np.array(p.output).tolist()} for p in of]

    return {"train": pairs(task.demos), "test": pairs(task.queries)}


def some_pairs(count: int, side: int = 3, colors: int = 10, seed: int = 0) -> list[Pair]:
    grids = np.random.default_rng(seed).integers(0, colors, (count, 2, side, side), dtype=np.uint8)
    return [Pair(*both) for both in grids]


def test_demos_spread_over_training_tasks_are_marked_and_reported(tmp_path: Path) -> None:
    """Each of the two tasks alone holds too little of it, both together all."""
    a, b, *rest = some_pairs(20)
    held_out = Task("held", (a, b), (rest[0],))
    spread = [Task("one", (a, *rest[1:5]), (rest[5],)), Task("two", (b, *rest[6:9]), (rest[9],))]
    other = Task("other", tuple(rest[10:13]), (rest[13],))
    data = studied(tmp_path, [*spread, other], [held_out])
    summary = prepare_tasks(data, tmp_path / "t.parquet")
    assert "training tasks one, two hold all demos of held-out task held" in summary
    assert marks(tmp_path / "t.parquet") == {"one": ("held", None), "two": ("held", None)}
    kept = [r.task for r in read_tasks(tmp_path / "t.parquet") if r.duplicate_of is None]
    assert find_touched(seen_tasks(kept[:1], []), [held_out]) == {}
    assert find_touched(seen_tasks(spread, []), [held_out]).keys() == {"held"}


def test_most_of_a_small_task_is_marked_and_reported(tmp_path: Path) -> None:
    """Both test pairs and all demos but one, none of them with 32 cells."""
    demo, other, *rest = some_pairs(20)
    held_out = Task("held", (demo, other), tuple(rest[:2]))
    most = Task("most", (demo, *rest[:2], *rest[3:9]), (rest[9],))
    summary = prepare_tasks(studied(tmp_path, [most], [held_out]), tmp_path / "t.parquet")
    assert "training task most holds a test pair of held-out task held" in summary
    assert marks(tmp_path / "t.parquet") == {"most": ("held", "held")}


def test_a_shared_demo_gives_no_answer_away(tmp_path: Path) -> None:
    large, *rest = some_pairs(9, side=4)
    held_out = Task("held", (large, rest[0]), (rest[1],))
    part = Task("part", (large, rest[2]), (rest[3],))
    summary = prepare_tasks(studied(tmp_path, [part], [held_out]), tmp_path / "t.parquet")
    assert "training task part shares pairs with held-out task held" in summary
    assert marks(tmp_path / "t.parquet") == {"part": ("held", None)}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_strict_training_keeps_touches_a_held_out_task(
    tmp_path: Path, seed: int
) -> None:
    """Tasks of few pairs out of few: many are equal, alone and in all sorts of unions."""
    pool = some_pairs(90, side=2, colors=3, seed=seed)
    rng = np.random.default_rng(seed)

    def tasks(prefix: str, count: int) -> list[Task]:
        drawn = [[pool[i] for i in rng.permutation(len(pool))[:4]] for _ in range(count)]
        return [Task(f"{prefix}{i}", tuple(p[:3]), tuple(p[3:])) for i, p in enumerate(drawn)]

    training, held_out = tasks("t", 15), tasks("h", 6)
    prepare_tasks(studied(tmp_path, training, held_out), tmp_path / "t.parquet")
    left_out = marks(tmp_path / "t.parquet")
    kept = [task for task in training if task.id not in left_out]
    assert 0 < len(left_out) < len(training)
    assert find_touched(seen_tasks(kept, []), held_out) == {}
    assert find_touched(seen_tasks(training, []), held_out) != {}


def test_a_task_of_300_demos_is_prepared(tmp_path: Path) -> None:
    pairs = some_pairs(302, side=2)
    many, held_out = (
        Task("many", tuple(pairs[:300]), (pairs[300],)),
        Task("h", *[(pairs[301],)] * 2),
    )
    prepare_tasks(studied(tmp_path, [many], [held_out]), tmp_path / "t.parquet")
    assert read_tasks(tmp_path / "t.parquet")[0].task == many
    prepare_augmentations(tmp_path / "t.parquet", tmp_path / "a.parquet", 4, seed=0)
    assert len(read_augmentations(tmp_path / "a.parquet")["many"]) == 4
