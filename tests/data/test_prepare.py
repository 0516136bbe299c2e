"""The stages `tasks` and `augment`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.arc.augment import Augmentation
from etrm.arc.sources import SourceError
from etrm.arc.task import Pair, Task
from etrm.config.data import DataConfig
from etrm.config.sources import FolderSource, KaggleSource
from etrm.data.duplicates import DuplicateError
from etrm.data.prepare import (
    mark_overlaps,
    prepare_augmentations,
    prepare_tasks,
    select_tasks,
)
from etrm.data.seen_tasks import find_touched, seen_tasks
from etrm.data.tables import TaskRecord, read_augmentations, read_sources, read_tasks


def write_source(folder: Path, tasks: Sequence[Task]) -> FolderSource:
    """A folder of the given tasks."""
    folder.mkdir(parents=True)
    for task in tasks:
        pairs = {"train": task.demos, "test": task.queries}
        text = {
            key: [{"input": p.input.tolist(), "output": np.array(p.output).tolist()} for p in each]
            for key, each in pairs.items()
        }
        (folder / f"{task.id}.json").write_text(json.dumps(text))
    return FolderSource(path=str(folder))


def task_of_side(name: str, side: int) -> Task:
    """A task of random grids; demos and query inputs have the given side."""
    rng = np.random.default_rng(list(name.encode()))
    first, second, query = (
        Pair(rng.integers(0, 10, (side, 2)), rng.integers(0, 10, (3, 2))) for _ in range(3)
    )
    return Task(name, (first, second), (query,))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Twenty tasks a00, a01, … and b00, b01, … of sides 3 to 6, and two more."""
    sides = {f"{source}{i:02}": 3 + i % 4 for source in "ab" for i in range(20)}
    sides |= {"c0": 5, "c1": 3}
    sources = {
        s: write_source(
            tmp_path / s, [task_of_side(n, side) for n, side in sides.items() if n[0] == s]
        )
        for s in "abc"
    }
    training, evaluation = ("c", "a"), ("b",)
    return DataConfig(sources, training, evaluation, validation_tasks=0, variants=8)


def prepared(data: DataConfig, out: Path) -> list[TaskRecord]:
    prepare_tasks(data, out)
    return read_tasks(out)


def ids(records: list[TaskRecord], split: str = "training") -> list[str]:
    return [record.task.id for record in records if record.split == split]


def test_tasks_are_in_the_order_of_the_sources(data: DataConfig, tmp_path: Path) -> None:
    records = prepared(data, tmp_path / "tasks.parquet")
    assert ids(records) == ["c0", "c1", *(f"a{i:02}" for i in range(20))]
    assert ids(records, "evaluation") == [f"b{i:02}" for i in range(20)]
    assert all(record.source == record.task.id[0] for record in records)
    assert records[0].task.queries[0].output is not None


def test_only_named_sources_are_loaded(data: DataConfig, tmp_path: Path) -> None:
    missing = FolderSource(path=str(tmp_path / "no"))
    data = replace(data, sources={**data.sources, "missing": missing}, training=("c",))
    assert ids(prepared(data, tmp_path / "t.parquet")) == ["c0", "c1"]


def test_max_side_looks_at_demos_and_query_inputs_only(tmp_path: Path) -> None:
    """Each task has one grid of side 7; only where it is the answer is the task kept."""
    small, large = np.ones((1, 1), np.uint8), np.ones((7, 1), np.uint8)
    tasks = []
    for place, name in enumerate(("demo_in", "demo_out", "query_in", "query_out")):
        four = [large if i == place else small for i in range(4)]
        tasks.append(Task(name, (Pair(*four[:2]),), (Pair(*four[2:]),)))
    source = write_source(tmp_path / "s", tasks)
    data = DataConfig(sources={"s": source}, training=("s",), evaluation=(), max_side=6)
    assert ids(prepared(data, tmp_path / "t.parquet")) == ["query_out"]
    assert len(prepared(replace(data, max_side=7), tmp_path / "t.parquet")) == 4


