"""Refused first weights: what the error says, and whether its advice helps."""

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


def test_a_strict_parent_of_the_study_is_to_be_trained_again() -> None:
    """It is of older data or code, which did not leave out what gives held-out tasks away."""
    text = refusal(parent("trm_strict", [*SPREAD, HIDDEN]), ("trm_strict",))
    assert "'trm_strict' has seen 2 of 2 held-out tasks (held0, held1): run the stage" in text
    assert "run the stage `tasks` and 'trm_strict' again" in text
    assert text.endswith("that leaves out its training tasks first, hidden, second, third")
    assert "pretrain a strict TRM" not in text


def test_another_strict_parent_is_proposed_first() -> None:
    text = refusal(parent("a", [HIDDEN]), ("a", "b"))
    assert "(held0): start from 'b', or run the stage `tasks` and 'a' again" in text


def test_a_strict_parent_from_elsewhere_is_to_be_trained_without_what_it_saw() -> None:
    """The stage `tasks` of this study does not change what it trains on."""
    text = refusal(parent("elsewhere", [HIDDEN]), ())
    assert text.endswith(": train 'elsewhere' again without its training tasks hidden")


def test_a_transductive_parent_is_to_be_replaced_by_a_strict_one() -> None:
    leaky = parent("trm", [HIDDEN], "transductive")
    assert refusal(leaky, ()).endswith(": pretrain a strict TRM")
    assert refusal(leaky, ("trm_strict",)).endswith(": start from 'trm_strict'")


def test_a_strict_trm_is_not_told_to_pretrain_one_or_to_start_from_itself() -> None:
    leaky = parent("trm", [HIDDEN], "transductive")
    text = refusal(leaky, ("tiny",), source="embedding")
    assert text.endswith(": set decoder.init: null, to train it from the beginning")
    unknown = Parent(Path("x.pt"), Path("x.pt"), "", None)
    text = refusal(unknown, ("tiny",), source="embedding")
    assert "has seen: set decoder.init: null, to train it from the beginning, or set" in text


def test_weights_that_saw_no_held_out_task_are_accepted() -> None:
    run = make_run(decoder={"init": "trm_strict"})
    refuse_leak(run, parent("trm_strict", SPREAD[:2]), HELD_OUT, ())
    leaky = parent("trm", HELD_OUT, "transductive")
    refuse_leak(make_run(decoder={"init": "trm"}, split="transductive"), leaky, HELD_OUT, ())
