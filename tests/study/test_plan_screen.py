"""States of stages, and the screen: folding, filters, widths, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning import ETRM, FULL, STRICT, judged, scored, study, trained

from etrm.config.load import load_study
from etrm.study.layout import Layout
from etrm.study.plan.cost import Cost
from etrm.study.plan.disk import Disk
from etrm.study.plan.entries import Entry, entries_of
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, Job, Jobs, PlanError
from etrm.study.plan.measured import Device
from etrm.study.plan.plan import Plan
from etrm.study.plan.table import render
from etrm.study.status import StudyStatus

JOBS = {
    "pretrain": "train_pretrain",
    "overfit": "train_overfit",
    "gate": "verdict",
    "full": "train_full",
    "evaluate": "evaluate_run",
}


def states(layout: Layout, *jobs: Job) -> dict[tuple[str, str], Entry]:
    found = entries_of(layout, Jobs(jobs), StudyStatus(layout))
    assert len({(e.experiment, e.stage, e.seed) for e in found}) == len(found)
    return {(entry.experiment, entry.stage): entry for entry in found}


def of_etrm(*stages: str, why: str = AFTER_OTHERS) -> list[Job]:
    return [Job(JOBS[stage], "etrm", 0, (why,), gpus=1) for stage in stages]


ALL = ("overfit", "gate", "full", "evaluate")


# --- states ---


def test_before_anything_ran_all_run_and_what_follows_a_gate_waits(tmp_path: Path) -> None:
    found = states(
        study(tmp_path), Job("train_pretrain", "strict", 0), *of_etrm(*ALL, why=NEVER_MADE)
    )
    assert [found["etrm", stage].state for stage in ALL] == ["run", "run", "waits", "waits"]
    assert {entry.why for entry in found.values()} == {("never run",)}
    assert list(found) == [("strict", "pretrain"), *(("etrm", stage) for stage in ALL)]


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    layout = study(tmp_path)
    for run in (STRICT, ETRM, FULL):
        trained(layout, run)
    scored(layout, FULL)
    judged(layout, 0.95)
    return layout


def test_a_finished_study_is_done(made: Layout) -> None:
    found = states(made)
    assert {entry.state for entry in found.values()} == {"done"}
    assert not any(entry.why or entry.job for entry in found.values())


def test_behind_a_passed_gate_nothing_waits(made: Layout) -> None:
    found = states(made, *of_etrm("full", "evaluate"))
    assert [found["etrm", stage].state for stage in ALL] == ["done", "done", "run", "run"]


def test_a_gate_that_stops_says_why_by_todays_threshold(tmp_path: Path, made: Layout) -> None:
    judged(made, 0.5)
    found = states(made)
    assert found["etrm", "full"].state == found["etrm", "evaluate"].state == "stopped"
    assert found["etrm", "full"].why == ("exact match 50.0% < 90%",)
    assert found["etrm", "gate"].state == "done"
    judged(made, 0.95)
    higher = study(tmp_path, gate={"exact_accuracy": 0.99})
    gate = Job("verdict", "etrm", 0, ("gate.exact_accuracy 0.9 → 0.99",))
    found = states(higher, gate)
    assert found["etrm", "gate"].why == gate.why
    assert found["etrm", "full"].why == ("exact match 95.0% < 99%",)


def test_what_follows_from_another_run_says_from_which(made: Layout) -> None:
    jobs = [Job("train_pretrain", "strict", 0, ("forced",)), *of_etrm(*ALL)]
    (made.folder(STRICT) / "metrics.parquet").unlink()
    found = states(made, *jobs)
    assert found["strict", "pretrain"].why == ("finished before, is taken back",)
    for path in made.state.rglob("kept.json"):
        path.unlink()
    found = states(made, *jobs)
    assert found["strict", "pretrain"].why == ("metrics.parquet is missing",)
    assert found["etrm", "overfit"].why == ("its parent strict runs again",)
    assert found["etrm", "gate"].why == ("its overfit run runs again",)
    assert found["etrm", "evaluate"].why == ("its run runs again",)
    found = states(made, *of_etrm(*ALL))
    assert found["etrm", "full"].why == ("its overfit run runs again",)
    found = states(made, *of_etrm("full", why="newer input: x"))
    assert found["etrm", "full"].why == ("newer input: x",), "nothing else is known"


def test_tables_that_are_made_again_are_new_data(made: Layout) -> None:
    jobs = [Job("augment", why=("data.variants 2 → 3",)), *of_etrm("overfit", "gate")]
    found = states(made, *jobs)
    assert found["etrm", "overfit"].why == ("new data",)
    assert not found["etrm", "overfit"].kept, "what is kept is of the old tables"


def test_what_snakemake_keeps_though_it_is_not_todays_is_stale(
    tmp_path: Path, made: Layout
) -> None:
    found = states(study(tmp_path, train={"lr": 1.0e-3}))
    assert found["etrm", "overfit"].state == "stale"
    assert found["etrm", "overfit"].why == ("train.lr 0.0001 → 0.001",)
    made.verdict("etrm", 0).unlink()
    (made.folder(STRICT) / "run.json").write_text("{")
    found = states(made)
    assert found["etrm", "gate"].why == ("verdict.json is missing",)
    (why,) = found["strict", "pretrain"].why
    assert why == "run.json cannot be read: `etrm doctor` names it and what mends it"


# --- the screen ---


def plan(count: int = 5, gpu: bool = True, **changes: Any) -> Plan:
    """`count` experiments of a group that are alike, and one by itself."""
    names = [f"etrm_{i}" for i in range(count)]
    experiments: dict[str, Any] = {name: {"group": "many"} for name in names}
    experiments["other"] = {"group": "one"}
    document = {
        "study": "s",
        "defaults": {"context": {"source": "standard"}},
        "experiments": experiments,
    }
    stages = []
    for name in names:
        stages += [
            (Entry(name, "overfit", 0, "run", ("never run",), True, 1), Cost(2.0, "bench", True)),
            (Entry(name, "gate", 0, "run", ("never run",), True), Cost(0.0)),
            (Entry(name, "full", 0, "waits", ("never run",), True, 1), Cost(8.0, "bench")),
            (Entry(name, "evaluate", 0, "waits", ("never run",), True), Cost(None)),
        ]
    why = ("train.lr 0.0001 → 0.001", "its overfit run runs again")
    stages += [(Entry("other", "overfit", 0, "run", why[:1], True, 2), Cost(1.5, "own"))]
    stages += [(Entry("other", "gate", 0, "run", why[1:], True), Cost(0.0))]
    stages += [(Entry("other", "full", 0, "stopped", ("exact match 0.0% < 90%",)), Cost(0.0))]
    jobs = [Job(JOBS[e.stage], e.experiment, e.seed) for e, _ in stages if e.job]
    jobs += [Job("tasks"), Job("figures", why=("figures.dpi 200 → 100", AFTER_OTHERS)), Job("all")]
    values: dict[str, Any] = {
        "configfile": "c.yaml",
        "layout": Layout(load_study(document)),
        "jobs": Jobs(tuple(jobs)),
        "stages": tuple(stages),
        "device": Device("NVIDIA L4" if gpu else "cpu-2-cores (x86_64)"),
        "disk": Disk(write=1_500_000_000, state=2_000_000, used=0, free=10**12),
        "notes": ("a note",),
    }
    return Plan(**(values | changes))


def test_experiments_that_are_alike_are_one_line_with_the_sum_of_hours() -> None:
    text = render(plan(), 120)
    lines = [line for line in text.splitlines() if "experiments" in line]
    assert lines[0] == "many: 5 experiments, 10 runs, 5 evaluations, ≤ 50 + ? GPU-hours"
    cells = "5 experiments  1  run 1  run 1  waits 1  waits 1  1  ≤ 50 + ?  never run"
    assert lines[1].split() == cells.split()
    assert "etrm_0" not in text
    alone = next(line for line in render(plan(), 160).splitlines() if "  other" in line)
    assert alone.endswith("train.lr 0.0001 → 0.001; exact match 0.0% < 90%")
    assert "its overfit" not in alone, "it follows from what is shown"


def test_all_and_filters_show_every_experiment() -> None:
    assert render(plan(), 120, every=True).count("  etrm_") == 5
    chosen = plan().select(["etrm_[12]"])
    text = render(chosen, 120)
    assert text.count("  etrm_") + text.count("\netrm_") == 2
    assert "≤ 20 + ? GPU-hours of what is selected" in text
    assert {e.stage for e, _ in plan().select(stages=["full"]).stages} == {"full"}
    stopped = plan().select(states=["stopped"]).stages
    assert [e.experiment for e, _ in stopped] == ["other"]
    assert len(plan().select(groups=["o*"]).stages) == 3
    assert "nothing is selected" in render(plan().select(["other"], states=["waits"]), 120)
    with pytest.raises(PlanError, match="expected a glob of etrm_0"):
        plan().select(["etrm_9"])
    with pytest.raises(PlanError, match=r"--group 'few'.*many, one"):
        plan().select(groups=["few"])


def test_totals_say_jobs_hours_by_measurement_and_disk() -> None:
    text = " ".join(render(plan(), 200).split())
    assert (
        "Jobs: 25, as `snakemake -n` counts them: 6 overfit, 6 gate, 5 full, 5 evaluate, 3 others"
    ) in text
    assert "Hours: ≤ 51.5 + ? GPU-hours, of them 40 behind gates; 50 by bench, 1.5 by own" in text
    assert (
        "1.5 GB to write, states of a run up to 2 MB while it trains; 0 B used, 1 TB free" in text
    )
    assert "Others: data run, figures run (figures.dpi 200 → 100), tables done" in text
    assert "Note: a note" in text


def test_hours_of_a_cpu_are_not_called_gpu_hours() -> None:
    text = render(plan(gpu=False), 120)
    assert "GPU-hours" not in text
    assert "51.5 + ? hours on cpu-2-cores" in text


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = plan(notes=("a note " * 30,))
    text = render(long, width)
    assert max(map(len, text.splitlines())) <= width
    assert "train.lr" in text, "the reason is there, on a line of its own if need be"
    assert "never run" in text


def test_names_are_cut_so_that_they_can_be_told_apart_and_empty_columns_left_out() -> None:
    names = [f"etrm_standard_with_a_long_name_steps{i}" for i in range(3)]
    experiments = {name: {} for name in names}
    document = {
        "study": "s",
        "defaults": {"context": {"source": "standard"}},
        "experiments": experiments,
    }
    stages = [(Entry(n, "full", 0, "run", ("never run",), True, 1), Cost(1.0)) for n in names]
    layout = Layout(load_study(document))
    text = render(plan(layout=layout, stages=tuple(stages)), 76, every=True)
    lines = [line for line in text.splitlines() if "steps" in line]
    assert len({line.split()[0] for line in lines}) == 3
    assert all(line.endswith("never run") for line in lines)
    assert "gate" not in text.splitlines()[2]
    assert "full" in text.splitlines()[2]


def test_a_finished_study_has_nothing_to_be_done() -> None:
    done = tuple((Entry(f"etrm_{i}", "full", 0, "done"), Cost(0.0)) for i in range(5))
    text = render(plan(stages=done, jobs=Jobs(()), notes=()), 120)
    assert "Jobs:   0: there is nothing to be done" in text
    assert "Hours" not in text
    assert "Others: data done, figures done, tables done, records done, report done" in text


def test_the_document_has_every_stage_and_is_json() -> None:
    document = json.loads(json.dumps(plan().document()))
    assert len(document["stages"]) == 23
    first = document["stages"][0]
    assert first == {
        "experiment": "etrm_0",
        "group": "many",
        "stage": "overfit",
        "seed": 0,
        "state": "run",
        "why": ["never run"],
        "job": True,
        "gpus": 1,
        "kept": False,
        "step": 0,
        "hours": 2.0,
        "at_most": True,
        "measured": "bench",
    }
    assert document["totals"] == {
        "jobs": 22,
        "hours": 51.5,
        "unmeasured": 5,
        "by_measurement": {"bench": 50.0, "own": 1.5},
    }
    assert document["counts"]["train_full"] == 5
    assert document["unit"] == "GPU-hours"
