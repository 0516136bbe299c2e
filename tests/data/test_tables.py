"""The two tables: round trips, equal bytes, and files that are no such tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etrm.arc.augment import Variants, draw_variants
from etrm.arc.task import Pair, Rule, Task
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
from etrm.storage.files import table_digest, write_table_atomic

READERS: dict[str, Callable] = {"tasks": read_tasks, "augment": read_augmentations}


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


def good_file(target: str, folder: Path) -> Path:
    path = folder / f"{target}.parquet"
    if target == "tasks":
        write_tasks(path, random_records())
    else:
        write_augmentations(path, random_variants())
    return path


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
    records[0] = replace(records[0], duplicate_of="a", answer_of="b")
    write_tasks(tmp_path / "tasks.parquet", records)
    read = read_tasks(tmp_path / "tasks.parquet")
    assert read == records
    assert read[0].task.demos[0].input.dtype == np.uint8
    assert read[0].task.queries[0].output is None
    assert read[1].task.queries[0].output is not None


def test_ground_truth_comes_back_and_changes_no_digest(tmp_path: Path) -> None:
    """The digest is that of a file without these columns, as those written before have it."""
    plain, path = random_records(), tmp_path / "t.parquet"
    rule = Rule("fill", '{"color": 3}', "parameters")
    known = [replace(r, task=replace(r.task, rule=rule, exact=True)) for r in plain]
    known[0] = replace(plain[0], task=replace(plain[0].task, rule=Rule("mirror", "{}")))
    digests = []
    for records in (plain, known):
        write_tasks(path, records)
        assert read_tasks(path) == records
        digests.append(table_digest(path))
    without = pq.read_table(path).drop_columns(["exact", "rule", "parameters", "novelty"])
    write_table_atomic(path, without)
    assert digests == [table_digest(path)] * 2
    other = replace(plain[0], source="another")
    write_tasks(path, [other, *plain[1:]])
    assert table_digest(path) != digests[0]


def test_tasks_of_extreme_grids_and_more_pairs_than_a_byte_counts_come_back(tmp_path: Path) -> None:
    large, small = np.full((30, 30), 9, np.uint8), np.zeros((1, 1), np.uint8)
    transposed = np.arange(6, dtype=np.uint8).reshape(2, 3).T  # not contiguous
    grids = np.random.default_rng(0).integers(0, 10, (600, 2, 2, 2), dtype=np.uint8)
    many = [Pair(*both) for both in grids]
    tasks = [
        Task("ä|||b", (Pair(large, small), Pair(transposed, small)), (Pair(small, large),)),
        Task("t", tuple(many[:300]), tuple(many[300:])),
    ]
    records = [TaskRecord(task, "s", "training") for task in tasks]
    write_tasks(tmp_path / "t.parquet", records)
    assert read_tasks(tmp_path / "t.parquet") == records


@pytest.mark.parametrize("counts", [(20, 1, 7), (1,)])
def test_variants_come_back_as_they_were(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """In several row groups as well, whose dictionaries of task ids differ."""
    path, variants = tmp_path / "a.parquet", random_variants(counts)
    write_augmentations(path, variants)
    assert_same(read_augmentations(path), variants)
    write_table_atomic(path, pq.read_table(path), row_group_size=6)
    assert pq.ParquetFile(path).num_row_groups == -(-sum(map(len, variants.values())) // 6)
    assert_same(read_augmentations(path), variants)


@pytest.mark.parametrize("name", ["a:b", "x=1", "a b?#%"])
def test_any_folder_may_hold_tables(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that looks like the address of a file system, or like a part of a data set."""
    monkeypatch.chdir(tmp_path)
    write_tasks(Path(name) / "tasks.parquet", random_records())
    assert read_tasks(Path(name) / "tasks.parquet") == random_records()