def test_a_larger_draw_keeps_the_tasks_of_a_smaller_one(data: DataConfig, tmp_path: Path) -> None:
    def drawn(**change: Any) -> list[str]:
        return ids(prepared(replace(data, **change), tmp_path / "t.parquet"))

    draws = [drawn(training_tasks=n) for n in (1, 5, 12, 22, 100)]
    assert [len(draw) for draw in draws] == [1, 5, 12, 22, 22]
    for small, large in pairwise(draws):
        assert [task_id for task_id in large if task_id in small] == small
    assert drawn(training_tasks=12, seed=1) != draws[2]
    # Of the tasks drawn before, those still there are drawn again when a source is added.
    before = drawn(training=("a",), training_tasks=10)
    after = drawn(training=("a", "c"), training_tasks=10)
    from_a = {task_id for task_id in after if task_id.startswith("a")}
    assert len(from_a) >= 8
    assert from_a <= set(before)


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_an_empty_result_is_an_error(data: DataConfig, tmp_path: Path, split: str) -> None:
    small = replace(data, max_side=2)
    if split == "evaluation":
        cell = Pair(np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))
        source = write_source(tmp_path / "d", [Task("d0", (cell,), (cell,))])
        small = replace(small, sources={**data.sources, "d": source}, training=("d",))
    with pytest.raises(ValueError, match=f"no {split} task left: 0 of .*max_side = 2.* has 3"):
        prepare_tasks(small, tmp_path / "tasks.parquet")
    assert not (tmp_path / "tasks.parquet").exists()


