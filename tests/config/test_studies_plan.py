"""The studies of other tasks than the paper's: what they would run, and on which tasks."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, shipped_study

from etrm.data.prepare import select_tasks
from etrm.study.layout import Layout
from etrm.study.plan.jobs import snakemake_jobs

MINI_ARC = 5  # tasks, rebuilt


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files as those of Mini-ARC: names, texts for colours, null for 0."""
    rng = np.random.default_rng(0)
    files = tmp_path / "data" / "MiniARC"
    files.mkdir(parents=True)

    def grid() -> list[list[str | int | None]]:
        symbols = [None, 0, *map(str, range(1, 10))]
        return [[symbols[i] for i in row] for row in rng.integers(0, 11, (5, 5))]

    for number in range(MINI_ARC):
        pairs = [{"input": grid(), "output": grid()} for _ in range(4)]
        text = json.dumps({"train": pairs[:3], "test": pairs[3:]})
        (files / f"Someone_a rule,_no. {number}!_l6af.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no path and no handler of signals of Snakemake behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("_as_before")
@pytest.mark.parametrize("name", ["arc2", "mini_arc", "rearc"])
def test_it_plans_by_dry_run(name: str, folder: Path) -> None:
    """Each experiment trains and is judged; finalists and baselines are evaluated."""
    config = shipped_study(f"{name}.yaml")
    jobs = snakemake_jobs(str(ROOT / "config" / f"{name}.yaml")).of_rules()
    # What follows a selection is not known yet.
    known = {name: e for name, e in config.experiments.items() if e.after is None}
    trm = sum(len(e.seeds) for e in known.values() if e.is_trm)
    etrm = sum(len(e.seeds) for e in known.values() if not e.is_trm)
    trained = {"train_pretrain": trm, "train_overfit": etrm, "verdict": etrm, "train_full": etrm}
    assert {rule: jobs[rule] for rule in trained} == trained
    assert jobs["tasks"] == jobs["augment"] == 1
    scored = [run for run in Layout(config).scored() if run.experiment in known]
    assert jobs.get("evaluate_run", 0) + jobs.get("merge_shards", 0) == len(scored)
    assert jobs.get("validate_run", 0) == len(
        [run for run in Layout(config).validated() if run.experiment in known]
    )
    assert jobs.get("generate", 0) == len(Layout(config).generated)  # none of them is there yet


def test_mini_arc_is_held_out_and_read_as_it_comes(folder: Path) -> None:
    config = shipped_study("mini_arc.yaml")
    records, sources, _ = select_tasks(config.data)
    held_out = [record for record in records if record.split == "evaluation"]
    assert [record.source for record in held_out] == ["mini_arc"] * MINI_ARC
    assert sources["mini_arc"].skipped == []
    first = json.loads(next(iter(sorted((folder / "data/MiniARC").iterdir()))).read_text())
    expected = [[int(cell or 0) for cell in row] for row in first["train"][0]["input"]]
    assert held_out[0].task.demos[0].input.tolist() == expected
    grids = [pair.input.shape for record in records for pair in record.task.demos]
    assert max(max(shape) for shape in grids) == 5 == config.data.max_side
    # TRM alone learns demos of Mini-ARC, and nothing of the generated world.
    assert {n for n, e in config.experiments.items() if e.split != "strict"} == {"trm"}
    assert config.experiments["trm"].sources.training == ("arc1_training",)


def test_arc2_trains_on_both_sets_and_asks_todays_held_out_tasks() -> None:
    """How many tasks that leaves is in tests/data/test_prepare.py."""
    data, paper = shipped_study("arc2.yaml").data, shipped_study("paper.yaml")
    assert (data.training, data.duplicates) == (("arc2_training", "arc1_training"), "first")
    assert data.evaluation == ("arc2_evaluation",)
    assert (data.sources["arc2_evaluation"].version, data.variants) == ("kaggle2025", 1001)
    assert set(paper.experiments) == set(shipped_study("arc2.yaml").experiments)


def test_rearc_trains_the_papers_encoders_on_tasks_and_pools() -> None:
    config, paper = shipped_study("rearc.yaml"), shipped_study("paper.yaml")
    assert (config.data.training, config.data.evaluation) == (
        ("arc1_training", "rearc"),
        ("arc1_evaluation",),
    )
    source = config.data.sources["rearc"]
    assert (source.kind, source.rules, source.pairs) == ("rearc", None, 1000)
    assert (config.data.validation_tasks, config.data.variants) == (40, 1001)
    assert len(Layout(config).generated) == 1
    assert {"etrm_standard_steps16_explore50", "etrm_in_context", "etrm_perceiver"} <= set(
        config.experiments
    )
    for name, experiment in config.experiments.items():
        same = paper.experiments[name]
        assert experiment.episodes == replace(same.episodes, shown="evaluation"), name
        assert (experiment.context, experiment.stages) == (same.context, same.stages), name
        assert experiment.after == same.after, name
        assert experiment.split == "strict", name
