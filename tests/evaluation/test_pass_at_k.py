"""Voting, pass@k and its denominators, and the submission."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.arc.task import Pair, Rule, Task
from etrm.evaluation.pass_at_k import credits, score, submission
from etrm.evaluation.voting import to_array, vote

COLUMNS = ["task", "query", "variant", "height", "width", "grid", "q_halt"]
RED, BLUE, EMPTY = np.full((2, 3), 2, np.uint8), np.full((3, 2), 1, np.uint8), np.zeros((0, 0))


def table(rows: list[tuple[str, int, Any, float]]) -> pd.DataFrame:
    """Predictions from (task, query, grid, q_halt); variants are numbered in order."""
    seen: dict[tuple[str, int], int] = {}
    full = []
    for task, query, grid, q_halt in rows:
        variant = seen[task, query] = seen.get((task, query), -1) + 1
        cells = np.asarray(grid, np.uint8)
        full.append((task, query, variant, *cells.shape, cells.tobytes(), q_halt))
    frame = pd.DataFrame(full, columns=COLUMNS)
    return frame.assign(fits=True, correct=None, token_accuracy=0.5, steps=16)


def task(name: str, *outputs: np.ndarray | None) -> Task:
    pair = Pair(RED, BLUE)
    return Task(name, (pair,), tuple(Pair(RED, output) for output in outputs))


def scored(predictions: pd.DataFrame, tasks: list[Task], **changes: Any) -> dict[str, Any]:
    options = {"ks": [1, 2], "variants": 4}
    return score(predictions, tasks, **(options | changes))


def grids_of(ranked: pd.DataFrame) -> list[list[list[int]]]:
    rows = zip(ranked["height"], ranked["width"], ranked["grid"], strict=True)
    return [to_array(*row).tolist() for row in rows]


def test_candidates_are_ordered_by_votes_then_by_confidence() -> None:
    rows = [("a", 0, RED, -1.0), ("a", 0, BLUE, 3.0), ("a", 0, RED, -1.0), ("a", 0, EMPTY, 5.0)]
    ranked = vote(table(rows))
    assert grids_of(ranked) == [RED.tolist(), EMPTY.tolist(), BLUE.tolist()]
    assert ranked["rank"].tolist() == [1, 2, 3]
    assert ranked["count"].tolist() == [2, 1, 1]
    assert ranked["q_mean"].tolist() == pytest.approx(
        [1 / (1 + np.exp(1)), 0.9933, 0.9526], abs=1e-4
    )


def test_equal_candidates_keep_the_order_in_which_they_were_predicted() -> None:
    rows = [("a", 0, BLUE, 0.5), ("b", 0, RED, 0.5), ("a", 0, RED, 0.5), ("b", 0, BLUE, 0.5)]
    ranked = vote(table(rows))
    assert grids_of(ranked[ranked["task"] == "a"]) == [BLUE.tolist(), RED.tolist()]
    assert grids_of(ranked[ranked["task"] == "b"]) == [RED.tolist(), BLUE.tolist()]


def test_grids_with_the_same_cells_and_another_shape_are_different_candidates() -> None:
    flat = np.full((1, 6), 2, np.uint8)
    assert vote(table([("a", 0, RED, 0.0), ("a", 0, flat, 0.0)]))["count"].tolist() == [1, 1]


def test_a_logit_that_is_not_a_number_counts_as_no_confidence() -> None:
    ranked = vote(table([("a", 0, RED, float("nan")), ("a", 0, BLUE, -50.0)]))
    assert grids_of(ranked) == [BLUE.tolist(), RED.tolist()]
    assert np.isfinite(ranked["q_mean"]).all()


def test_unpredicted_tasks_stay_in_the_denominator() -> None:
    tasks = [task(f"t{i:03d}", RED) for i in range(400)]
    found = scored(table([(t.id, 0, RED, 0.0) for t in tasks[:32]]), tasks)
    for k in ("1", "2"):
        for rule in ("task_fraction", "all_tests"):
            number = found["pass"][k][rule]
            assert (number["numerator"], number["denominator"]) == (32, 400)
            assert number["value"] == 32 / 400
            assert number["ci95"][0] < 32 / 400 < number["ci95"][1]
    assert found["metrics"]["ARC/pass@1"] == 32 / 400
    assert (found["tasks_asked"], found["tasks_evaluated"], found["partial"]) == (400, 32, True)
    assert (found["test_outputs"], found["test_outputs_predicted"]) == (400, 32)
    assert found["single_variant_exact"] == {"numerator": 32, "denominator": 32, "value": 1.0}
    assert found["voting_gain"] == {"difference": None, "ratio": None}  # 32 of 32 against 32 of 400


def test_the_two_credit_rules_differ_where_a_task_has_several_tests() -> None:
    tasks = [task("a", RED, BLUE), task("b", RED)]
    rows = [("a", 0, RED, 0.0), ("a", 1, RED, 1.0), ("a", 1, BLUE, 0.0), ("b", 0, RED, 0.0)]
    found = scored(table(rows), tasks)
    assert found["pass"]["1"]["task_fraction"]["numerator"] == 1.5
    assert found["pass"]["1"]["all_tests"]["numerator"] == 1
    assert found["pass"]["2"]["all_tests"]["numerator"] == 2
    assert not found["partial"]
    assert found["voting_gain"] == {"difference": 0.0, "ratio": 1.0}  # 3 of 4 rows, 1.5 of 2 tasks


def test_a_task_with_an_unpredicted_test_is_not_evaluated() -> None:
    found = scored(table([("a", 0, RED, 0.0)]), [task("a", RED, RED)])
    assert found["pass"]["1"]["task_fraction"]["value"] == 0.5
    assert (found["tasks_evaluated"], found["partial"]) == (0, True)


def test_unlabelled_outputs_are_counted_and_not_scored() -> None:
    tasks = [task("a", RED, None), task("b", None)]
    found = scored(table([("a", 0, RED, 0.0), ("a", 1, RED, 0.0), ("b", 0, RED, 0.0)]), tasks)
    assert found["pass"]["1"]["all_tests"]["denominator"] == 1
    assert found["pass"]["1"]["all_tests"]["value"] == 1.0
    assert (found["test_outputs_unlabelled"], found["tasks_unlabelled"]) == (2, 1)
    assert found["single_variant_exact"]["denominator"] == 1
    assert not found["partial"]


def test_nothing_labelled_gives_no_score_rather_than_zero() -> None:
    found = scored(table([("a", 0, RED, 0.0)]), [task("a", None)])
    number = found["pass"]["1"]["task_fraction"]
    assert (number["denominator"], number["value"], number["ci95"]) == (0, None, None)
    assert found["metrics"]["ARC/pass@1"] is None


def test_no_predictions_at_all() -> None:
    tasks = [task("a", RED, BLUE)]
    found = scored(table([]), tasks)
    assert found["pass"]["2"]["all_tests"]["value"] == 0.0
    assert found["single_variant_exact"]["value"] is None
    assert found["variants_used_mean"] is None
    assert submission(table([]), tasks) == {"a": [{"attempt_1": [[0]], "attempt_2": [[0]]}] * 2}


def test_counts_of_canvas_variants_and_means() -> None:
    rows = [("a", 0, RED, 0.0), ("a", 0, RED, 0.0), ("b", 0, RED, 0.0)]
    frame = table(rows).assign(fits=[False, False, None], token_accuracy=[1.0, 0.5, None])
    losses = {"lm_loss": [0.5, 1.5, None], "q_halt_loss": [0.1, 0.3, None]}
    frame = frame.assign(**losses, q_halt_right=[True, False, None])
    found = scored(frame, [task("a", RED), task("b", None)])
    assert found["outputs_not_fitting_canvas"] == 1
    assert (found["predictions"], found["variants"], found["variants_used_mean"]) == (3, 4, 1.5)
    assert found["metrics"]["all.accuracy"] == 0.75
    means = {"lm_loss": 1.0, "q_halt_loss": 0.2, "q_halt_accuracy": 0.5, "steps": 16.0}
    for name, mean in means.items():
        assert found["metrics"][f"all.{name}"] == pytest.approx(mean), name


def test_a_score_is_plain_json() -> None:
    tasks = [task(f"t{i}", RED if i % 3 else BLUE) for i in range(30)]
    found = scored(table([(t.id, 0, RED, 0.0) for t in tasks]), tasks)
    assert json.loads(json.dumps(found)) == found


def test_intervals_are_exact_at_every_count_and_never_vanish() -> None:
    tasks = [task(f"t{i}", RED) for i in range(20)]
    uppers = []
    for right in range(21):
        rows = [(t.id, 0, RED if i < right else BLUE, 0.0) for i, t in enumerate(tasks)]
        number = scored(table(rows), tasks)["pass"]["1"]["all_tests"]
        low, high = number["ci95"]
        assert low <= right / 20 <= high
        assert number["ci95_method"] == "Clopper-Pearson"
        uppers.append(high)
    assert uppers == sorted(uppers)
    assert uppers[:2] == pytest.approx([0.16843, 0.24873], abs=1e-5)  # published tables


def test_ranks_give_the_credits_at_every_k() -> None:
    """A report pairs the tasks of two scores by them."""
    tasks = [task("a", RED, BLUE), task("b", RED, None), task("c", None)]
    rows = [("a", 0, BLUE, 0.0), ("a", 0, BLUE, 0.0), ("a", 0, RED, 0.0), ("b", 0, BLUE, 0.0)]
    found = scored(table([*rows, ("c", 0, RED, 0.0)]), tasks)
    assert found["ranks"] == {"a": [2, None], "b": [None]}
    credit = credits(found["ranks"], [1, 2])  # task, k, rule
    assert credit.tolist() == [[[0, 0], [0.5, 0]], [[0, 0], [0, 0]]]
    assert found["pass"]["2"]["task_fraction"]["numerator"] == 0.5


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("z", 0, RED, 0.0)], "task 'z', which was not asked for"),
        ([("a", 1, RED, 0.0)], "query 1 of task 'a', which has 1"),
    ],
)
def test_predictions_that_were_not_asked_for_are_an_error(rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scored(table(rows), [task("a", RED)])


def test_repeated_predictions_are_an_error() -> None:
    twice = pd.concat([table([("a", 0, RED, 0.0)])] * 2)
    with pytest.raises(
        ValueError, match="1 repeated rows, the first: task 'a', query 0, variant 0"
    ):
        scored(twice, [task("a", RED)])


def test_the_same_task_asked_for_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 tasks asked for, 1 distinct"):
        scored(table([]), [task("a", RED), task("a", RED)])


def reference_pass(rows: list[tuple[str, int, Any, float]], tasks: list[Task], k: int) -> float:
    """TRM's rule in five lines of dictionaries."""
    credit = 0.0
    for t in tasks:
        for query, pair in enumerate(t.queries):
            stats: dict[Any, list[float]] = {}
            for name, q, grid, logit in rows:
                if (name, q) == (t.id, query):
                    stats.setdefault(np.asarray(grid).tobytes(), []).append(
                        1 / (1 + np.exp(-logit))
                    )
            means = {key: [len(s), sum(s) / len(s)] for key, s in stats.items()}
            best = sorted(means.items(), key=lambda item: item[1], reverse=True)[:k]
            credit += any(key == pair.output.tobytes() for key, _ in best) / len(t.queries)
    return credit / len(tasks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 1),
            st.integers(0, 4),
            st.sampled_from([-2.0, 0.0, 0.5, 3.0]),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_pass_at_k_equals_the_reference(drawn: list[tuple[str, int, int, float]], k: int) -> None:
    grids = [np.full((1 + i % 2, 2), i, np.uint8) for i in range(5)]
    rows = [(name, query, grids[i], logit) for name, query, i, logit in drawn]
    tasks = [task(name, grids[0], grids[1]) for name in ("a", "b", "c", "d")]
    found = scored(table(rows), tasks, ks=[k, k + 1])
    fraction = found["pass"][str(k)]["task_fraction"]
    assert fraction["value"] == pytest.approx(reference_pass(rows, tasks, k))
    assert found["pass"][str(k)]["all_tests"]["value"] <= fraction["value"]
    assert fraction["value"] <= found["pass"][str(k + 1)]["task_fraction"]["value"]
    assert fraction["denominator"] == 4


