"""Snakemake's reasons in words, and what is said where it cannot answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from etrm.study.plan.jobs import Job, Jobs, PlanError, changed_params, snakemake_jobs

PARAMS = {
    "style": {"dpi": 100, "formats": ["png"]},
    "gate": {"exact_accuracy": 0.9},
    "variants": 4,
    "code": "abc",
    "state": "results/s/state",
}


@pytest.mark.parametrize(
    ("name", "old", "words"),
    [
        ("gate", {"exact_accuracy": 0.8}, ["gate.exact_accuracy 0.8 → 0.9"]),
        ("style", {"dpi": 200, "formats": ["png"]}, ["figures.dpi 200 → 100"]),
        ("variants", 3, ["data.variants 3 → 4"]),
        ("code", "abd", ["code"]),
        ("state", "results/t/state", ["state"]),
    ],
)
def test_a_changed_parameter_is_named_as_in_the_configuration(
    name: str, old: Any, words: list[str]
) -> None:
    assert changed_params(PARAMS, [old], [PARAMS[name]]) == words


def test_several_parameters_meet_their_own_old_values() -> None:
    old = [{"exact_accuracy": 0.8}, "abd", {"dpi": 200, "formats": ["png"]}]
    new = [PARAMS["style"], PARAMS["gate"], PARAMS["code"]]
    assert changed_params(PARAMS, old, new) == [
        "figures.dpi 200 → 100",
        "gate.exact_accuracy 0.8 → 0.9",
        "code",
    ]


def test_a_parameter_without_an_old_value_is_new_and_one_that_is_gone_is_said() -> None:
    assert changed_params(PARAMS, [], [4]) == ["data.variants is new"]
    assert changed_params(PARAMS, ["gone"], []) == ["parameters"]


def test_jobs_are_counted_by_rule_and_found_by_run() -> None:
    train = Job("train_full", "a", 1)
    jobs = Jobs((train, Job("train_full", "a", 0), Job("record", "a"), Job("all")))
    assert jobs.of_rules() == {"all": 1, "record": 1, "train_full": 2}
    assert jobs.runs()["a", "full", 1] is train
    assert len(jobs.runs()) == 2


def test_without_snakemake_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snakemake", None)
    with pytest.raises(PlanError, match=r"Snakemake is not installed here.*etrm run"):
        snakemake_jobs("config/smoke.yaml")


def test_away_from_the_project_the_error_says_where_to_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=f"{tmp_path}: found no Snakefile"):
        snakemake_jobs("config/smoke.yaml")
