"""Tasks of worlds: equal whenever they are drawn, identified by their demos, strictly split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from etrm.config.sources import WORLD_FAMILIES, WORLD_RULES, WorldSource
from etrm.worlds.generate import Generated, generate
from etrm.worlds.identify import is_identified
from etrm.worlds.registry import FAMILIES, PRIMITIVES
from etrm.worlds.world import World, WorldError


def tasks_of(count: int = 300, start: int = 0, **options: Any) -> list[Generated]:
    return list(generate(WorldSource(**{"part": "training", **options}), start, count))


def rules_of(tasks: list[Generated]) -> set[tuple[str, str]]:
    return {(task.rule, task.parameters) for task in tasks}


def grid(*cells: int) -> np.ndarray:
    return np.array([cells], np.uint8)


def digest(tasks: list[Generated]) -> str:
    found = hashlib.sha256()
    for task in tasks:
        grids = [(g.shape, g.tobytes()) for pair in task.pairs for g in pair]
        found.update(repr((task.id, task.rule, task.parameters, task.novelty, grids)).encode())
    return found.hexdigest()[:16]


def test_the_config_names_all_rules() -> None:
    assert set(WORLD_RULES) == set(PRIMITIVES)
    assert set(WORLD_FAMILIES) == set(FAMILIES)
    assert [len(FAMILIES[name]) for name in WORLD_FAMILIES] == [10, 34, 39]
    assert {t.rule for t in tasks_of(300, rules=("one_row",))} == set(FAMILIES["one_row"])


# --- determinism ---


def test_a_task_depends_on_seed_and_number_alone() -> None:
    whole = tasks_of(60)
    assert digest(whole) == "ad69f024e89b2104"
    assert digest(tasks_of(20, 40, tasks=5)) == digest(whole[40:])
    assert digest(tasks_of(60, seed=1)) != digest(whole)
    assert digest(tasks_of(60, part="held_out")) != digest(whole)


def test_the_tasks_of_all_primitives_are_pinned() -> None:
    tasks = tasks_of(120, rules=tuple(PRIMITIVES), size=(6, 5), smallest=(4, 5))
    assert digest(tasks) == "5db32a4b78b264ad"


def test_ids_name_the_rule_and_are_unique() -> None:
    sources = [{}, {"seed": 1}, {"part": "held_out"}, {"unseen": "grids"}]
    tasks = [task for options in sources for task in tasks_of(200, **options)]
    assert len({task.id for task in tasks}) == len(tasks)
    assert all(task.id.startswith(f"{task.rule}-") for task in tasks)


def test_a_mixture_has_all_of_its_rules_about_as_often() -> None:
    times = Counter(task.rule for task in tasks_of(500))
    assert set(times) == set(FAMILIES["ten_rules"])
    assert 25 < min(times.values()) <= max(times.values()) < 75


# --- identification ---


def test_demos_that_two_rules_explain_are_rejected() -> None:
    """Mirror and shift by two agree on the demo, and not on the query."""
    mirror, shift = PRIMITIVES["mirror"], PRIMITIVES["shift"]
    demo = (grid(1, 2, 0, 0), grid(0, 0, 2, 1))
    query = (grid(1, 2, 3, 0), grid(0, 3, 2, 1))
    sort = PRIMITIVES["sort"]  # explains 2, 1, 0, 0 → 0, 0, 1, 2 as the mirror does
    both = (grid(2, 1, 0, 0), grid(0, 0, 1, 2))
    assert is_identified([mirror, shift], [], [demo], [query])
    assert not is_identified([mirror, shift, sort], [], [both], [query])
    assert is_identified([mirror, shift, sort], [], [both, demo], [query])
    # Another rule that explains the demos does no harm where it gives the same answer.
    sorted_query = (grid(3, 2, 1, 0), grid(0, 1, 2, 3))
    assert is_identified([mirror, shift, sort], [], [both], [sorted_query])


def test_demos_that_no_rule_explains_are_rejected() -> None:
    demo, query = (grid(1, 2), grid(3, 3)), (grid(2, 1), grid(1, 2))
    assert not is_identified([PRIMITIVES["mirror"]], [], [demo], [query])


def test_a_colour_without_a_demo_is_not_identified() -> None:
    recolour = [PRIMITIVES["recolour"]]
    demo = (grid(1, 2, 0), grid(4, 5, 6))
    assert is_identified(recolour, [], [demo], [(grid(2, 1), grid(5, 4))])
    assert not is_identified(recolour, [], [demo], [(grid(2, 3), grid(5, 4))])


def test_a_composition_that_a_primitive_explains_is_rejected() -> None:
    mirror, shift, fill = (PRIMITIVES[name] for name in ("mirror", "shift", "fill"))
    primitives, pairs = [mirror, shift, fill], [(mirror, shift), (mirror, fill)]
    query = (grid(1, 2, 3, 0, 0), grid(0, 0, 3, 2, 1))
    assert not is_identified(primitives, pairs, [query], [query])
    filled = (grid(1, 2, 3, 0, 0), grid(7, 7, 3, 2, 1))
    assert is_identified(primitives, pairs, [filled], [filled])


@pytest.mark.parametrize("options", [{}, {"depth": 2, "unseen": "compositions"}])
def test_every_task_is_identified_within_its_world(options: dict[str, Any]) -> None:
    """By another way than the generator: all values of all rules, one by one."""
    names = ("shift", "mirror", "gravity", "fill", "last", "sort")
    source = WorldSource(rules=names, part="held_out", **options)
    world = World(source)
    singles = [((p, v),) for p in world.primitives for v in p.space(1, 10)]
    hypotheses: list[Any] = singles
    if source.depth == 2:
        pairs = world.compositions
        hypotheses = [
            ((p, v), (q, w)) for p, q in pairs for v in p.space(1, 10) for w in q.space(1, 10)
        ]
    for task in generate(source, 0, 20):
        answers = set()
        for parts in hypotheses:
            outputs = []
            for x, _ in task.pairs:
                for primitive, values in parts:
                    x = primitive.apply(x, *values)
                outputs.append(x.tobytes())
            if outputs[:3] == [y.tobytes() for _, y in task.pairs[:3]]:
                answers.add(outputs[3])
        assert answers == {task.pairs[3][1].tobytes()}


# --- splits ---


def both_parts(count: int = 600, **options: Any) -> tuple[list[Generated], list[Generated]]:
    return tasks_of(count, **options), tasks_of(count // 3, part="held_out", **options)


@pytest.mark.parametrize("unseen", ["grids", "parameters", "primitives"])
def test_no_grid_is_an_input_of_both_parts(unseen: str) -> None:
    training, held_out = both_parts(unseen=unseen)
    first, second = ({x.tobytes() for t in of for x, _ in t.pairs} for of in (training, held_out))
    assert first.isdisjoint(second)
    assert {task.novelty for task in training} == {None}


def test_unseen_parameters_occur_in_no_training_task() -> None:
    training, held_out = both_parts()
    seen = rules_of(training)
    by_rule: dict[str, set[str]] = {}
    for task in held_out:
        novel = (task.rule, task.parameters) not in seen
        assert task.novelty == ("parameters" if novel else "grids")
        by_rule.setdefault(task.rule, set()).add(str(task.novelty))
    # Rules with fewer than four values have unseen grids alone.
    expected = {name: {"parameters"} for name in FAMILIES["ten_rules"]}
    expected |= {name: {"grids"} for name in ("mirror", "gravity", "sort", "dup")}
    assert by_rule == expected
    values = [len({p for r, p in rules_of(of) if r == "fill"}) for of in (training, held_out)]
    assert values == [7, 2]


def test_unseen_compositions_are_of_seen_primitives() -> None:
    options = {"depth": 2, "unseen": "compositions", "rules": ("mirror", "fill", "last", "sort")}
    training, held_out = both_parts(90, **options)
    first, second = ({task.rule for task in of} for of in (training, held_out))
    assert first.isdisjoint(second)
    assert {n for rule in second for n in rule.split("+")} <= {
        n for rule in first for n in rule.split("+")
    }
    assert {task.novelty for task in held_out} == {"compositions"}
    assert all(len(json.loads(task.parameters)) == 2 for task in held_out)


def test_unseen_primitives_occur_in_no_training_task() -> None:
    training, held_out = both_parts(unseen="primitives")
    first, second = ({task.rule for task in of} for of in (training, held_out))
    assert (len(first), len(second)) == (8, 2)
    assert first.isdisjoint(second)


def test_the_split_depends_on_the_seed() -> None:
    parts = [rules_of(tasks_of(part="held_out", seed=seed)) for seed in range(3)]
    assert parts[0] != parts[1] != parts[2]


# --- worlds without tasks ---


@pytest.mark.parametrize(
    "options",
    [
        {"size": (1, 1), "rules": ("shift",)},
        {"smallest": (2, 2)},
        {"unseen": "compositions"},
        {"rules": ("mirror",), "unseen": "primitives"},
        {"rules": ("mirror",), "size": (1, 1), "part": "held_out"},
    ],
)
def test_a_world_without_tasks_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(WorldError, match="expected"):
        tasks_of(20, **options)


def test_grids_of_several_sizes() -> None:
    tasks = tasks_of(smallest=(1, 5), size=(1, 8))
    assert {task.pairs[0][0].shape for task in tasks} == {(1, n) for n in range(5, 9)}
    assert all(len({x.shape for x, _ in task.pairs}) == 1 for task in tasks)
    counts = tasks_of(5, demos=5, tests=2)
    assert {(len(task.pairs), task.demos) for task in counts} == {(7, 5)}
    assert replace(counts[0], redrawn=0).demos == 5


def test_small_spaces_may_stay_whole() -> None:
    training, held_out = both_parts(rules=("fill", "swap", "recolour"), split_from=20)
    seen = rules_of(training)
    novel = {task.rule: task.novelty for task in held_out}
    assert novel == {"fill": "grids", "swap": "parameters", "recolour": "parameters"}
    assert all((t.rule, t.parameters) in seen for t in held_out if t.rule == "fill")
    assert all((t.rule, t.parameters) not in seen for t in held_out if t.rule != "fill")