def test_a_submission_holds_valid_grids_where_a_prediction_has_no_cells() -> None:
    rows = [("a", 0, EMPTY, 9.0), ("a", 0, EMPTY, 9.0), ("a", 0, RED, 0.0), ("b", 0, EMPTY, 0.0)]
    rows += [("c", 0, np.zeros((2, 0)), 0.0), ("c", 0, np.zeros((0, 2)), 0.0)]
    sent = submission(table(rows), [task(name, RED) for name in "abc"])
    assert sent["a"] == [{"attempt_1": [[0]], "attempt_2": RED.tolist()}]
    assert sent["b"] == sent["c"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    assert grids_of(vote(table(rows)))[0] == []  # the ranking has it as it was predicted


def test_submission_repeats_a_single_candidate_and_answers_every_test() -> None:
    rows = [("a", 0, RED, 0.0), ("a", 0, RED, 0.0), ("a", 0, BLUE, 9.0), ("b", 1, BLUE, 0.0)]
    tasks = [task("a", RED), task("b", RED, None), task("c", RED)]
    assert submission(table(rows), tasks) == {
        "a": [{"attempt_1": RED.tolist(), "attempt_2": BLUE.tolist()}],
        "b": [
            {"attempt_1": [[0]], "attempt_2": [[0]]},
            {"attempt_1": BLUE.tolist(), "attempt_2": BLUE.tolist()},
        ],
        "c": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }


def test_scores_by_rule() -> None:
    """Of tasks whose rule is known; a task of two outputs counts with the share that is right."""
    rules = {"a": "fill", "b": "fill", "c": "sort", "d": None}
    tasks = [
        replace(task(name, RED, *([BLUE] if name == "a" else [])), rule=rule and Rule(rule, "{}"))
        for name, rule in rules.items()
    ]
    rows = [("a", 0, RED, 0.0), ("a", 1, RED, 0.0), ("c", 0, BLUE, 0.0), ("c", 0, RED, -1.0)]
    assert scored(table(rows), tasks)["rules"] == {
        "fill": {"tasks": 2, "right": {"1": 0.5, "2": 0.5}},
        "sort": {"tasks": 1, "right": {"1": 0.0, "2": 1.0}},
    }
