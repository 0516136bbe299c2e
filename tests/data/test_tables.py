"""The two tables: round trips, equal bytes, atomic writes, and files that are no such tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etrm.arc.augment import Variants, draw_variants
from etrm.arc.task import Pair, Task
from etrm.data.tables import (
    AUGMENTATIONS_SCHEMA,
    TASKS_SCHEMA,
    TableError,
    TaskRecord,
    read_augmentations,
    read_tasks,
    write_augmentations,
    write_tasks,
)
from etrm.storage.files import atomic_write, write_json_atomic, write_table_atomic


def random_records(count: int = 5, largest: int = 12) -> list[TaskRecord]:
    rng = np.random.default_rng(count)

    def grid() -> np.ndarray:
        return rng.integers(0, 10, rng.integers(1, largest + 1, 2)).astype(np.uint8)

    records = []
    for i in range(count):
        demos = tuple(Pair(grid(), grid()) for _ in range(rng.integers(1, 4)))
        queries = tuple(Pair(grid(), grid() if i % 2 else None) for _ in range(rng.integers(1, 3)))
        split = "training" if i < 3 else "evaluation"
        records.append(TaskRecord(Task(f"task{count - i}", demos, queries), f"from_{split}", split))
    return records


def random_variants(counts: tuple[int, ...] = (20, 1, 7)) -> dict[str, Variants]:
    tasks = [record.task for record in random_records(len(counts))]
    return {task.id: draw_variants(task, n, seed=0) for task, n in zip(tasks, counts, strict=True)}


def assert_same(first: dict[str, Variants], second: dict[str, Variants]) -> None:
    assert list(first) == list(second)
    for name, variants in first.items():
        for field in ("dihedral", "permutation", "digest"):
            expected, found = getattr(variants, field), getattr(second[name], field)
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


# --- round trips ---


def test_tasks_come_back_as_they_were(tmp_path: Path) -> None:
    records = random_records()
    write_tasks(tmp_path / "tasks.parquet", records)
    read = read_tasks(tmp_path / "tasks.parquet")
    assert read == records
    assert read[0].task.demos[0].input.dtype == np.uint8
    assert read[0].task.queries[0].output is None
    assert read[1].task.queries[0].output is not None
    marked = [*records[1:], replace(records[0], duplicate_of="a", answer_of="b")]
    write_tasks(tmp_path / "tasks.parquet", marked)
    assert read_tasks(tmp_path / "tasks.parquet") == marked


def test_the_largest_grid_and_the_smallest(tmp_path: Path) -> None:
    large, small = np.full((30, 30), 9, np.uint8), np.zeros((1, 1), np.uint8)
    transposed = np.arange(6, dtype=np.uint8).reshape(2, 3).T  # not contiguous
    task = Task("ä|||b", (Pair(large, small), Pair(transposed, small)), (Pair(small, large),))
    write_tasks(tmp_path / "t.parquet", [TaskRecord(task, "s", "training")])
    assert read_tasks(tmp_path / "t.parquet") == [TaskRecord(task, "s", "training")]


def test_a_task_of_more_pairs_than_a_byte_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(*rng.integers(0, 10, (2, 2, 2), dtype=np.uint8)) for _ in range(600)]
    record = TaskRecord(Task("t", tuple(pairs[:300]), tuple(pairs[300:])), "s", "training")
    write_tasks(tmp_path / "t.parquet", [record])
    assert read_tasks(tmp_path / "t.parquet") == [record]


def test_augmentations_come_back_as_they_were(tmp_path: Path) -> None:
    variants = random_variants()
    write_augmentations(tmp_path / "a.parquet", variants)
    assert_same(read_augmentations(tmp_path / "a.parquet"), variants)


def test_augmentations_in_several_row_groups(tmp_path: Path) -> None:
    variants = random_variants()
    write_augmentations(tmp_path / "a.parquet", variants)
    table = pq.read_table(tmp_path / "a.parquet")
    write_table_atomic(tmp_path / "a.parquet", table, row_group_size=6)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 5
    assert_same(read_augmentations(tmp_path / "a.parquet"), variants)


@pytest.mark.parametrize("name", ["a:b", "x=1", "a b?#%"])
def test_any_folder_may_hold_tables(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that looks like the address of a file system, or like a part of a data set."""
    monkeypatch.chdir(tmp_path)
    records = random_records()
    write_tasks(Path(name) / "tasks.parquet", records)
    assert read_tasks(Path(name) / "tasks.parquet") == records


