"""What runs again: a study is changed step by step, planned, run for real, and looked at.

Each step begins where the one before it has ended. The jobs of `snakemake -n`, of `etrm plan` and
of the run itself are the same, and exactly those that are expected: so nothing is left over for the
next step, either.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from small_study import write_task
from tiny_study import NO_PICTURES, ROOT, STUDY, Job, jobs_of, make, planned_jobs, snakemake, write

Config = dict[str, Any]
Change = Callable[[Config, Path], object]
SHOWN = {"figures", "tables", "page", "paper", "report"}
CONFIG = {"resolved_config", "page", "report"}  # any change of the configuration


def change(path: str, value: Any) -> Change:
    """Set a key of the configuration, at a dotted path."""
    *blocks, last = path.split(".")

    def apply(config: Config, folder: Path) -> None:
        for block in blocks:
            config = config.setdefault(block, {})
        config[last] = value

    return apply


def remove(*names: str) -> Change:
    """Remove files or folders of the results."""

    def apply(config: Config, folder: Path) -> None:
        for name in names:
            path = folder / ROOT / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def append(text: str, *names: str) -> Change:
    """Append a text to files of the project, which are newer than all results then."""

    def apply(config: Config, folder: Path) -> None:
        for name in names:
            path = folder / name
            path.write_text(path.read_text() + text, encoding="utf-8")

    return apply


def votes_backwards(config: Config, folder: Path) -> None:
    """Order candidates by their confidence, the least first."""
    path = folder / "etrm/evaluation/voting.py"
    text = path.read_text(encoding="utf-8")
    assert "(-q_mean, -count," in text
    path.write_text(text.replace("(-q_mean, -count,", "(q_mean, -count,"), encoding="utf-8")


def touch(pattern: str) -> Change:
    """Make files newer than all results."""
    return lambda config, folder: [path.touch() for path in folder.glob(pattern)]


def another_task(config: Config, folder: Path) -> None:
    """Replace a task of a source by another in a file of the same size and time."""
    path = folder / "tasks/training/training1.json"
    before, size = path.stat(), path.stat().st_size
    write_task(path, np.random.default_rng(5))
    assert path.stat().st_size == size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def drop(name: str) -> Change:
    """Take an experiment out of the study."""
    return lambda config, folder: config["experiments"].pop(name)


def record(*names: str) -> set[str]:
    return {f"record {name}" for name in names}


def runs(*names: str, evaluated: bool = True) -> set[str]:
    """The jobs of whole ETRM runs, each `experiment seed`."""
    rules = ["train_overfit", "verdict", "train_full", *["evaluate_run"] * evaluated]
    return {f"{rule} {name}" for rule in rules for name in names}


def shown(*names: str) -> set[str]:
    """What shows runs of these experiments: the baseline of all records is `one`."""
    return {*SHOWN, *record(*names)}


# By a gate of 100 %.
STOPPED = {"train_full stopped 0", "evaluate_run stopped 0"}
# Description, changes, and the jobs that they cause. The table of config/README.md, row by row,
# what is removed, and pairs of changes.
Step = tuple[str, list[Change], set[str]]
SCRATCH: Config = {"decoder": {"init": None}}
EXP, ACT = "experiments", "halting.max_steps"
STEPS: list[Step] = [
    (
        "what changes no result: comments, scripts and sources of another age, prose, places",
        [
            append("\n# a remark\n", "etrm/models/losses.py", "etrm/evaluation/voting.py"),
            append("\n# a remark\n", "workflow/scripts/train.py"),
            touch("workflow/scripts/*.py"),
            touch("tasks/*/*.json"),
            change("figures.dpi", 60),
            change(f"{EXP}.one.description", "Does it?"),
            change("tracking.project", "other"),
            change("execution", {"compile": "off"}),
            change("threads", 2),
        ],
        {"figures", "paper", *record("one"), *CONFIG},
    ),
    (
        "a new seed, the code of a script, and of voting",
        [
            change(f"{EXP}.two.seeds", [0, 1]),
            append("\nUNUSED = 1\n", "workflow/scripts/tables.py"),
            votes_backwards,
        ],
        {*(f"evaluate_run {n}" for n in ("trm 0", "one 0", "two 0")), *runs("two 1")}
        | {*shown("trm", "one", "two"), *CONFIG},
    ),
    (
        "a seed replaced, the look of a figure, another evaluation, an experiment and a sweep",
        [
            change(f"{EXP}.two.seeds", [0, 5]),
            change("figures.dpi", 55),
            change(f"{EXP}.one.evaluation", {"variants": 1}),
            change(f"{EXP}.three", {"context": {"layers": 2}, **SCRATCH}),
            change(f"{EXP}.grid", {"sweep": {"act": {"key": ACT, "values": [1]}}, **SCRATCH}),
        ],
        {*runs("two 5", "three 0", "grid_act1 0"), "evaluate_run one 0"}
        | {*shown("one", "two", "three", "grid_act1"), *CONFIG},
    ),
    (
        "an overfit run removed, a verdict, weights, an evaluation, and what shows them",
        [
            remove("runs/two/overfit/seed0", "runs/one/overfit/seed0/verdict.json"),
            remove("runs/two/full/seed5/model.safetensors", "evaluation/trm/seed0"),
            remove("tables/results.md", "figures/training_curves.png"),
            remove("records/stopped.md", "config.yaml"),
        ],
        # The runs are restored, for they are what they were.
        {*runs("two 0"), "verdict one 0", "train_full one 0", "evaluate_run one 0"}
        | {"train_full two 5", "evaluate_run two 5", "evaluate_run trm 0"}
        | {*shown("one", "two", "trm", "stopped"), *CONFIG},
    ),
    (
        "halting, the length of a stage, a sweep that grows, the rest of an experiment's keys",
        [
            change(f"{EXP}.two.halting.exploration_prob", 0.5),
            change(f"{EXP}.one.stages", {"full": {"steps": 3}}),
            change(f"{EXP}.grid.sweep.act.values", [1, 2]),
            change(f"{EXP}.grid.model", {"layers": 2}),
            change(f"{EXP}.grid.health", {"stop_until": 400}),
            change(f"{EXP}.three.context", {"layers": 1, "pooling": "max"}),
            change(f"{EXP}.three.episodes", {"max_demos": 2}),
        ],
        {*runs("two 0", "two 5", "three 0", "grid_act1 0", "grid_act2 0")}
        | {"train_full one 0", "evaluate_run one 0"}
        | {*shown("one", "two", "three", "grid_act1", "grid_act2"), *CONFIG},
    ),
    (
        "a gate that stops, and what is evaluated and refined elsewhere",
        [
            change(f"{EXP}.two.gate", {"exact_accuracy": 1.0}),
            change(f"{EXP}.one.evaluation", {"variants": 2}),
            change(f"{EXP}.one.refinement", {"steps": [0, 1]}),
            change(f"{EXP}.two.refinement", {"steps": [0, 1]}),
        ],
        {"verdict two 0", "verdict two 5", "evaluate_run one 0", "refine_run one 0"}
        | {*shown("one", "two"), *CONFIG},
    ),
    (
        "a gate that lets through again, one that does for the first time, no refinement",
        [
            change(f"{EXP}.one.refinement", {"steps": []}),
            change(f"{EXP}.two.refinement", {"steps": []}),
            change(f"{EXP}.two.gate", {"exact_accuracy": 0.0}),
            change(f"{EXP}.stopped.gate", {"exact_accuracy": 0.0}),
        ],
        {
            "verdict two 0",
            "verdict two 5",
            *runs("stopped 0"),
            *shown("one", "two", "stopped"),
            *CONFIG,
        }
        - {"train_overfit stopped 0"},
    ),
    (
        "a gate and what is evaluated behind it, a parent's new seed",
        [
            change(f"{EXP}.stopped.gate", {"exact_accuracy": 1.0}),
            change(f"{EXP}.two.evaluation", {"variants": 1, "jobs": 2}),
            change(f"{EXP}.strict.seeds", [0, 1]),
        ],
        {"verdict stopped 0", "train_pretrain strict 1"}
        | {f"{r} two {s}" for r in ("evaluate_shard", "merge_shards") for s in (0, 5)}
        | {*shown("strict", "stopped", "two"), *CONFIG},
    ),
    (
        "an evaluation by one job again, a parent's new seed and a child's",
        [
            change(f"{EXP}.two.evaluation", {"variants": 1}),
            change(f"{EXP}.strict.seeds", [0, 2]),
            change(f"{EXP}.two.seeds", [0, 2]),
        ],
        {"train_pretrain strict 2", "evaluate_run two 0", *runs("two 2")}
        | {*shown("strict", "two"), *CONFIG},
    ),
    (
        "an experiment that is gone, the training of a parent",
        [drop("stopped"), change(f"{EXP}.strict.train", {"lr": 0.01})],
        {f"train_pretrain strict {seed}" for seed in (0, 2)}
        | {*runs("one 0", "two 0", "two 2"), *shown("strict", "one", "two"), *CONFIG}
        | record("three", "grid_act1", "grid_act2"),  # their baseline's overfit run is another
    ),
    (
        "another baseline",
        [change("baseline", "two")],
        record("trm", "strict", "one", "two", "three", "grid_act1", "grid_act2")
        | {"tables", "paper", *CONFIG},
    ),
    (
        "a source of the same time, variants and seed of the data",
        [
            another_task,
            change("data.variants", 3),
            change("data.seed", 1),
            drop("grid"),
            drop("three"),
        ],
        {"tasks", "augment", *CONFIG},
    ),
]


def of(config: Config) -> Iterator[str]:
    """The names of the ETRM runs of a configuration."""
    for name, entry in config["experiments"].items():
        points = [name]
        if "sweep" in entry:
            points = [f"{name}_act{v}" for v in entry["sweep"]["act"]["values"]]
        if entry.get("context", {}).get("source") != "embedding":
            yield from (f"{p} {s}" for p in points for s in entry.get("seeds", [0]))


def complete(config: Config, expected: set[str]) -> set[str]:
    """With the data everything is made again but what a gate has stopped."""
    if "augment" not in expected:
        return expected
    names = [name.split()[0] for name in of(config)]
    found = {*runs(*of(config)), *shown(*names, "trm", "strict"), *expected}
    seeds = config[EXP]["strict"].get("seeds", [0])
    found |= {"train_pretrain trm 0", *(f"train_pretrain strict {seed}" for seed in seeds)}
    return (found | {"evaluate_run trm 0"}) - STOPPED


def named(jobs: list[Job]) -> list[str]:
    return sorted(" ".join(str(part) for part in job if part is not None) for job in jobs)


def agreed(folder: Path) -> list[str]:
    """Run the study for real; its jobs are those that both plans had told."""
    with ThreadPoolExecutor() as pool:
        planned, run = pool.submit(planned_jobs, folder), snakemake(folder, "-n")
        told = jobs_of(run)
    assert named(planned.result()) == named(told)
    done = jobs_of(snakemake(folder, "--cores", "2"))
    assert named(done) == named(told)
    return named(done)


def consistent(folder: Path, config: Config) -> None:
    """Compare tables, records and the resolved configuration with the runs."""
    root = folder / ROOT
    table = pd.read_csv(root / "tables/results.csv").set_index("experiment")
    resolved = yaml.safe_load((root / "config.yaml").read_text())
    assert set(table.index) == set(resolved["experiments"])
    for name, entry in resolved["experiments"].items():
        scores = [root / f"evaluation/{name}/seed{seed}/score.json" for seed in entry["seeds"]]
        row = table.loc[name]
        if row["stage"] == "overfit" or name == "strict":
            assert pd.isna(row["variants"])
            continue
        found = [json.loads(path.read_text()) for path in scores]
        assert row["seeds"] == len(entry["seeds"])
        assert {row["variants"]} == {score["variants"] for score in found}
        assert {score["variants"] for score in found} == {entry["evaluation"]["variants"]}
        text = (root / f"records/{name}.md").read_text()
        assert all(f"seed {seed}" in text for seed in entry["seeds"])
        assert entry["description"] in text


def test_jobs_of_plans_and_of_real_runs_are_the_same(tmp_path: Path) -> None:
    folder, config = make(tmp_path), copy.deepcopy(STUDY)
    for name in ("page", "paper"):
        (folder / f"workflow/scripts/{name}.py").write_text(NO_PICTURES, encoding="utf-8")
    told = named(jobs_of(snakemake(folder, "-n")))
    done = named(jobs_of(snakemake(folder, "--cores", "2")))
    assert set(done) == complete(config, {"tasks", "augment", *CONFIG})
    assert set(told) - set(done) == STOPPED, "a plan counts on gates, of which one has stopped"
    for name, changes, expected in STEPS:
        for apply in changes:
            apply(config, folder)
        write(folder, config)
        assert set(agreed(folder)) == complete(config, expected), name
        consistent(folder, config)
