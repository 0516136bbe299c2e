"""Any submission scored by its tasks, and everything in it that is amiss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import etrm
from etrm.arc.places import load_places
from etrm.arc.task import Pair, Task
from etrm.cli import main
from etrm.errors import UserError
from etrm.evaluation.submissions import REPORTED, SHOWN, score_submission

GRIDS = [[[1, 2], [3, 4]], [[5]], [[0, 0, 9]], [[7], [7]]]
RIGHT, WRONG = GRIDS[0], GRIDS[1]
Json = dict[str, Any]


def own_credit(outputs: list[Any], entry: list[Any]) -> tuple[float, float]:
    """What the two rules give a task, written anew: of its known outputs, from JSON alone."""
    known = [(i, output) for i, output in enumerate(outputs) if output is not None]
    answers = [list(entry[i].values()) if i < len(entry) else [] for i, _ in known]
    hits = [output in answer for (_, output), answer in zip(known, answers, strict=True)]
    return sum(hits) / len(hits), float(all(hits))


def own_score(truth: dict[str, list[Any]], submission: Json) -> list[tuple[float, int]]:
    """Credit and denominator by both rules, as an evaluator of ten lines has them."""
    scored = [name for name, outputs in truth.items() if any(o is not None for o in outputs)]
    credit = [own_credit(truth[name], submission.get(name, [])) for name in scored]
    return [(sum(c[i] for c in credit), len(scored)) for i in range(2)]


def random_case(rng: np.random.Generator) -> tuple[dict[str, list[Any]], Json]:
    """True outputs of tasks, some unknown, and a submission with missing and extra tasks."""

    def some() -> Any:
        return GRIDS[rng.integers(len(GRIDS))]

    names = [f"t{i}" for i in range(rng.integers(1, 12))]
    truth = {
        n: [some() if rng.random() < 0.8 else None for _ in range(rng.integers(1, 4))]
        for n in names
    }
    submission: Json = {f"extra{i}": [{"attempt_1": some()}] for i in range(rng.integers(3))}
    for name in rng.permutation(names)[: rng.integers(len(names) + 1)]:
        outputs = max(0, len(truth[name]) + rng.integers(-1, 2))  # too few, right, too many
        attempts = [["attempt_1", "attempt_2"][: rng.integers(3)] for _ in range(outputs)]
        submission[str(name)] = [{key: some() for key in keys} for keys in attempts]
    return truth, submission


def as_tasks(truth: dict[str, list[Any]]) -> list[Task]:
    demo = Pair(np.array(RIGHT, np.uint8), np.array(RIGHT, np.uint8))
    return [
        Task(
            name,
            (demo,),
            tuple(Pair(demo.input, None if o is None else np.array(o, np.uint8)) for o in outputs),
        )
        for name, outputs in truth.items()
    ]


@pytest.mark.parametrize("seed", range(40))
def test_a_score_is_that_of_an_independent_evaluator(seed: int) -> None:
    truth, submission = random_case(np.random.default_rng(seed))
    first = {
        n: [{k: g for k, g in o.items() if k == "attempt_1"} for o in e]
        for n, e in submission.items()
    }
    found = score_submission(submission, as_tasks(truth))
    for k, given in ((1, first), (2, submission)):
        numbers = [found["pass"][str(k)][rule] for rule in ("task_fraction", "all_tests")]
        expected = own_score(truth, given)
        assert [n["denominator"] for n in numbers] == [d for _, d in expected]
        assert [n["numerator"] for n in numbers] == pytest.approx([c for c, _ in expected])
    assert set(found["reported"]["missing_tasks"]) == truth.keys() - submission.keys()
    assert set(found["reported"]["extra_tasks"]) == submission.keys() - truth.keys()
    unknown = sum(o is None for outputs in truth.values() for o in outputs)
    scored = sum(len(ranks) for ranks in found["ranks"].values())
    assert scored + unknown == found["test_outputs"]


def both(grid: Any) -> Json:
    return {"attempt_1": grid, "attempt_2": grid}


FAULTS: dict[str, tuple[Any, str, str]] = {
    "missing": (None, "missing_tasks", "a"),
    "not a list": (both(RIGHT), "malformed_entries", "a (an object)"),
    "output not an object": (
        [RIGHT, both(RIGHT)],
        "malformed_entries",
        "a test 0 (a list of 2 items)",
    ),
    "too few": ([both(RIGHT)], "too_few_outputs", "a (1 of 2)"),
    "too many": ([both(RIGHT)] * 3, "too_many_outputs", "a (3 of 2)"),
    "one attempt": ([both(RIGHT), {"attempt_2": RIGHT}], "one_attempt", "a test 1"),
    "null": ([{"attempt_1": RIGHT, "attempt_2": None}, both(RIGHT)], "one_attempt", "a test 0"),
    "no attempt": ([both(RIGHT), {}], "no_attempt", "a test 1"),
    "ragged": (
        [both(RIGHT), {"attempt_1": RIGHT, "attempt_2": [[1], [2, 3]]}],
        "malformed_grids",
        "a test 1 attempt_2",
    ),
    "colour": (
        [{"attempt_1": [[10]], "attempt_2": RIGHT}, both(RIGHT)],
        "malformed_grids",
        "a test 0 attempt_1",
    ),
    "too large": (
        [{"attempt_1": [[1] * 31], "attempt_2": RIGHT}, both(RIGHT)],
        "malformed_grids",
        "a test 0 attempt_1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_alone_and_moves_no_denominator(fault: str) -> None:
    entry, kind, name = FAULTS[fault]
    tasks = as_tasks({"a": [RIGHT, RIGHT], "b": [RIGHT]})
    submission = {"b": [both(RIGHT)]} | ({} if entry is None else {"a": entry})
    found = score_submission(submission, tasks)
    reported = {key: names for key, names in found["reported"].items() if names}
    assert reported.keys() == {kind}
    assert reported[kind][0].startswith(name)
    assert found["pass"]["2"]["task_fraction"]["denominator"] == 2


def test_unknown_outputs_are_reported_and_only_a_task_of_none_leaves() -> None:
    tasks = as_tasks({"a": [RIGHT, None], "b": [None]})
    found = score_submission({"a": [both(RIGHT), both(WRONG)], "b": [both(RIGHT)]}, tasks)
    assert found["reported"]["unlabelled_tasks"] == ["b"]
    assert found["reported"]["unlabelled_outputs"] == ["a test 1"]
    one = found["pass"]["1"]["all_tests"]
    assert (one["numerator"], one["denominator"]) == (1, 1)


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, list[str]]:
    """The same two tasks in every form that a command reads."""
    demo = {"input": RIGHT, "output": WRONG}
    whole = {n: {"train": [demo], "test": [demo]} for n in ("a", "b")}
    bare = {n: {"train": [demo], "test": [{"input": RIGHT}]} for n in ("a", "b")}
    (tmp_path / "folder").mkdir()
    files = [write(tmp_path / f"folder/{n}.json", entry) for n, entry in whole.items()]
    beside = write(tmp_path / "x_challenges.json", bare)
    write(tmp_path / "x_solutions.json", {n: [WRONG] for n in bare})
    alone = write(tmp_path / "tasks.json", bare)
    return {
        "folder": [str(tmp_path / "folder")],
        "files": files,
        "with outputs": [write(tmp_path / "all.json", whole)],
        "solutions beside": [beside],
        "solutions named": [alone, write(tmp_path / "answers.json", {n: [WRONG] for n in bare})],
        "without": [alone],
    }


def test_tasks_are_read_in_every_form(places: dict[str, list[str]]) -> None:
    for form, named in places.items():
        tasks = load_places(named)
        assert [task.id for task in tasks] == ["a", "b"], form
        known = [q.output is not None for task in tasks for q in task.queries]
        assert known == [form != "without"] * 2, form
    with pytest.raises(UserError, match="2 task ids more than once"):
        load_places(places["folder"] + places["with outputs"])
    with pytest.raises(UserError, match="without their tasks"):
        load_places(places["folder"] + places["solutions named"][1:])
    with pytest.raises(UserError, match="no such file"):
        load_places(["nothing.json"])


def test_the_command_and_the_call(
    places: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {f"extra{i}": [] for i in range(SHOWN + 2)}
    file = tmp_path / "submission.json"
    text = json.dumps({"a": [both(WRONG)], **extra})
    file.write_text(f'{{"a": [], {text[1:]}', encoding="utf-8")  # a task given twice
    assert main(["score", str(file), "--tasks", *places["folder"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == etrm.score(file, places["folder"])
    assert found["reported"]["repeated_tasks"] == ["a"]
    assert found["pass"]["1"]["all_tests"]["value"] == 0.5
    assert main(["score", str(file), "--tasks", *places["folder"]]) == 0
    printed = capsys.readouterr().out
    assert "50.0 %" in printed
    assert REPORTED["extra_tasks"] in printed
    assert "extra0" in printed
    assert f"extra{SHOWN}" not in printed
    assert main(["score", write(file, [1]), "--tasks", *places["folder"]]) == 1
    assert "submission.json: found a list" in capsys.readouterr().err