def test_the_files_explain_their_columns(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.parquet", random_records())
    write_augmentations(tmp_path / "a.parquet", random_variants())
    for name, schema in (("t", TASKS_SCHEMA), ("a", AUGMENTATIONS_SCHEMA)):
        found = pq.read_schema(tmp_path / f"{name}.parquet")
        assert found.equals(schema)
        for field in found:
            assert (
                field.metadata[b"description"] == schema.field(field.name).metadata[b"description"]
            )
        row_group = pq.read_metadata(tmp_path / f"{name}.parquet").row_group(0)
        columns = [row_group.column(i) for i in range(row_group.num_columns)]
        assert {column.compression for column in columns} == {"ZSTD"}


def test_rows_are_as_documented(tmp_path: Path) -> None:
    pair = Pair(np.array([[1, 2, 3]], np.uint8), np.array([[4], [5]], np.uint8))
    task = Task("t", (pair,), (Pair(pair.input, None),))
    write_tasks(tmp_path / "t.parquet", [TaskRecord(task, "s", "training", "h", "k")])
    demo, query = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert list(demo.values()) == (
        ["t", "s", "training", "demo", 0, 1, 3, b"\1\2\3", 2, 1, b"\4\5", "h", "k"]
    )
    assert list(query.values()) == (
        ["t", "s", "training", "query", 0, 1, 3, b"\1\2\3", None, None, None, "h", "k"]
    )
    variants = draw_variants(task, 3, seed=0)
    write_augmentations(tmp_path / "a.parquet", {"t": variants})
    row = pq.read_table(tmp_path / "a.parquet").to_pylist()[2]
    assert row["task"] == "t"
    assert row["variant"] == 2
    assert row["dihedral"] == variants.dihedral[2]
    assert row["permutation"] == bytes(variants.permutation[2].tolist())
    assert row["digest"] == b"".join(int(lane).to_bytes(8, "little") for lane in variants.digest[2])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_tasks(folder / "t.parquet", random_records())
        write_augmentations(folder / "a.parquet", random_variants())
    for name in ("t.parquet", "a.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    write_tasks(tmp_path / "two" / "t.parquet", random_records(4))
    assert (tmp_path / "one/t.parquet").read_bytes() != (tmp_path / "two/t.parquet").read_bytes()


# --- atomic writes ---


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["tasks", "augment"])
def test_a_table_that_fails_half_way_leaves_the_old_one(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good_file(target, tmp_path)
    before = path.read_bytes()

    def disk_full(table: pa.Table, where: Path, **options: object) -> None:
        Path(where).write_bytes(b"PAR1 and not much more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(OSError, match="No space left"):
        good_file(target, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_permissions_are_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    write_json_atomic(path, {})
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_holds_plain_values(tmp_path: Path) -> None:
    content = {
        "count": np.int64(3),
        "score": np.float32(0.5),
        "passed": np.bool_(True),
        "loss": math.nan,
        "bounds": (np.float64("-inf"), 1),
        "grid": np.array([[1, 2]], np.uint8),
        "path": Path("x/y"),
        "nothing": None,
        "text": "σ",
    }
    path = tmp_path / "x.json"
    write_json_atomic(path, content)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "σ" in text
    assert json.loads(text) == {
        "count": 3,
        "score": 0.5,
        "passed": True,
        "loss": None,
        "bounds": [None, 1],
        "grid": [[1, 2]],
        "path": "x/y",
        "nothing": None,
        "text": "σ",
    }
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json_atomic(path, {"what": object()})
    assert path.read_bytes() == before


# --- files that are no such tables ---

READERS: dict[str, Callable] = {"tasks": read_tasks, "augment": read_augmentations}


def good_file(target: str, folder: Path) -> Path:
    path = folder / f"{target}.parquet"
    if target == "tasks":
        write_tasks(path, random_records())
    else:
        write_augmentations(path, random_variants())
    return path


def error_of(target: str, path: Path) -> str:
    with pytest.raises(TableError) as caught:
        READERS[target](path)
    message = str(caught.value)
    assert message.startswith(f"{path}: found ")
    assert ", expected " in message
    assert message.endswith(f"delete it and run the target `{target}` again")
    return message


@pytest.mark.parametrize("target", READERS)
@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_truncated_files(tmp_path: Path, target: str, kept: float) -> None:
    path = good_file(target, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "no readable parquet file" in error_of(target, path)


@pytest.mark.parametrize("target", READERS)
def test_a_file_with_a_changed_byte(tmp_path: Path, target: str) -> None:
    path = good_file(target, tmp_path)
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "no readable parquet file" in error_of(target, path)


@pytest.mark.parametrize("target", READERS)
def test_foreign_files(tmp_path: Path, target: str) -> None:
    path = good_file(target, tmp_path)
    table = pq.read_table(path)
    path.write_text("task,grid\n")
    assert "no readable parquet file" in error_of(target, path)
    pq.write_table(pa.table({"step": [1]}), path)
    assert "found no column task, " in error_of(target, path)
    pq.write_table(table.drop_columns(["task"]), path)
    assert "found no column task, " in error_of(target, path)
    index = table.schema.names.index("task")
    pq.write_table(table.set_column(index, "task", pa.array([1] * len(table))), path)
    assert "column task of type int64" in error_of(target, path)
    pq.write_table(table.replace_schema_metadata({"etrm_version": "0"}), path)
    assert "another version of the table" in error_of(target, path)
    pq.write_table(table.slice(0, 0), path)
    assert "no row" in error_of(target, path)


@pytest.mark.parametrize("target", READERS)
def test_missing_files_say_what_makes_them(tmp_path: Path, target: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"none.parquet: .* run the target `{target}`"):
        READERS[target](tmp_path / "none.parquet")


def rewritten_tasks(path: Path, edit: Callable[[list[dict]], list[dict]]) -> str:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(edit(rows), schema=TASKS_SCHEMA), path)
    return error_of("tasks", path)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda rows: rows[1:], "task task5, demo 1"),
        (lambda rows: rows + rows[:4], "in 2 places"),
        (lambda rows: [r for r in rows if r["role"] == "demo"], "task task5: 3 demos, 0 queries"),
        (lambda rows: [{**r, "role": "test"} for r in rows], "task task5, test 0"),
        (lambda rows: [{**r, "split": "test"} for r in rows], "from_training, test"),
        (lambda rows: [{**r, "input": r["input"] + b"\0"} for r in rows], "demo 0, input"),
        (lambda rows: [{**r, "output_width": None} for r in rows], "demo 0, output"),
    ],
)
def test_tasks_that_do_not_hang_together(
    tmp_path: Path, edit: Callable[[list[dict]], list[dict]], found: str
) -> None:
    assert found in rewritten_tasks(good_file("tasks", tmp_path), edit)


def test_variants_that_do_not_hang_together(tmp_path: Path) -> None:
    path = good_file("augment", tmp_path)
    table = pq.read_table(path)
    for order in (range(1, len(table)), [1, 0, *range(2, len(table))], [*range(len(table)), 0]):
        pq.write_table(table.take(list(order)), path)
        assert "out of order" in error_of("augment", path)
