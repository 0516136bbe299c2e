"""A run folder that is asked about tasks answers them as the evaluation of its study does."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import make_tasks

import etrm
from etrm.arc.grid import VOCAB_SIZE, crop
from etrm.arc.task import Pair, Task, task_to_json
from etrm.config.refinement import RefinementConfig
from etrm.config.study import EvaluationConfig
from etrm.errors import UserError
from etrm.evaluation.run import evaluate_run
from etrm.refinement.run import refine_run
from etrm.solve.solver import VARIANTS
from etrm.training.run import RunPaths

ASKED = ("etrm", "in_context", "trm_mean")
INPUT = np.array([[1, 2, 0], [3, 0, 5]])
DEMOS = [(INPUT, INPUT[::-1]), ([[4, 0]], [[0, 4]]), ([[7], [8]], [[8], [7]])]


def without_outputs(task: Task) -> Task:
    return replace(task, queries=tuple(Pair(query.input, None) for query in task.queries))


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_the_evaluation(
    name: str, trained: Callable[[str], RunPaths], held_out: list[Task], tmp_path: Path
) -> None:
    paths, config = trained(name), EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=5)
    evaluate_run(paths.out, paths.tasks, paths.augmentations, config, tmp_path, device="cpu")
    wanted = etrm.predictions(tmp_path)
    solver = etrm.load(paths.out, device="cpu")
    for tasks in (held_out, list(map(without_outputs, held_out))):  # no answer is looked at
        solutions = solver.solve_all(tasks, variants=4, batch_size=8)
        found = pd.concat([each.predictions for each in solutions], ignore_index=True)
        same = ["task", "query", "variant", "height", "width", "steps"]
        pd.testing.assert_frame_equal(found[same], wanted[same])
        for ours, theirs in zip(found["grid"], wanted["grid"], strict=True):
            assert ours.shape == theirs.shape
            assert np.array_equal(ours, theirs)
        np.testing.assert_allclose(found["q_halt"], wanted["q_halt"], rtol=1e-4, atol=1e-5)
        answers = {key: value for each in solutions for key, value in each.submission().items()}
        assert answers == json.loads((tmp_path / "submission.json").read_text())
    again = solver.solve(held_out[1], variants=4)  # whatever was asked before
    assert again.submission() == solutions[1].submission()


@pytest.mark.parametrize("name", ["etrm", "trm_mean"])
def test_searched_answers_are_those_of_the_stage(
    name: str, trained: Callable[[str], RunPaths], held_out: list[Task], tmp_path: Path
) -> None:
    paths = trained(name)
    config = RefinementConfig(steps=(0, 1, 3), methods=("search",), variants=2)
    tables = paths.tasks, paths.augmentations
    score = refine_run(paths.out, *tables, config, tmp_path, device="cpu")
    wanted = pd.read_parquet(tmp_path / "refinement.parquet").query("steps == 3")
    solutions = etrm.load(paths.out, device="cpu").solve_all(held_out, variants=2, search=3)
    found = pd.concat([each.rows for each in solutions], ignore_index=True)
    same = ["task", "query", "variant", "attempt", "height", "width", "grid"]
    pd.testing.assert_frame_equal(found[same], wanted[same].reset_index(drop=True))
    np.testing.assert_allclose(found["likelihood"], wanted["likelihood"], rtol=1e-4)
    passed = score["methods"]["search"]["3"]["pass"]["2"]["task_fraction"]["numerator"]
    assert sum(np.mean(each.correct) for each in solutions) == pytest.approx(passed)
    for each in solutions:
        [*_, last] = each.attempts  # of the last test input, as its ranking says
        best = each.votes[each.votes["query"] == len(each.task.queries) - 1]["grid"].tolist()
        assert np.array_equal(last[0], best[0] if best[0].size else [[0]])
        assert set(each.votes["votes"]) <= {1, 2}


@pytest.mark.parametrize("name", ASKED)
def test_logits_are_of_the_unchanged_task(name: str, run_folder: Callable[[str], Path]) -> None:
    solver = etrm.load(run_folder(name), device="cpu")
    logits = solver.logits(DEMOS, INPUT)
    assert logits.shape == (3, 3, VOCAB_SIZE)
    assert logits.dtype == np.float32
    [answer] = crop(logits.argmax(axis=-1)[None])
    task = etrm.make_task(DEMOS, [INPUT])
    [first] = solver.solve(task, variants=1).predictions["grid"]
    assert np.array_equal(answer, first)


def test_contexts_are_those_of_demos(run_folder: Callable[[str], Path]) -> None:
    solver = {name: etrm.load(run_folder(name), device="cpu") for name in ASKED}
    context = solver["etrm"].encode(DEMOS)
    assert context.shape == (2, 16)
    assert context.dtype == np.float32
    assert not np.allclose(context, solver["etrm"].encode(DEMOS[:2]), atol=1e-3)
    sizes = [len(solver["in_context"].encode(DEMOS[:n])) for n in (1, 2, 3)]
    assert INPUT.size <= sizes[0] < sizes[1] < sizes[2]  # a token for each real cell, no padding
    mean = solver["trm_mean"].encode(DEMOS)
    assert np.array_equal(mean, solver["trm_mean"].encode(DEMOS[:1]))
    assert np.abs(mean[0]).max() > 0


def forms(task: Task, folder: Path) -> dict[str, Any]:
    """A task in all forms in which it can be given."""
    entry = task_to_json(task)
    name = entry.pop("id")
    (folder / "tasks").mkdir()
    file = folder / "tasks" / f"{name}.json"
    file.write_text(json.dumps(entry), encoding="utf-8")
    kaggle = folder / "challenges.json"
    kaggle.write_text(json.dumps({name: entry}), encoding="utf-8")
    pairs = [(pair.input, pair.output) for pair in task.demos]
    arrays = {"train": [{"input": x, "output": y} for x, y in pairs]}
    arrays |= {"test": [{"input": q.input, "output": None} for q in task.queries]}
    return {
        **{"file": file, "text": str(file), "folder": file.parent, "kaggle": str(kaggle)},
        **{"dict": {name: entry}, "arrays": {"id": name} | arrays, "several": [file]},
        "pairs": etrm.make_task(pairs, [q.input for q in task.queries], name),
    }


def test_a_task_in_any_form(
    run_folder: Callable[[str], Path],
    held_out: list[Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = held_out[1]
    given = forms(task, tmp_path)
    solver = etrm.load(run_folder("etrm"), device="cpu")
    wanted = solver.solve(task, variants=2).submission()
    for form, each in given.items():
        assert solver.solve(each, variants=2).submission() == wanted, form
    for content in (given["dict"], {"id": task.id, **given["dict"][task.id]}):
        text = io.TextIOWrapper(io.BytesIO(json.dumps(content).encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", text)
        assert solver.solve("-", variants=2).submission() == wanted
    [a, b] = etrm.read_tasks([given["dict"][task.id], given["dict"][task.id]])
    assert (a.id, b.id) == ("task0", "task1")


@pytest.mark.parametrize(
    ("tasks", "parts"),
    [
        ({"train": [], "test": []}, ["task0, train", "no pair", "task0, test"]),
        (
            {"train": [{"input": [[1.0]], "output": [[1]]}], "test": [{"input": [[1]]}]},
            ["train[0].input[0][0]", "1.0", "integer in 0-9"],
        ),
        ({}, ["empty object"]),
        ("no/such/file.json", ["no/such/file.json", "no such file"]),
        ([make_tasks(1)[0], make_tasks(1)[0]], ["task0", "2 tasks of this id"]),
    ],
)
def test_bad_tasks_are_told_by_file_task_and_pair(tasks: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        etrm.read_tasks(tasks)
    assert all(part in str(error.value) for part in parts), error.value


def test_one_task_or_several(run_folder: Callable[[str], Path], held_out: list[Task]) -> None:
    solver = etrm.load(run_folder("etrm"), device="cpu")
    with pytest.raises(UserError, match="3 tasks, expected one"):
        solver.solve(held_out)
    for wrong in ({"variants": 0}, {"batch_size": 0}, {"search": -1}):
        with pytest.raises(UserError, match="found"):
            solver.solve(held_out[0], **wrong)


def test_a_grid_larger_than_the_largest_lane(run_folder: Callable[[str], Path]) -> None:
    solver = etrm.load(run_folder("etrm"), device="cpu")
    wide = etrm.make_task(DEMOS, [np.zeros((2, 5), int)], "wide")
    for ask in (solver.solve, lambda task: solver.logits(DEMOS, task.queries[0].input)):
        with pytest.raises(UserError, match=r"2x5 cells.*\[3, 4\].*episodes\.canvas"):
            ask(wide)
    huge = etrm.make_task(DEMOS, [np.zeros((31, 5), int)], "huge")
    with pytest.raises(UserError, match="task huge: found grids of up to 31x5"):
        solver.solve([huge])


def test_the_default_number_of_variants_follows_the_training(
    run_folder: Callable[[str], Path],
) -> None:
    """A run of exact tasks has seen no variant: a turned task is another one to it."""
    assert etrm.load(run_folder("exact")).variants == 1
    assert etrm.load(run_folder("etrm")).variants == VARIANTS > 1
    solution = etrm.load(run_folder("exact")).solve(etrm.make_task(DEMOS, [INPUT]))
    assert solution.predictions["variant"].tolist() == [0]


def test_runs_that_cannot_be_asked(run_folder: Callable[[str], Path], tmp_path: Path) -> None:
    trm = tmp_path / "trm"
    shutil.copytree(run_folder("trm_mean"), trm)
    record = json.loads((trm / "run.json").read_text())
    record["config"]["context"]["unseen"] = "none"
    (trm / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"TRM.*the 3 tasks.*context\.unseen: mean"):
        etrm.load(trm)
    del record["config"]["halting"]
    (trm / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"another version.*halting: found nothing"):
        etrm.load(trm)
    study = run_folder("etrm").parents[3]
    with pytest.raises(UserError, match=f"no run.json in it.*there is {run_folder('etrm')}"):
        etrm.load(study)
    with pytest.raises(UserError, match="no such folder"):
        etrm.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="found 'gpu'"):
        etrm.load(run_folder("etrm"), device="gpu")
    changed = tmp_path / "changed"
    shutil.copytree(run_folder("etrm"), changed)
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: found SHA-256"):
        etrm.load(changed)


def test_raw_weights_answer_otherwise(run_folder: Callable[[str], Path]) -> None:
    raw, averaged = (etrm.load(run_folder("etrm"), weights=w) for w in ("raw", "ema"))
    assert not np.array_equal(raw.encode(DEMOS), averaged.encode(DEMOS))


def test_tables_as_data_frames(run_folder: Callable[[str], Path]) -> None:
    frame = etrm.metrics(run_folder("etrm"))
    assert frame["step"].tolist()[-1] == 3
    assert frame.loc[frame["step"] > 0, "train/lm_loss"].notna().all()
    with pytest.raises(UserError, match=r"predictions\.parquet: no such file"):
        etrm.predictions(run_folder("etrm"))
