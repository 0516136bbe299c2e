"""States of stages, and the screen: folding, filters, widths, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import planning
import pytest
from planning import STRICT, judged, study

from etrm.config.compare import summary
from etrm.config.load import load_study
from etrm.study.layout import Layout
from etrm.study.plan.devices import Device
from etrm.study.plan.entries import NEVER_RUN, RESTORABLE, Entry, entries_of
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, Job, Jobs, PlanError
from etrm.study.plan.plan import Plan, longest_path
from etrm.study.plan.sizes import Disk
from etrm.study.plan.table import render
from etrm.study.stale import StudyStatus

RULES = {"overfit": "train_overfit", "gate": "verdict", "full": "train_full"}
RULES |= {"evaluate": "evaluate_run"}
ALL = tuple(RULES)


def states(layout: Layout, *jobs: Job) -> dict[tuple[str, str], Entry]:
    found = entries_of(layout, Jobs(jobs), StudyStatus(layout))
    assert len({(e.experiment, e.stage, e.seed) for e in found}) == len(found)
    return {(entry.experiment, entry.stage): entry for entry in found}


def of_etrm(*stages: str, why: str = AFTER_OTHERS) -> list[Job]:
    return [Job(RULES[stage], "etrm", 0, (why,), gpus=1) for stage in stages]


# --- states ---


def test_at_first_all_stages_run_and_those_behind_a_gate_wait(tmp_path: Path) -> None:
    pretrain = Job("train_pretrain", "strict", 0)
    found = states(study(tmp_path), pretrain, *of_etrm(*ALL, why=NEVER_MADE))
    assert [found["etrm", stage].state for stage in ALL] == ["run", "run", "waits", "waits"]
    assert {entry.why for entry in found.values()} == {(NEVER_RUN,)}
    assert list(found) == [("strict", "pretrain"), *(("etrm", stage) for stage in ALL)]


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    layout = planning.made(study(tmp_path))
    judged(layout, 0.95)
    return layout


def test_a_finished_study_is_done(made: Layout) -> None:
    found = states(made)
    assert {entry.state for entry in found.values()} == {"done"}
    assert not any(entry.why or entry.job for entry in found.values())
    found = states(made, *of_etrm("full", "evaluate"))  # behind a passed gate nothing waits
    assert [found["etrm", stage].state for stage in ALL] == ["done", "done", "run", "run"]


def test_a_gate_that_stops_is_judged_by_the_current_threshold(tmp_path: Path, made: Layout) -> None:
    judged(made, 0.5)
    found = states(made)
    assert found["etrm", "full"].state == found["etrm", "evaluate"].state == "stopped"
    assert found["etrm", "full"].why == ("exact match 50.0% < 90%",)
    assert found["etrm", "gate"].state == "done"
    judged(made, 0.95)
    gate = Job("verdict", "etrm", 0, ("gate.exact_accuracy 0.9 → 0.99",))
    found = states(study(tmp_path, gate={"exact_accuracy": 0.99}), gate)
    assert found["etrm", "gate"].why == gate.why
    assert found["etrm", "full"].why == ("exact match 95.0% < 99%",)


def test_a_stage_whose_input_is_rerun_says_which(made: Layout) -> None:
    jobs = [Job("train_pretrain", "strict", 0, ("forced",)), *of_etrm(*ALL)]
    (made.folder(STRICT) / "metrics.parquet").unlink()
    found = states(made, *jobs)
    assert found["strict", "pretrain"].why == (RESTORABLE,)
    for path in made.state.rglob("cached.json"):
        path.unlink()
    found = states(made, *jobs)
    assert found["strict", "pretrain"].why == ("metrics.parquet is missing",)
    assert found["etrm", "overfit"].why == ("its parent strict is rerun",)
    assert found["etrm", "gate"].why == ("its overfit run is rerun",)
    assert found["etrm", "evaluate"].why == ("its run is rerun",)
    found = states(made, *of_etrm(*ALL))
    assert found["etrm", "full"].why == ("its overfit run is rerun",)
    found = states(made, *of_etrm("full", why="newer input: x"))
    assert found["etrm", "full"].why == ("newer input: x",), "nothing else is known"


def test_tables_that_are_made_again_are_new_data(made: Layout) -> None:
    jobs = [Job("augment", why=("data.variants 2 → 3",)), *of_etrm("overfit", "gate")]
    found = states(made, *jobs)
    assert found["etrm", "overfit"].why == ("new data",)
    assert not found["etrm", "overfit"].cached, "the cache is of the old tables"


def test_stale_results_without_a_job_are_said_to_be(tmp_path: Path, made: Layout) -> None:
    found = states(study(tmp_path, train={"lr": 1.0e-3}))
    assert found["etrm", "overfit"].state == "stale"
    assert found["etrm", "overfit"].why == ("train.lr 0.0001 → 0.001",)
    made.verdict("etrm", 0).unlink()
    (made.folder(STRICT) / "run.json").write_text("{")
    found = states(made)
    assert found["etrm", "gate"].why == ("verdict.json is missing",)
    (why,) = found["strict", "pretrain"].why
    assert "run.json" in why
    assert "etrm doctor" in why


# --- the screen ---


def plan(count: int = 5, gpu: bool = True, **changes: Any) -> Plan:
    """`count` experiments of a group that are alike, and one by itself."""
    names, never = [f"etrm_{i}" for i in range(count)], ("never run",)
    groups = {**{name: {"group": "many"} for name in names}, "other": {"group": "one"}}
    stages = []
    for name in names:
        bench: dict[str, Any] = {"job": True, "gpus": 1, "measured": "bench"}
        stages += [
            Entry(name, "overfit", 0, "run", never, hours=2.0, hours_least=0.5, **bench),
            Entry(name, "gate", 0, "run", never, job=True),
            Entry(name, "full", 0, "waits", never, hours=8.0, hours_least=8.0, **bench),
            Entry(name, "evaluate", 0, "waits", never, job=True, hours=None, hours_least=None),
        ]
    changed = ("train.lr 0.0001 → 0.001",)
    hours: dict[str, Any] = {"hours": 1.5, "hours_least": 1.5, "measured": "own"}
    stages += [
        Entry("other", "overfit", 0, "run", changed, True, 2, **hours),
        Entry("other", "gate", 0, "run", ("its overfit run is rerun",), True),
        Entry("other", "full", 0, "stopped", ("exact match 0.0% < 90%",)),
    ]
    jobs = [Job(RULES[e.stage], e.experiment, e.seed) for e in stages if e.job]
    jobs += [Job("tasks"), Job("figures", why=("figures.dpi 200 → 100", AFTER_OTHERS)), Job("all")]
    values: dict[str, Any] = {
        "configfile": "c.yaml",
        "layout": layout_of(groups),
        "jobs": Jobs(tuple(jobs)),
        "stages": tuple(stages),
        "device": Device("NVIDIA L4" if gpu else "cpu-2-cores (x86_64)"),
        "disk": Disk(write=1_500_000_000, state=2_000_000, used=0, free=10**12),
        "notes": ("a note",),
    }
    return Plan(**(values | changes))


def layout_of(experiments: dict[str, Any]) -> Layout:
    defaults = {"context": {"source": "standard"}}
    return Layout(load_study({"study": "s", "defaults": defaults, "experiments": experiments}))


def test_experiments_that_have_work_keep_their_names_and_hours() -> None:
    text = render(plan(), 120)
    lines = text.splitlines()
    heading = "many: 5 experiments, 10 runs, 5 evaluations, 42.5-50 + ? GPU-hours"
    assert heading in lines
    cells = "etrm_0  1  run 1  run 1  waits 1  waits 1  1  8.5-10 + ?  never run"
    assert lines[lines.index(heading) + 1].split() == cells.split()
    alone = next(line for line in render(plan(), 160).splitlines() if "  other" in line)
    assert alone.endswith("train.lr 0.0001 → 0.001; exact match 0.0% < 90%")
    assert "its overfit" not in alone, "it follows from a reason that is shown"


def test_experiments_that_are_done_share_a_line() -> None:
    done = tuple(Entry(f"etrm_{i}", "full", 0, "done") for i in range(5))
    shown = plan(stages=done, jobs=Jobs(()))
    assert "5 experiments" in render(shown, 120)
    assert render(shown, 120, every=True).count("\netrm_") == 5


def test_wall_time_is_the_longest_chain_or_the_share_of_a_device_and_hours_have_a_price() -> None:
    shown = plan(gpus=2, price=3.0)
    assert shown.wall_hours == pytest.approx(51.5 / 2), "two devices share the work"
    assert plan(gpus=100).wall_hours == 10.0, "overfit, then full"
    assert shown.document()["totals"]["price"] == pytest.approx(3 * 51.5)
    text = render(shown, 120)
    assert "132-154, at 3 for an hour of one device" in text  # 44 to 51.5 hours
    assert "25.8 hours" in text
    assert "Wall" not in render(plan(), 120)


def test_a_chain_begins_with_the_parent_and_cut_evaluations_run_side_by_side(
    tmp_path: Path,
) -> None:
    layout = study(tmp_path, evaluation={"jobs": 4})
    names = (("strict", "pretrain"), ("etrm", "overfit"), ("etrm", "full"), ("etrm", "evaluate"))
    stages = [Entry(*name, 0, "run", job=True, gpus=1, hours=8.0) for name in names]
    assert longest_path(layout, stages, gpus=100) == 8 + 8 + 8 + 2
    assert longest_path(layout, stages, gpus=2) == 8 + 8 + 8 + 4


def test_many_changed_keys_are_folded() -> None:
    changes = [(f"figures.key{i}", 0, 1) for i in range(20)] + [("model.width", 256, 512)]
    (text,) = summary(changes, most=2)
    assert text.startswith("21 keys")
    assert "model.width 256 → 512" in text
    assert text.count("→") == 2
    assert summary(changes[-2:]) == ["figures.key19 0 → 1", "model.width 256 → 512"]


def test_filters_select_stages() -> None:
    text = render(plan().select(["etrm_[12]"]), 120)
    assert text.count("  etrm_") + text.count("\netrm_") == 2
    assert "17-20 + ? GPU-hours of the selected stages" in text
    assert {entry.stage for entry in plan().select(stages=["full"]).stages} == {"full"}
    assert [e.experiment for e in plan().select(states=["stopped"]).stages] == ["other"]
    assert len(plan().select(groups=["o*"]).stages) == 3
    assert "nothing is selected" in render(plan().select(["other"], states=["waits"]), 120)
    for globs, words in (
        ({"experiments": ["etrm_9"]}, "etrm_0"),
        ({"groups": ["few"]}, r"'few'.*many, one"),
    ):
        with pytest.raises(PlanError, match=words):
            plan().select(**globs)


def test_totals_have_jobs_hours_by_measurement_and_disk() -> None:
    text = " ".join(render(plan(), 200).split())
    for words in (
        "Jobs: 25, as `snakemake -n` counts them: 6 overfit, 6 gate, 5 full, 5 evaluate, 3 others",
        "Hours: 44-51.5 + ? GPU-hours, of them 40 behind gates; 50 by bench, 1.5 by own",
        "1.5 GB to write, states of a run up to 2 MB while it trains; 0 B used, 1 TB free",
        "Others: data run, figures run (figures.dpi 200 → 100), tables done",
        "Note: a note",
    ):
        assert words in text
    text = render(plan(gpu=False), 120)
    assert "GPU-hours" not in text
    assert "51.5 + ? hours on cpu-2-cores" in text


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = render(plan(notes=("a note " * 30,)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "train.lr" in text, "the reason is there, on a line of its own if need be"
    assert "never run" in text


def test_long_names_are_cut_in_the_middle_and_empty_columns_left_out() -> None:
    names = [f"etrm_standard_with_a_long_name_steps{i}" for i in range(3)]
    stages = tuple(Entry(n, "full", 0, "run", ("never run",), True, 1, hours=1.0) for n in names)
    layout = layout_of({name: {} for name in names})
    text = render(plan(layout=layout, stages=stages), 76, every=True)
    lines = [line for line in text.splitlines() if "steps" in line]
    assert len({line.split()[0] for line in lines}) == 3
    assert all(line.endswith("never run") for line in lines)
    assert "gate" not in text.splitlines()[2]
    assert "full" in text.splitlines()[2]


def test_a_candidate_costs_nothing_or_all_of_it() -> None:
    """Wherever the sums have it: among the dearest that may be chosen, the cheapest, or neither."""
    for ends in ((8.0, 0.0), (0.0, 6.0), (0.0, 0.0)):
        hours: dict[str, Any] = {"hours": ends[0], "hours_least": ends[1], "if_chosen": 8.0}
        stages = (Entry("etrm_0", "full", 0, "waits", pending=True, measured="bench", **hours),)
        assert " 0-8 " in render(plan(stages=stages, selected=True), 120)


def test_a_finished_study_has_nothing_to_do() -> None:
    done = tuple(Entry(f"etrm_{i}", "full", 0, "done") for i in range(5))
    text = render(plan(stages=done, jobs=Jobs(()), notes=()), 120)
    assert "Jobs:   0" in text
    assert "Hours" not in text
    others = ("figures", "tables", "page", "paper", "records", "report")
    assert ", ".join(f"{name} done" for name in others) in text


def test_the_document_has_every_stage_and_is_json() -> None:
    document = json.loads(json.dumps(plan().document()))
    assert len(document["stages"]) == 23
    assert document["stages"][0] == {
        **{"experiment": "etrm_0", "group": "many", "stage": "overfit", "seed": 0},
        **{"state": "run", "why": ["never run"], "job": True, "gpus": 1, "kept": False},
        **{"step": 0, "hours": 2.0, "hours_least": 0.5, "measured": "bench", "pending": False},
        "if_chosen": None,
    }
    job = {"rule": "train_overfit", "experiment": "etrm_0", "seed": 0, "why": []}
    assert document["jobs"][0] == job
    measured = {"bench": 50.0, "own": 1.5}
    totals = {"jobs": 22, "hours": 51.5, "hours_least": 44.0, "unmeasured": 5}
    totals |= {"by_measurement": measured, "wall_hours": None, "price": None}
    assert document["totals"] == totals
    assert document["counts"]["train_full"] == 5
    assert document["unit"] == "GPU-hours"
