"""Refused first weights: the tasks that an error names, and its advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, make_tasks

from etrm.arc.task import Task
from etrm.data.seen_tasks import seen_tasks
from etrm.training.initial_weights import LeakError, Parent, refuse_leak

HELD_OUT = make_tasks(2, seed=7, prefix="held")
# Trained on, each under another id or in part: `hidden` is one of them, `first` and `second` hold
# the demos of the other.
HIDDEN = Task("hidden", HELD_OUT[0].demos, HELD_OUT[0].queries)
SPREAD = [
    Task(name, (HELD_OUT[1].demos[i], *other.demos[1:], *other.queries), other.queries)
    for i, (name, other) in enumerate(zip(("first", "second", "third"), make_tasks(3), strict=True))
]


def parent(name: str, tasks: list[Task], split: str = "strict") -> Parent:
    record = {"experiment": name, "split": split, "unproven": []}
    return Parent(Path(name), Path(name), "", record | {"seen_tasks": seen_tasks(tasks, [])})


def refusal(given: Parent, strict: tuple[str, ...], source: str = "standard", **run: Any) -> str:
    init = {"init": given.name, **run}
    with pytest.raises(LeakError) as refused:
        refuse_leak(make_run(source, decoder=init), given, HELD_OUT, strict)
    return str(refused.value)


@pytest.mark.parametrize(
    ("tasks", "study", "advised", "not_advised"),
    [
        # Of older data or code, it did not leave out tasks that give held-out ones away.
        (
            [*SPREAD, HIDDEN],
            ("a",),
            ["stage `tasks` and 'a'", "first, hidden, second"],
            "strict TRM",
        ),
        ([HIDDEN], ("a", "b"), ["start from 'b', or", "stage `tasks` and 'a'"], "strict TRM"),
        # The stage `tasks` of this study does not change the training of a parent from elsewhere.
        ([HIDDEN], (), ["train 'a' again", "hidden"], "stage `tasks`"),
    ],
)
def test_advice_on_a_strict_parent(
    tasks: list[Task], study: tuple[str, ...], advised: list[str], not_advised: str
) -> None:
    text = refusal(parent("a", tasks), study)
    assert ("(held0, held1)" if len(tasks) > 1 else "(held0)") in text
    assert all(each in text for each in advised)
    assert not_advised not in text


def test_advice_on_a_transductive_or_unknown_parent() -> None:
    """A strict TRM is not told to pretrain one, or to start from itself."""
    leaky, unknown = parent("a", [HIDDEN], "transductive"), Parent(Path("x"), Path("x"), "", None)
    assert refusal(leaky, ()).endswith("pretrain a strict TRM")
    assert refusal(leaky, ("trm_strict",)).endswith(": start from 'trm_strict'")
    for given in (leaky, unknown):
        text = refusal(given, ("tiny",), source="embedding")
        assert ": set decoder.init: null" in text
        assert ("decoder.init_trust: true" in text) == (given is unknown)


def test_weights_that_saw_no_held_out_task_are_accepted() -> None:
    run = make_run(decoder={"init": "trm_strict"})
    assert refuse_leak(run, parent("trm_strict", SPREAD[:2]), HELD_OUT, ()) is None
    leaky = parent("trm", HELD_OUT, "transductive")
    child = make_run(decoder={"init": "trm"}, split="transductive")
    assert refuse_leak(child, leaky, HELD_OUT, ()) is None