def test_nothing_is_written_for_bad_sources(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "a" / "a03.json").write_text("{}")
    (tmp_path / "b" / "b03.json").write_text("[")
    out = tmp_path / "results" / "tasks.parquet"
    with pytest.raises(SourceError, match=r"(?s)a03\.json.*b03\.json: found truncated"):
        prepare_tasks(data, out)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": ("a",)}, "'a' twice"),
        ({"training": ("c", "c")}, "'c' twice"),
        ({"training": (), "evaluation": ()}, "no source"),
    ],
)
def test_names_that_cannot_be_meant(
    data: DataConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_tasks(replace(data, **change), tmp_path / "t.parquet")


def test_the_summary_counts_tasks_and_pairs(data: DataConfig, tmp_path: Path) -> None:
    summary = prepare_tasks(replace(data, max_side=4, evaluation_tasks=5), tmp_path / "t.parquet")
    assert summary.splitlines()[3:] == [  # after a line on each source
        "training: 11 tasks kept of 11 small enough of 22; 22 demos, 11 queries",
        "evaluation: 5 tasks kept of 10 small enough of 20; 10 demos, 5 queries",
    ]


def test_augmentations_of_all_tasks(data: DataConfig, tmp_path: Path) -> None:
    """Equal bytes each time; adding a task changes no other task's variants."""
    tasks, out = tmp_path / "t.parquet", tmp_path / "a.parquet"
    written, read = [], []
    for training in (("c", "a"), ("c", "a"), ("a",)):
        records = prepared(replace(data, training=training), tasks)
        summary = prepare_augmentations(tasks, out, data.variants, data.seed)
        written.append((tasks.read_bytes(), out.read_bytes()))
        read.append(read_augmentations(out))
        assert list(read[-1]) == [record.task.id for record in records]
        assert summary == f"{8 * len(records)} augmented puzzles of {len(records)} tasks"
    assert written[0] == written[1]
    assert set(read[0]) - set(read[2]) == {"c0", "c1"}
    for task_id, drawn in read[2].items():
        assert drawn[0] == Augmentation(0, tuple(range(10)))
        assert np.array_equal(drawn.dihedral, read[0][task_id].dihedral)
        assert np.array_equal(drawn.permutation, read[0][task_id].permutation)
        assert np.array_equal(drawn.digest, read[0][task_id].digest)


def test_the_summary_names_tasks_with_few_variants(tmp_path: Path) -> None:
    dot = Pair(np.array([[0]]), np.array([[3]]))
    source = write_source(tmp_path / "s", [Task("dot", (dot,), (dot,))])
    data = DataConfig(sources={"s": source}, training=("s",), evaluation=())
    prepare_tasks(data, tmp_path / "t.parquet")
    summary = prepare_augmentations(tmp_path / "t.parquet", tmp_path / "a.parquet", 1000, seed=0)
    assert summary.splitlines() == [
        "9 augmented puzzles of 1 tasks",
        "1 tasks have fewer than 1,000 distinct: dot (9)",
    ]


# --- tasks of several sources ---


def renamed(name: str, task: Task) -> Task:
    return replace(task, id=name)


def two_sources(folder: Path) -> DataConfig:
    """Tasks x, y, z; then x of other content, y turned and recoloured as `other`, and `new`."""
    first = [task_of_side(name, 4) for name in "xyz"]
    turned = Augmentation(1, (0, 9, 8, 7, 6, 5, 4, 3, 2, 1)).apply_to_task(first[1])
    moved = replace(turned, demos=turned.queries, queries=turned.demos)  # as revisions of ARC do
    second = [renamed("x", task_of_side("q", 4)), renamed("other", moved), task_of_side("new", 4)]
    held_out = [task_of_side("held", 4), renamed("z", task_of_side("r", 4))]
    sources = {
        "one": write_source(folder / "one", first),
        "two": write_source(folder / "two", second),
        "held_out": write_source(folder / "held_out", held_out),
    }
    return DataConfig(sources, ("one", "two"), ("held_out",), validation_tasks=0)


def test_tasks_of_two_sources_are_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(DuplicateError, match=r"data\.duplicates: first") as caught:
        prepare_tasks(two_sources(tmp_path), tmp_path / "t.parquet")
    [line] = caught.value.lines
    assert "other (is y), x" in line
    data = replace(two_sources(tmp_path / "2"), training=("one",), evaluation=("held_out", "two"))
    assert ids(prepared(data, tmp_path / "t.parquet"), "evaluation") == [
        "held",
        "z",
        "new",
        "other",
        "x",
    ]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_the_first_source_keeps_the_tasks_of_both(tmp_path: Path, order: tuple[str, str]) -> None:
    """By id, and by content up to augmentation; held-out tasks are in none of them."""
    data = replace(two_sources(tmp_path), training=order, duplicates="first")
    records = prepared(data, tmp_path / "t.parquet")
    kept = {record.task.id: record.source for record in records if record.split == "training"}
    if order == ("one", "two"):
        assert kept == {"x": "one", "y": "one", "new": "two"}
    else:
        assert kept == {"x": "two", "other": "two", "new": "two"}
    assert ids(records, "evaluation") == ["held", "z"]


def test_a_source_may_hold_a_task_twice(tmp_path: Path) -> None:
    task = task_of_side("a", 4)
    source = write_source(tmp_path / "s", [task, renamed("b", task)])
    other = write_source(tmp_path / "o", [task_of_side("c", 4)])
    data = DataConfig({"s": source, "o": other}, ("s", "o"), (), validation_tasks=0)
    assert ids(prepared(data, tmp_path / "t.parquet")) == ["a", "b", "c"]


def test_held_out_ids_are_left_out_and_counted(tmp_path: Path) -> None:
    data = replace(two_sources(tmp_path), training=("one",))
    *_, summary = select_tasks(data)
    assert sum("left out 1 task (1 of other content under the same id)" in s for s in summary) == 1
    everything = replace(data, training=("held",), evaluation=("held_out",))
    same = write_source(tmp_path / "same", [task_of_side("held", 4)])
    everything = replace(everything, sources={**data.sources, "held": same})
    with pytest.raises(ValueError, match=r"no training task left: 1 of 1 .* 1 of them held out"):
        select_tasks(everything)


@pytest.mark.parametrize(
    ("held_out", "left", "of_arc_2"), [("evaluation", 631, 233), ("evaluation2", 1008, 608)]
)
def test_both_training_sets_of_arc_are_one_line(
    public: Callable[[str], KaggleSource], held_out: str, left: int, of_arc_2: int
) -> None:
    sources = {name: public(name) for name in ("training", "training2", held_out)}
    data = DataConfig(sources, ("training", "training2"), (held_out,), validation_tasks=0)
    records, _ = mark_overlaps(select_tasks(replace(data, duplicates="first"))[0])
    strict = [r.source for r in records if r.split == "training" and r.duplicate_of is None]
    assert (len(strict), strict.count("training2")) == (left, of_arc_2)


# --- tasks with problems, and sources in the table ---


def test_the_size_filter_comes_before_the_size_check(tmp_path: Path) -> None:
    tasks = [task_of_side("small", 4), task_of_side("large", 45)]
    data = DataConfig({"s": write_source(tmp_path / "s", tasks)}, ("s",), (), max_side=12)
    assert ids(prepared(replace(data, validation_tasks=0), tmp_path / "t.parquet")) == ["small"]
    with pytest.raises(SourceError, match="45 rows"):
        prepare_tasks(replace(data, max_side=None), tmp_path / "t.parquet")


def test_the_table_names_its_sources_and_the_tasks_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "s", [task_of_side("a", 4), task_of_side("b", 4)])
    (tmp_path / "s/bad.json").write_text('{"train": [], "test": []}')
    data = DataConfig({"s": replace(source, problems="skip")}, ("s",), (), validation_tasks=0)
    summary = prepare_tasks(data, tmp_path / "t.parquet")
    about = read_sources(tmp_path / "t.parquet")["s"]
    assert (about["tasks"], about["skipped"]) == (2, {"a list of at least one pair": 1})
    assert f"the first: {tmp_path}/s/bad.json: task bad, train" in summary
    # Where they lie and how they are written is none of the table.
    moved = replace(data, sources={"s": replace(source, path=str(tmp_path / "m"), problems="skip")})
    (tmp_path / "s").rename(tmp_path / "m")
    prepare_tasks(moved, tmp_path / "u.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "u.parquet").read_bytes()


# --- training tasks that touch a held-out one ---


def marks(tasks: Path) -> dict[str, tuple[str | None, str | None]]:
    """Tasks that are left out of training: id → `duplicate_of`, `answer_of`."""
    marked = {r.task.id: (r.duplicate_of, r.answer_of) for r in read_tasks(tasks)}
    return {name: both for name, both in marked.items() if any(both)}


def prepare_study(folder: Path, training: Sequence[Task], held_out: Sequence[Task]) -> str:
    """Write `t.parquet` of these tasks, and return the summary."""
    sources = {
        "training": write_source(folder / "training", training),
        "held_out": write_source(folder / "held_out", held_out),
    }
    data = DataConfig(sources=sources, training=("training",), evaluation=("held_out",))
    return prepare_tasks(data, folder / "t.parquet")


def some_pairs(count: int, side: int = 3, colors: int = 10, seed: int = 0) -> list[Pair]:
    grids = np.random.default_rng(seed).integers(0, colors, (count, 2, side, side), dtype=np.uint8)
    return [Pair(*both) for both in grids]


def test_a_held_out_task_under_another_id_is_marked_and_reported(tmp_path: Path) -> None:
    """Turned, recoloured, its pairs in another order: the content gives it away."""
    held_out = Task("held", tuple(some_pairs(2)), tuple(some_pairs(1, seed=1)))
    turned = Augmentation(1, (0, 9, 8, 7, 6, 5, 4, 3, 2, 1)).apply_to_task(held_out)
    hidden = Task("hidden", (*turned.queries, turned.demos[0]), turned.demos[1:])
    summary = prepare_study(tmp_path, [hidden, task_of_side("other", 4)], [held_out])
    assert "training task hidden holds a test pair of held-out task held" in summary
    assert "left out of strict training by content: 1, 1 of them of all training" in summary
    assert marks(tmp_path / "t.parquet") == {"hidden": ("held", "held")}


def test_demos_spread_over_training_tasks_are_marked_and_reported(tmp_path: Path) -> None:
    """Each of the two tasks alone holds too little of it, both together all."""
    a, b, *rest = some_pairs(20)
    held_out = Task("held", (a, b), (rest[0],))
    spread = [Task("one", (a, *rest[1:5]), (rest[5],)), Task("two", (b, *rest[6:9]), (rest[9],))]
    other = Task("other", tuple(rest[10:13]), (rest[13],))
    summary = prepare_study(tmp_path, [*spread, other], [held_out])
    assert "training tasks one, two hold all demos of held-out task held" in summary
    assert marks(tmp_path / "t.parquet") == {"one": ("held", None), "two": ("held", None)}
    assert find_touched(seen_tasks([other], []), [held_out]) == {}
    assert find_touched(seen_tasks(spread, []), [held_out]).keys() == {"held"}


def test_most_of_a_small_task_is_marked_and_reported(tmp_path: Path) -> None:
    """Both test pairs and all demos but one, none of them with 32 cells."""
    demo, other, *rest = some_pairs(20)
    held_out = Task("held", (demo, other), tuple(rest[:2]))
    most = Task("most", (demo, *rest[:2], *rest[3:9]), (rest[9],))
    summary = prepare_study(tmp_path, [most], [held_out])
    assert "training task most holds a test pair of held-out task held" in summary
    assert marks(tmp_path / "t.parquet") == {"most": ("held", "held")}


def test_a_shared_demo_gives_no_answer_away(tmp_path: Path) -> None:
    large, *rest = some_pairs(9, side=4)
    held_out = Task("held", (large, rest[0]), (rest[1],))
    part = Task("part", (large, rest[2]), (rest[3],))
    summary = prepare_study(tmp_path, [part], [held_out])
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
    prepare_study(tmp_path, training, held_out)
    left_out = marks(tmp_path / "t.parquet")
    kept = [task for task in training if task.id not in left_out]
    assert 0 < len(left_out) < len(training)
    assert find_touched(seen_tasks(kept, []), held_out) == {}
    assert find_touched(seen_tasks(training, []), held_out) != {}


def test_a_task_of_300_demos_is_prepared(tmp_path: Path) -> None:
    *pairs, query, other = some_pairs(302, side=2)
    many = Task("many", tuple(pairs), (query,))
    prepare_study(tmp_path, [many], [Task("h", (other,), (other,))])
    assert read_tasks(tmp_path / "t.parquet")[0].task == many
    prepare_augmentations(tmp_path / "t.parquet", tmp_path / "a.parquet", 4, seed=0)
    assert len(read_augmentations(tmp_path / "a.parquet")["many"]) == 4
