"""Votes, pass@k and the submission are those of the official evaluator."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from etrm.arc.augment import Augmentation
from etrm.arc.grid import crop
from etrm.arc.task import Pair, Task
from etrm.evaluation.pass_at_k import score, submission


def read_tasks(puzzles: dict[str, Any], names: list[str]) -> list[Task]:
    def pairs(items: Any) -> tuple[Pair, ...]:
        grids = [[np.array(item[key], np.uint8) for key in ("input", "output")] for item in items]
        return tuple(Pair(*both) for both in grids)

    return [Task(n, pairs(puzzles[n]["train"]), pairs(puzzles[n]["test"])) for n in names]


@pytest.fixture(scope="module")
def voted(golden: Path) -> tuple[pd.DataFrame, list[Task]]:
    """The recorded predictions as `predictions.parquet` has them, and their tasks.

    As the official evaluator does, a prediction is matched to its test input by content.
    """
    cases = np.load(golden / "vote_cases.npz")
    expected = json.loads((golden / "vote_expected.json").read_text())
    puzzles = json.loads((golden / "vote_puzzles.json").read_text())
    tasks = read_tasks(puzzles, expected["puzzles"])
    queries = {
        (t.id, pair.input.shape, pair.input.tobytes()): query
        for t in tasks
        for query, pair in enumerate(t.queries)
    }
    inputs, outputs = (crop(cases[key].reshape(-1, 30, 30)) for key in ("inputs", "preds"))
    rows, variants = [], Counter[tuple[str, int]]()
    for name, seen, answer, q in zip(
        cases["name"].tolist(), inputs, outputs, cases["q_halt_logits"].tolist(), strict=True
    ):
        base, *recipe = name.split("|||")
        dihedral, colors = (int(recipe[0][1:]), recipe[1]) if recipe else (0, "0123456789")
        augmentation = Augmentation(dihedral, tuple(map(int, colors)))
        seen, answer = augmentation.inverse(seen), augmentation.inverse(answer)
        query = queries[base, seen.shape, seen.tobytes()]
        rows.append((base, query, variants[base, query], *answer.shape, answer.tobytes(), q))
        variants[base, query] += 1
    columns = ["task", "query", "variant", "height", "width", "grid", "q_halt"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(fits=True, correct=None, token_accuracy=0.5, steps=16), tasks


def test_pass_at_k_is_official(voted: tuple[pd.DataFrame, list[Task]], golden: Path) -> None:
    predictions, tasks = voted
    expected = json.loads((golden / "vote_expected.json").read_text())["metrics"]
    ks = [int(name.split("@")[1]) for name in expected]
    found = score(predictions, tasks, ks=ks, variants=len(predictions))
    passes = {name: found["metrics"][name] for name in expected}
    assert passes == pytest.approx(expected, abs=1e-12)


def test_the_submission_is_official(voted: tuple[pd.DataFrame, list[Task]], golden: Path) -> None:
    """Equal, but for the three attempts that have no cells: [] there, the valid grid [[0]] here."""
    expected = json.loads((golden / "vote_expected_submission.json").read_text())
    for name in ("25094a63", "506d28a5", "cfb2ce5a"):
        [attempts] = expected[name]
        assert attempts["attempt_2"] == []
        attempts["attempt_2"] = [[0]]
    assert submission(*voted) == expected
