"""The cases by name, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.costs import dataset_rows, state_rows
from benchmarks.evaluation import evaluation_rows
from benchmarks.planning import planning_rows
from benchmarks.pools import pools_rows
from benchmarks.refinement import CASE as REFINEMENT
from benchmarks.refinement import refinement_rows
from benchmarks.rows import Row
from benchmarks.scaling import scaling_rows
from benchmarks.setups import SOURCES, Setting
from benchmarks.sources import DOCUMENTS, sources_rows
from benchmarks.training import ablation_rows, training_rows
from benchmarks.votes import votes_rows

Measure = Callable[[Setting, set[str]], Iterator[Row]]


class UnknownCase(ValueError):  # noqa: N818 - says what is wrong
    """A case that does not exist: the message lists those that do."""


@dataclass(frozen=True)
class Group:
    """Cases that are measured together, because their ratios are."""

    cases: tuple[str, ...]
    measure: Measure
    default: bool = True  # measured where no case is named


def _groups() -> list[Group]:
    groups = []
    for model in SOURCES:
        groups.append(Group((f"train/{model}", f"parts/{model}"), _of(training_rows, model)))
    for model in SOURCES:
        groups.append(
            Group((f"eval/{model}", f"eval/{model}-heldout"), _of(evaluation_rows, model))
        )
    groups += [
        Group(("scaling/trm",), lambda setting, _: scaling_rows(setting, "trm")),
        Group(("state/save", "state/resume"), lambda setting, _: state_rows(setting)),
        Group(("dataset/tasks", "dataset/augment"), lambda setting, _: dataset_rows(setting)),
    ]
    groups.append(Group(("plan/paper", "plan/1000-experiments"), planning_rows, default=False))
    groups.append(Group(tuple(f"sources/{kind}" for kind in DOCUMENTS), sources_rows, False))
    groups.append(Group(("pools/etrm-standard",), lambda setting, _: pools_rows(setting), False))
    groups.append(Group(("vote/paper",), lambda setting, _: votes_rows(setting), False))
    groups.append(Group((REFINEMENT,), lambda setting, _: refinement_rows(setting), False))
    for model in SOURCES:
        groups.append(Group((f"ablation/{model}",), _alone(ablation_rows, model), default=False))
    return groups


def _of(rows: Callable[[Setting, str, set[str]], Iterator[Row]], model: str) -> Measure:
    return lambda setting, cases: rows(setting, model, cases)


def _alone(rows: Callable[[Setting, str], Iterator[Row]], model: str) -> Measure:
    return lambda setting, _: rows(setting, model)


GROUPS = _groups()
CASES = tuple(case for group in GROUPS for case in group.cases)


def select(only: Sequence[str] = ()) -> list[str]:
    """Cases by name or by the part before the slash (`train`, `train/`); the default ones for none.

    Raises `UnknownCase`.
    """
    if not only:
        return [case for group in GROUPS if group.default for case in group.cases]
    unknown = [name for name in only if not any(_meant(name, case) for case in CASES)]
    if unknown:
        raise UnknownCase(
            f"found no case {', '.join(map(repr, unknown))}, expected one of {', '.join(CASES)}, or"
            " what stands before a slash, for all of these"
        )
    return [case for case in CASES if any(_meant(name, case) for name in only)]


def _meant(name: str, case: str) -> bool:
    return name == case or case.startswith(name.rstrip("/") + "/")


def run_cases(
    setting: Setting,
    only: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Measure the cases that are meant, row by row; `tell` hears of each before it is measured."""
    chosen = set(select(only))
    for group in GROUPS:
        cases = chosen & set(group.cases)
        if not cases:
            continue
        tell(", ".join(case for case in group.cases if case in cases))
        for row in group.measure(setting, cases):
            if row.case in cases:
                yield row
