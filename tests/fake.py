"""Synthetic runs, tasks and predictions for tests of the report: no training, no torch."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etrm.arc.task import Pair, Task
from etrm.evaluation.statistics import clopper_pearson
from etrm.report.run_view import RunView, load_run

GATE = 0.9
EVENT = {
    "finding": "gradient_starvation",
    "severity": "stop",
    "metric": "grad/encoder_coverage",
    "value": 0.15,
    "threshold": 0.5,
    "step": 110,
    "message": "the encoder gets too little gradient to learn",
}
PARENT = {"experiment": "trm_strict", "stage": "pretrain", "seed": 0, "split": "strict", "key": "k"}


def metrics(
    *, steps: int, reached: float, encoder: bool, starved: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Logged rows of a run whose train exact match climbs to `reached`."""
    rng = np.random.default_rng(seed)
    step = np.arange(10, steps + 1, 10)
    count = rng.integers(0, 9, len(step)).astype(float)
    rise = reached / (1 + np.exp(-10 * (step / steps - 0.45)))
    exact = rng.binomial(count.astype(int), rise) / np.maximum(count, 1)
    frame = pd.DataFrame({"step": step.astype(np.int64), "train/halted": count})
    frame["train/exact_accuracy"] = exact  # 0 where nothing halted, as a trainer may log it
    frame["train/accuracy"] = 0.5 + exact / 2
    frame["train/lm_loss"] = 2 * np.exp(-step / steps * 3)
    frame["train/steps"] = 6.0
    frame["train/q_halt_loss"] = 0.5 * np.exp(-step / steps * 2)
    frame["all.exact_accuracy"] = np.where(step % 100 == 0, rise, np.nan)
    frame["grad/total_norm"] = 1 + rng.random(len(step))
    frame["perf/examples_per_second"] = 100.0
    if encoder:
        norm = (
            np.where(rng.random(len(step)) < 0.03, 0.1, 0.0)
            if starved
            else 0.3 + 0.2 * rng.random(len(step))
        )
        frame["grad/encoder_norm"] = norm
        frame["grad/encoder_coverage"] = 0.15 if starved else 1.0
        frame["grad/encoder_share"] = norm / frame["grad/total_norm"]
        level = 0.06 if starved else 0.4
        frame["train/encoder_cross_sample_var"] = level * (1 + 0.3 * rng.random(len(step)))
        frame["train/encoder_output_mean"] = 0.0
        frame["train/encoder_output_norm"] = 20 + rng.random(len(step))
        frame["train/encoder_output_std"] = 0.95 + 0.1 * rng.random(len(step))
        frame["train/encoder_raw_std"] = 3 + rng.random(len(step))
        frame["train/encoder_raw_norm"] = 60 + rng.random(len(step))
        frame["train/encoder_token_std"] = 0.5 + 0.1 * rng.random(len(step))
    return frame