@pytest.mark.parametrize(
    ("target", "schema"), [("tasks", TASKS_SCHEMA), ("augment", AUGMENTATIONS_SCHEMA)]
)
def test_the_files_explain_their_columns_and_have_equal_bytes(
    tmp_path: Path, target: str, schema: pa.Schema
) -> None:
    path = good_file(target, tmp_path / "one")
    assert path.read_bytes() == good_file(target, tmp_path / "two").read_bytes()
    found = pq.read_schema(path)
    assert found.equals(schema)
    for field in found:
        assert field.metadata[b"description"] == schema.field(field.name).metadata[b"description"]
    row_group = pq.read_metadata(path).row_group(0)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}


def test_rows_are_as_documented(tmp_path: Path) -> None:
    pair = Pair(np.array([[1, 2, 3]], np.uint8), np.array([[4], [5]], np.uint8))
    truth = ("fill", '{"color": 3}', "parameters")
    task = Task("t", (pair,), (Pair(pair.input, None),), Rule(*truth))
    write_tasks(tmp_path / "t.parquet", [TaskRecord(task, "s", "training", "h", "k")])
    marks = ("h", "k", False, *truth)
    demo, query = pq.read_table(tmp_path / "t.parquet").to_pylist()
    grid = (1, 3, b"\1\2\3")
    assert (*demo.values(),) == (
        "t",
        "s",
        "training",
        "demo",
        0,
        *grid,
        2,
        1,
        b"\4\5",
        *marks,
    )
    assert (*query.values(),) == (
        "t",
        "s",
        "training",
        "query",
        0,
        *grid,
        *[None] * 3,
        *marks,
    )
    variants = draw_variants(task, 3, seed=0)
    write_augmentations(tmp_path / "a.parquet", {"t": variants})
    assert pq.read_table(tmp_path / "a.parquet").to_pylist()[2] == {
        "task": "t",
        "variant": 2,
        "dihedral": variants.dihedral[2],
        "permutation": bytes(variants.permutation[2].tolist()),
        "digest": variants.digest[2].astype("<u8").tobytes(),
    }


# --- files that are no such tables ---


def error_of(target: str, path: Path) -> str:
    with pytest.raises(TableError) as caught:
        READERS[target](path)
    message = str(caught.value)
    assert message.startswith(f"{path}: found ")
    assert f"`{target}` again" in message
    return message


@pytest.mark.parametrize("target", READERS)
def test_damaged_files(tmp_path: Path, target: str) -> None:
    path = good_file(target, tmp_path)
    content = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(0)
    place = column.data_page_offset + column.total_compressed_size // 2
    changed = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    cut = [content[:size] for size in (0, 3, len(content) // 2, -1)]
    for damaged in (*cut, changed, b"task,grid\n"):
        path.write_bytes(damaged)
        assert "no readable parquet file" in error_of(target, path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"\.parquet: .* run the target `{target}`"):
        READERS[target](path)


@pytest.mark.parametrize("target", READERS)
def test_foreign_files(tmp_path: Path, target: str) -> None:
    path = good_file(target, tmp_path)
    table = pq.read_table(path)
    index = table.schema.names.index("task")
    for other, found in (
        (pa.table({"step": [1]}), "no column task, "),
        (table.drop_columns(["task"]), "no column task, "),
        (table.set_column(index, "task", pa.array([1] * len(table))), "task of type int64"),
        (table.replace_schema_metadata({"etrm_version": "0"}), "another version"),
        (table.slice(0, 0), "no row"),
    ):
        pq.write_table(other, path)
        assert found in error_of(target, path)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda rows: rows[1:], "task task5, demo 1"),
        (lambda rows: rows + rows[:4], "task task5 in several places"),
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
    path = good_file("tasks", tmp_path)
    rows = edit(pq.read_table(path).to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, schema=TASKS_SCHEMA), path)
    assert found in error_of("tasks", path)


def test_variants_that_do_not_hang_together(tmp_path: Path) -> None:
    path = good_file("augment", tmp_path)
    table = pq.read_table(path)
    for order in (range(1, len(table)), [1, 0, *range(2, len(table))], [*range(len(table)), 0]):
        pq.write_table(table.take(list(order)), path)
        assert "out of order" in error_of("augment", path)
