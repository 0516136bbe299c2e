"""Snakemake's reasons in words, and the errors where it cannot answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from etrm.config import files
from etrm.study.plan.jobs import Job, Jobs, PlanError, changed_params, snakemake_jobs

STYLE, GATE = {"dpi": 100, "formats": ["png"]}, {"exact_accuracy": 0.9}
PARAMS = {"style": STYLE, "gate": GATE, "variants": 4, "code": "abc", "state": "results/s/state"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ([{"exact_accuracy": 0.8}], [GATE], ["gate.exact_accuracy 0.8 → 0.9"]),
        ([{"dpi": 200, "formats": ["png"]}], [STYLE], ["figures.dpi 200 → 100"]),
        ([3], [4], ["data.variants 3 → 4"]),
        (["abd"], ["abc"], ["code"]),
        (["results/t/state"], ["results/s/state"], ["state"]),
        (  # each meets its own old value, whatever the order
            [{"exact_accuracy": 0.8}, "abd", {"dpi": 200, "formats": ["png"]}],
            [STYLE, GATE, "abc"],
            ["figures.dpi 200 → 100", "gate.exact_accuracy 0.8 → 0.9", "code"],
        ),
        ([], [4], ["data.variants is new"]),
        (["gone"], [], ["parameters"]),
    ],
)
def test_changed_parameters_are_named_as_in_the_configuration(
    old: list[Any], new: list[Any], words: list[str]
) -> None:
    assert changed_params(PARAMS, old, new) == words


def test_jobs_are_counted_by_rule_and_found_by_run() -> None:
    train = Job("train_full", "a", 1)
    jobs = Jobs((train, Job("train_full", "a", 0), Job("record", "a"), Job("all")))
    assert jobs.of_rules() == {"all": 1, "record": 1, "train_full": 2}
    assert jobs.runs()["a", "full", 1] is train
    assert len(jobs.runs()) == 2


def test_errors_name_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)  # as where the package is installed
    with pytest.raises(PlanError, match=f"{tmp_path}: found no Snakefile"):
        snakemake_jobs("config/smoke.yaml")
    monkeypatch.setitem(sys.modules, "snakemake", None)
    with pytest.raises(PlanError, match="etrm run"):
        snakemake_jobs("config/smoke.yaml")