def score(
    *,
    solved: int,
    tasks: int,
    evaluated: int | None = None,
    variants: int = 8,
    seen: int = 0,
    answers: int = 0,
    of_split: int | None = None,
    exact: float | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """A score.json in which `solved` of `tasks` tasks are right at every k, from task `first` on.

    `seen` of the tasks touched a weight, of `answers` a test output did; `exact` is the share of
    right predictions, by default that of the solved tasks.
    """
    evaluated = tasks if evaluated is None else evaluated
    value = solved / tasks
    exact = value if exact is None else exact
    number = {
        "numerator": float(solved),
        "denominator": tasks,
        "value": value,
        "ci95": list(clopper_pearson(solved, tasks)),
        "ci95_method": "Clopper-Pearson",
    }
    rules = {"task_fraction": number, "all_tests": {**number, "numerator": float(solved)}}
    return {
        "pass": {str(k): rules for k in (1, 2, 5)},
        "tasks_asked": tasks,
        "tasks_of_split": of_split or tasks,
        "tasks_evaluated": evaluated,
        "partial": evaluated < tasks,
        "test_outputs": tasks,
        "test_outputs_predicted": evaluated,
        "outputs_not_fitting_canvas": 1,
        "held_out": {
            "status": "seen" if seen else "proven",
            "seen": seen,
            "answers": answers,
            "of": tasks,
            "unproven": [],
        },
        "variants": variants,
        "variants_used_mean": float(variants),
        "predictions": evaluated * variants,
        "single_variant_exact": {
            "numerator": round(exact * evaluated * variants),
            "denominator": evaluated * variants,
            "value": exact,
        },
        "voting_gain": {"difference": 0.01, "ratio": None},
        "metrics": {
            **{"ARC/pass@1": value, "all.exact_accuracy": exact, "all.accuracy": 0.75},
            "all.steps": 16.0,
        },
        "ranks": {f"t{i}": [1 if first <= i < first + solved else None] for i in range(tasks)},
    }


def run(
    folder: Path,
    *,
    experiment: str = "etrm_standard",
    stage: str = "overfit",
    seed: int = 0,
    kind: str = "etrm",
    split: str = "strict",
    steps: int = 2000,
    reached: float = 0.95,
    starved: bool = False,
    stopped_early: str | None = None,
    config: dict[str, Any] | None = None,
    scored: dict[str, Any] | None = None,
    unproven: list[str] | None = None,
    environment: dict[str, Any] | None = None,
) -> RunView:
    """Writes a run folder (with a verdict.json for an overfit run) and loads it back."""
    folder = folder / f"{experiment}-{stage}-{seed}"
    folder.mkdir(parents=True)
    source = "embedding" if kind == "trm" else "standard"
    record = {
        "experiment": experiment,
        "stage": stage,
        "seed": seed,
        "kind": kind,
        "split": split,
        "config": {
            "context": {"source": source},
            "decoder": {"init": None if kind == "trm" else "trm_strict"},
            "halting": {"max_steps": 16, "exploration_prob": 0.5},
            "train": {"steps": steps, "batch_size": 32},
            **(config or {}),
        },
        "unproven": unproven or [],
        "num_params": 412_345,
        "steps_done": steps,
        "stopped_early": stopped_early,
        "health": [EVENT] if stopped_early == EVENT["finding"] else [],
        "started": "2026-01-09T10:00:00+00:00",
        "finished": "2026-01-09T10:02:30+00:00",
        "seconds": 150.0,
        "device": "cpu",
        "versions": {"torch": "2.9.0", "python": "3.11.9"},
        "environment": environment or {"kind": "venv", "name": ".venv", "locked": True},
        "parents": [] if kind == "trm" else [PARENT],
        "peak_memory_bytes": 512 * 2**20,
        "commit": "0123456789abcdef",
        "code_digest": "fedcba",
    }
    noise = zlib.crc32(f"{experiment}{stage}{seed}".encode())
    rows = metrics(
        steps=steps, reached=reached, encoder=kind == "etrm", starved=starved, seed=noise
    )
    rows.to_parquet(folder / "metrics.parquet")
    (folder / "run.json").write_text(json.dumps(record))
    files = {}
    if stage == "overfit":
        files["verdict"] = folder / "verdict.json"
        files["verdict"].write_text(json.dumps(verdict(experiment, seed, reached, starved, steps)))
    if scored is not None:
        files["score"] = folder / "score.json"
        named = {"experiment": experiment, "stage": stage, "seed": seed}
        made_with = {"evaluation": {}, "run_key": "k", "device": "cpu"}
        files["score"].write_text(json.dumps(named | made_with | scored))
    return load_run(folder, **files)


def verdict(
    experiment: str, seed: int, reached: float, starved: bool, step: int = 2000
) -> dict[str, Any]:
    finding = {
        "finding": "gradient_starvation",
        "severity": "fail",
        "metric": "grad/encoder_norm",
        "value": 0.0,
        "threshold": 0.05,
        "step": step,
        "message": "The encoder gets next to no gradient.",
    }
    return {
        "experiment": experiment,
        "seed": seed,
        "passed": reached > GATE and not starved,
        "exact_accuracy": reached,
        "threshold": GATE,
        "diagnosis": [finding] if starved else [],
        "rests_on": {"metrics": "metrics.parquet"},
    }


def study(folder: Path, seeds: int = 1, steps: int = 2000) -> list[RunView]:
    """Runs of a study in the shape of the mini one: TRM twice, ETRM twice, the negative control."""
    views = []
    for seed in range(seeds):
        common: dict[str, Any] = {"folder": folder, "seed": seed, "steps": steps}
        trm = {**common, "kind": "trm", "stage": "pretrain"}
        views.append(
            run(
                experiment="trm",
                split="transductive",
                scored=score(solved=9, tasks=20, seen=20),
                **trm,
            )
        )
        views.append(run(experiment="trm_strict", **trm))
        for name, solved in (("etrm_standard_h16", 1), ("etrm_standard_h8", 0)):
            reached = 0.95 + 0.01 * seed
            views.append(run(experiment=name, reached=reached, **common))
            scored = score(solved=solved, tasks=20)
            views.append(run(experiment=name, stage="full", reached=0.6, scored=scored, **common))
        control = {**common, "steps": steps // 2}
        views.append(run(experiment="etrm_cached_control", reached=0.125, starved=True, **control))
    return views


def tasks(count: int, *, seed: int = 0, side: int = 6, tests: int = 1) -> list[Task]:
    """Random tasks whose grids have sides from 1 to `side`."""
    rng = np.random.default_rng(seed)

    def pair() -> Pair:
        shapes = rng.integers(1, side + 1, (2, 2))
        grids = [rng.integers(0, 10, shape).astype(np.uint8) for shape in shapes]
        return Pair(grids[0], grids[1])

    return [
        Task(
            id=f"{rng.integers(16**8):08x}",
            demos=tuple(pair() for _ in range(3)),
            queries=tuple(pair() for _ in range(tests)),
        )
        for _ in range(count)
    ]


def predictions(
    tasks: list[Task], *, right: float = 0.5, variants: int = 8, seed: int = 0
) -> pd.DataFrame:
    """A predictions table; each row is right with probability `right`, else one of three wrongs."""
    rng = np.random.default_rng(seed)
    rows = []
    for task in tasks:
        for query, pair in enumerate(task.queries):
            truth = np.asarray(pair.output if pair.output is not None else pair.input)
            wrongs = [(truth + 1) % 10, (truth + 2) % 10, np.zeros((0, 0), dtype=np.uint8)]
            for variant in range(variants):
                grid = truth if rng.random() < right else wrongs[rng.integers(len(wrongs))]
                same = np.array_equal(grid, truth)
                rows.append(
                    {
                        "task": task.id,
                        "query": query,
                        "variant": variant,
                        "height": grid.shape[0],
                        "width": grid.shape[1],
                        "grid": grid.astype(np.uint8).tobytes(),
                        "q_halt": rng.normal(),
                        "steps": 16,
                        "fits": True if pair.output is not None else None,
                        "correct": same if pair.output is not None else None,
                        "token_accuracy": 1.0 if same else 0.5,
                    }
                )
    types = {"query": "int32", "variant": "int32", "height": "uint8", "width": "uint8"}
    types |= {"q_halt": "float32", "steps": "int32", "fits": "boolean", "correct": "boolean"}
    return pd.DataFrame(rows).astype(types)
