"""A large study that no one trained: 20 experiments × 3 seeds, among them runs that went wrong.

`write(folder)` lays out run folders as Snakemake does, in seconds; `views(files)` reads them as the
report does. Missing: `etrm_perceiver` has no run, `etrm_set_transformer` no seed 2, and
`etrm_recurrent` no full run. Stopped: the cached control, and two seeds of `etrm_lpn`. Failed:
`etrm_variational` seed 1 diverged. `LONG` logged a single row, `etrm_hybrid` seed 2 none, and the
evaluation of `etrm_lpn_deep` is partial.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from etrm.arc.task import Rule, Task
from etrm.config.execution import FigureStyle
from etrm.config.health import HealthConfig
from etrm.data.tables import TaskRecord, read_tasks, write_tasks
from etrm.evaluation.pass_at_k import pass_rates
from etrm.evaluation.pass_at_k import score as score_of
from etrm.report.collect import collect
from etrm.report.run_view import RunView, StudyView

LONG = "etrm_hierarchical_with_contrastive_loss_and_frozen_decoder"
SEEDS, STEPS, TASKS, VARIANTS, KS = (0, 1, 2), 800, 20, 6, (1, 2, 5, 10)
RULES = ("fill", "mirror", "sort")
PROBES = {  # untrained, trained
    "encoder/puzzle_knn_accuracy": (0.3, 0.9),
    "encoder/task_knn_accuracy": (0.2, 0.7),
    "encoder/between_puzzle_ratio": (0.4, 0.95),
    "encoder/between_task_ratio": (0.3, 0.8),
    "encoder/context_swap_drop": (0.0, 0.4),
    "encoder/effective_rank": (4.0, 12.0),
}


@dataclass(frozen=True)
class Plan:
    """An experiment: what it varies, how well it learns, and what goes wrong."""

    name: str
    source: str = "standard"
    max_steps: int = 16
    exploration: float = 0.5
    kind: str = "etrm"
    split: str = "strict"
    reached: float = 0.95  # exact match of the overfit run
    solves: float = 0.1  # share of held-out answers
    params: int = 7_000_000
    missing: tuple[tuple[str, int], ...] = ()  # (stage, seed)
    scored: bool = True
    config: dict[str, Any] = field(default_factory=dict)


def _halting() -> Iterator[Plan]:
    grid = {(8, 0.5): 0.97, (8, 0.7): 0.94, (16, 0.0): 0.93, (16, 0.7): 0.96}
    grid |= {(32, 0.0): 0.91, (32, 0.5): 0.92}  # (8, 0.0) and (32, 0.7) are not in the study
    for (steps, exploration), reached in grid.items():
        name = f"etrm_standard_steps{steps}_explore{round(100 * exploration)}"
        yield Plan(name, "standard", steps, exploration, reached=reached, solves=reached - 0.85)


ALL_FULL = tuple(("full", seed) for seed in SEEDS)
EVERYTHING = (*ALL_FULL, *(("overfit", seed) for seed in SEEDS))
PLANS = (
    Plan("trm", "embedding", kind="trm", split="transductive", solves=0.45),
    Plan("trm_strict", "embedding", kind="trm", scored=False),
    Plan("etrm_standard", solves=0.12),
    *_halting(),
    Plan("etrm_variational", "variational", solves=0.02, params=7_500_000),
    Plan("etrm_lpn", "lpn", reached=0.91, solves=0.05, missing=ALL_FULL[1:]),
    Plan("etrm_lpn_deep", "lpn_deep", solves=0.08, params=12_000_000),
    Plan("etrm_hybrid", "hybrid", solves=0.0, params=14_000_000),
    Plan("etrm_cross_attention", "cross_attention", solves=0.2, params=8_000_000),
    Plan("etrm_set_transformer", "set_transformer", missing=(("overfit", 2), ("full", 2))),
    Plan("etrm_perceiver", "perceiver", missing=EVERYTHING),
    Plan("etrm_recurrent", "recurrent", missing=ALL_FULL, params=9_000_000),
    Plan("etrm_in_context", "in_context", solves=0.25, params=6_000_000),
    Plan(LONG, "hierarchical", reached=0.92, solves=0.03),
    Plan(
        "etrm_cached_control",
        reached=0.12,
        missing=ALL_FULL,
        config={"train": {"steps": STEPS, "batch_size": 32, "cache_context": True}},
    ),
)


def write(folder: Path, plans: Sequence[Plan] = PLANS) -> list[Path]:
    """Write the study's tasks, runs, verdicts and evaluations; return all files."""
    tasks = fake.tasks(TASKS, side=8)
    tasks = [Task(t.id, t.demos, t.queries, Rule(RULES[i % 3], "{}")) for i, t in enumerate(tasks)]
    records = [TaskRecord(task, "made", "evaluation") for task in tasks]
    (folder / "data").mkdir(parents=True)
    files = [folder / "data" / "tasks.parquet"]
    write_tasks(files[0], records)
    for plan in plans:
        for stage in ("pretrain",) if plan.kind == "trm" else ("overfit", "full"):
            for seed in SEEDS:
                if (stage, seed) not in plan.missing:
                    files += _run(folder, plan, stage, seed)
                    if plan.scored and stage != "overfit":
                        files += _evaluation(folder, plan, stage, seed, records)
    return files


def views(files: list[Path]) -> list[RunView]:
    """Read the files that `write` has written."""
    return collect(files)


def study(folder: Path, style: FigureStyle | None = None) -> StudyView:
    """Write the study to a folder, and return all that its figures show."""
    found = views(write(folder))
    tasks = [record.task for record in read_tasks(folder / "data" / "tasks.parquet")]
    return StudyView(found, style or FigureStyle(), HealthConfig(), tasks)


def _rules(records: list[TaskRecord]) -> Iterator[str]:
    return (record.task.rule.name for record in records if record.task.rule)


def _by_step(rows: pd.DataFrame) -> dict[str, list[float]]:
    curves = np.stack(rows["accuracy_by_step"].tolist())
    return {
        "accuracy": curves.mean(axis=0).tolist(),
        "exact_accuracy": (curves == 1.0).mean(axis=0).tolist(),
    }


def _random(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


def _run(folder: Path, plan: Plan, stage: str, seed: int) -> list[Path]:
    place = folder / "runs" / plan.name / stage / f"seed{seed}"
    place.mkdir(parents=True)
    lpn_stopped = plan.name == "etrm_lpn" and seed > 0
    starved = plan.name == "etrm_cached_control"
    diverged = (plan.name, stage, seed) == ("etrm_variational", "full", 1)
    reached = 0.4 if lpn_stopped else plan.reached if stage == "overfit" else 0.6
    reason = fake.EVENT["finding"] if starved else "divergence" if diverged else None
    steps = STEPS // 2 if reason else STEPS
    record = {
        **{"experiment": plan.name, "stage": stage, "seed": seed, "kind": plan.kind},
        "split": plan.split,
        "config": {
            "context": {"source": plan.source, "width": 512, "layers": 2},
            "decoder": {"init": None if plan.kind == "trm" else "trm_strict"},
            "halting": {"max_steps": plan.max_steps, "exploration_prob": plan.exploration},
            "model": {"width": 512, "heads": 8, "layers": 2, "expansion": 4.0}
            | {"context_tokens": 16, "H_cycles": 3, "L_cycles": 6},
            "train": {"steps": STEPS, "batch_size": 32, "cache_context": False},
            **plan.config,
        },
        **{"unproven": [], "num_params": plan.params, "steps_done": steps, "key": "k"},
        **{"stopped_early": reason, "health": [fake.EVENT] if starved else []},
        **{"started": "2026-01-09T10:00:00+00:00", "finished": "2026-01-09T10:02:30+00:00"},
        **{"seconds": 150.0, "device": "cpu", "peak_memory_bytes": 512 * 2**20},
        **{"versions": {"torch": "2.9.0"}, "commit": "0123456789abcdef", "code_digest": "fedcba"},
        "environment": {"kind": "venv", "name": ".venv", "locked": True},
        "parents": [] if plan.kind == "trm" else [fake.PARENT],
        "weights_sha256": "0" * 64,
    }
    rows = _metrics(plan, stage, seed, steps, reached, starved)
    if plan.name == LONG:
        rows = rows.iloc[1:2]  # beside the untrained values: a single row
    elif (plan.name, seed) == ("etrm_hybrid", 2):
        rows = rows.iloc[:0]
    elif diverged:
        rows.loc[rows.index[-20:], rows.columns[1:]] = np.nan
    files = [place / "run.json", place / "metrics.parquet"]
    files[0].write_text(json.dumps(record))
    rows.to_parquet(files[1])
    if stage == "overfit":
        files.append(place / "verdict.json")
        verdict = fake.verdict(plan.name, seed, reached, starved, steps)
        files[-1].write_text(json.dumps(verdict))
    return files


def _metrics(
    plan: Plan, stage: str, seed: int, steps: int, reached: float, starved: bool
) -> pd.DataFrame:
    rng, encoder = _random(plan.name, stage, seed), plan.kind == "etrm"
    noise = int(rng.integers(2**31))
    frame = fake.metrics(steps=steps, reached=reached, encoder=encoder, starved=starved, seed=noise)
    done = frame["step"].to_numpy() / STEPS
    share = 1 - 0.6 * done
    each = {
        "train/steps": plan.max_steps * share,
        "train/steps_share": share,
        "train/q_halt_accuracy": 0.6 + 0.35 * done,
        "grad/inner_norm": frame["grad/total_norm"],
    }
    at_evaluations = {"all.q_halt_accuracy": 0.7 + 0.25 * done, "all.steps": plan.max_steps}
    if stage == "full":
        at_evaluations |= {
            "validation.exact_accuracy": plan.solves * done,
            "validation.accuracy": 0.5 + 0.3 * done,
            "validation.lm_loss": 2 - done,
            "validation.tasks": 100.0,
            "validation.count": 100.0 * VARIANTS,
        }
    first = []
    if encoder:
        for name, (low, high) in PROBES.items():
            rise = (high - low) * (0.1 if starved else 1) * done
            at_evaluations[name] = low + rise + 0.02 * rng.random()
        first = [pd.DataFrame([{"step": 0, **{name: low for name, (low, _) in PROBES.items()}}])]
    evaluated = frame["step"].to_numpy() % 100 == 0
    rare = {name: np.where(evaluated, value, np.nan) for name, value in at_evaluations.items()}
    frame = pd.concat([frame.drop(columns="train/steps"), pd.DataFrame(each | rare)], axis=1)
    return pd.concat([*first, frame], ignore_index=True)


def _evaluation(
    folder: Path, plan: Plan, stage: str, seed: int, records: list[TaskRecord]
) -> list[Path]:
    place = folder / "evaluation" / plan.name / f"seed{seed}"
    place.mkdir(parents=True)
    tasks = [record.task for record in records]
    answered = tasks[:12] if (plan.name, seed) == ("etrm_lpn_deep", 0) else tasks
    rows = predictions(answered, plan.solves, plan.max_steps, _random(plan.name, seed))
    table = pa.Table.from_pandas(rows, preserve_index=False)
    seen = TASKS if plan.kind == "trm" else 0
    content = {
        **{"experiment": plan.name, "stage": stage, "seed": seed, "kind": plan.kind},
        **{"split": plan.split, "run_key": "k", "evaluation": {}, "device": "cpu"},
        "held_out": {
            **{"status": "seen" if seen else "proven", "seen": seen, "answers": 0, "of": TASKS},
            "unproven": [],
        },
        "tasks_of_split": TASKS,
        **score_of(rows, tasks, ks=KS, variants=VARIANTS),
        "by_step": _by_step(rows),
    }
    if plan.kind == "etrm":
        content["shuffled"] = {"pass": pass_rates({t.id: [None] for t in tasks}, KS)}
    files = [place / name for name in ("score.json", "predictions.parquet", "contexts.parquet")]
    files[0].write_text(json.dumps(content))
    pq.write_table(table, files[1])
    middle = _random("rules").normal(size=(3, 24))
    means = middle[[RULES.index(rule) for rule in _rules(records)]]
    noise = _random(plan.name, seed, "contexts").normal(size=means.shape)
    seen_as = (means + noise * (1 - plan.solves)).astype(np.float32)
    named = {"task": [t.id for t in tasks], "split": "evaluation", "rule": [*_rules(records)]}
    pd.DataFrame(named | {"context": list(seen_as)}).to_parquet(files[2])
    if plan.name in ("etrm_cross_attention", "etrm_standard"):
        files.append(folder / "refinement" / plan.name / f"seed{seed}" / "refinement.json")
        files[-1].parent.mkdir(parents=True)
        named = {"experiment": plan.name, "stage": stage, "seed": seed, "run_key": "k"}
        more = {"held_out": content["held_out"], "refinement": {}, "device": "cpu"}
        files[-1].write_text(json.dumps({**named, **more, "methods": _refined(plan.solves)}))
    return files


def predictions(
    tasks: list[Task], solves: float, max_steps: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Answers of all kinds: right, nearly right, rearranged, of one colour, too small, empty.

    A task has a way of being answered, from which one variant in five departs.
    """
    rows = []
    for task in tasks:
        usual = _way(rng, solves)
        for query, pair in enumerate(task.queries):
            truth = np.asarray(pair.output)
            for variant in range(VARIANTS):
                way = usual if rng.random() < 0.8 else _way(rng, solves)
                grid = _answer(truth, way, rng)
                right = np.array_equal(grid, truth)
                steps = int(rng.integers(1, max_steps + 1))
                last = 1.0 if right else rng.uniform(0.1, 0.9)
                curve = np.linspace(0.1, last, max_steps).tolist()
                rows.append(
                    {
                        **{"task": task.id, "query": query, "variant": variant},
                        **{"height": grid.shape[0], "width": grid.shape[1]},
                        "grid": np.ascontiguousarray(grid, dtype=np.uint8).tobytes(),
                        **{"q_halt": rng.normal() + 2 * right, "steps": steps, "fits": True},
                        **{"correct": right, "token_accuracy": last, "lm_loss": 1 - last},
                        **{"q_halt_loss": 0.4, "q_halt_right": bool(rng.random() < 0.8)},
                        "accuracy_by_step": curve,
                    }
                )
    types = {"query": "int32", "variant": "int32", "height": "uint8", "width": "uint8"}
    return pd.DataFrame(rows).astype({**types, "q_halt": "float32", "steps": "int32"})


WAYS = ("nearly", "rearranged", "collapsed", "size", "structured", "empty")


def _way(rng: np.random.Generator, solves: float) -> str:
    return "right" if rng.random() < solves else str(rng.choice(WAYS))


def _answer(truth: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    grid = truth.copy()
    if way == "nearly":
        grid[-1, -1] = (grid[-1, -1] + 1) % 10
    elif way == "rearranged":
        grid = rng.permutation(grid.ravel()).reshape(grid.shape)
    elif way == "collapsed":
        grid[:] = 3
    elif way == "size":
        grid = np.pad(grid, ((0, 1), (0, 0)))
    elif way == "structured":
        grid = (grid + 1) % 10
    elif way == "empty":
        grid = np.zeros((0, 0), dtype=np.uint8)
    return grid


def _refined(solves: float) -> dict[str, Any]:
    def after(share: float, steps: int) -> dict[str, Any]:
        right = round(share * TASKS)
        shares = {"denominator": 10, "numerator": min(right, 10), "value": min(right, 10) / 10}
        return {
            "ranks": {f"t{i}": [1 if i < right else None] for i in range(TASKS)},
            **{"likelihood": -0.5 + share / 2, "likelihood_start": -0.5},
            **{"right_where_demos_solved": shares, "right_elsewhere": shares},
            **{"answers": TASKS, "seconds": 1.0 + steps / 10, "gflop": 2.0 * (1 + steps)},
        }

    gains = {"search": 0.1, "random": 0.0, "act_steps": 0.05, "fine_tuning": 0.15}
    return {
        method: {str(k): after(solves + gain * k / 100, k) for k in (0, 10, 100)}
        for method, gain in gains.items()
    }
