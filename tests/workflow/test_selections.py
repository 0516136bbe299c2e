"""Tiers of a study by Snakemake: a screen, a selection, and what follows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from projects import copy_project, planned, snakemake

CONFIG = "config/tiers.yaml"
WORLD = {"kind": "world", "rules": ["recolour"], "size": [1, 4]}
TIERS: dict[str, Any] = {
    "study": "tiers",
    "data": {
        "sources": {
            "world": {**WORLD, "part": "training", "tasks": 30},
            "unseen": {**WORLD, "part": "held_out", "tasks": 3},
        },
        **{"training": ["world"], "evaluation": ["unseen"]},
        **{"validation_tasks": 4, "variants": 2},
    },
    "selections": {"half": {"of": ["screen"], "best": 1, "near": 0, "at_most": 1}},
    "defaults": {
        "episodes": {"canvas": [[1, 4]]},
        "model": {"width": 16, "heads": 2, "context_tokens": 2, "H_cycles": 1, "L_cycles": 1},
        "context": {"source": "standard", "width": 16, "heads": 2, "layers": 1},
        "halting": {"max_steps": 1},
        "train": {"batch_size": 8, "warmup_steps": 5, "log_every": 5, "probe_every": None},
        "stages": {"overfit": {"steps": 5, "tasks": 2}, "full": {"steps": 10}},
        "gate": {"exact_accuracy": 0.0},
        "health": {"rules": {"collapse": {"fail": None, "stop": None}}},
        "evaluation": {"variants": 2, "pass_k": [1, 2]},
    },
    "experiments": {
        "one": {"group": "screen"},
        "two": {"group": "screen", "context": {"pooling": "max"}},
        "final": {"after": "half", "continues": True, "stages": {"full": {"steps": 20}}},
    },
    "tracking": {"wandb": "disabled"},
    "figures": {"formats": ["png"], "dpi": 50},
}


def write(folder: Path, **rule: Any) -> None:
    half = {**TIERS["selections"]["half"], **rule}
    document = {**TIERS, "selections": {"half": half}}
    (folder / CONFIG).write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study after its first run."""
    folder = copy_project(tmp_path_factory.mktemp("tiers"))
    write(folder)
    first = snakemake(folder, "--cores", "1", "-n", config=CONFIG)
    assert planned(first)["train_full"] == 2, "what follows the selection is not known yet"
    assert "best 1 of 2" in first.stdout + first.stderr
    run = snakemake(folder, "--cores", "1", config=CONFIG)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_the_best_alone_are_continued_and_evaluated(done: Path) -> None:
    root = done / "results/tiers"
    record = json.loads((root / "selections/half.json").read_text())
    (chosen,) = record["chosen"]
    others = {"one", "two"} - {chosen}
    names = {path.name for path in (root / "runs").iterdir()}
    assert names == {"one", "two", f"final_{chosen}"}
    # No held-out task is asked before the choice.
    assert [path.name for path in (root / "evaluation").iterdir()] == [f"final_{chosen}"]
    assert {path.name for path in (root / "validation").iterdir()} == {"one", "two"}
    log = (root / f"logs/final_{chosen}/full_seed0.log").read_text()
    assert re.search(r"resuming from step 10 ", log)
    assert not list((root / "state").rglob(".parts")), "parts of finished results are removed"
    table = (root / "tables/selection.csv").read_text()
    assert "half: best (1 of 2)" in table
    assert (root / f"records/final_{chosen}.md").is_file()
    (other,) = others
    refused = snakemake(
        done,
        *("--cores", "1", f"results/tiers/runs/final_{other}/full/seed0/run.json"),
        config=CONFIG,
    )
    assert refused.returncode != 0
    assert f"has not chosen {other}, but {chosen}" in refused.stdout + refused.stderr


def test_one_more_place_trains_one_more_and_nothing_again(done: Path) -> None:
    again = planned(snakemake(done, "--cores", "1", "-n", config=CONFIG))
    assert not again
    write(done, best=2, at_most=2)
    wanted = planned(snakemake(done, "--cores", "1", "-n", config=CONFIG))
    write(done)
    training = {rule: count for rule, count in wanted.items() if rule.startswith("train")}
    assert (training, wanted["select"], wanted["evaluate_run"]) == ({"train_full": 1}, 1, 1)
    assert "validate_run" not in wanted


def test_the_doctor_finds_nothing_and_a_damaged_selection_is_named(done: Path) -> None:
    doctor = warm.run(done, "etrm", "doctor", "--configfile", CONFIG)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    path = done / "results/tiers/selections/half.json"
    content = path.read_text()
    path.write_text("{}")
    doctor = warm.run(done, "etrm", "doctor", "--configfile", CONFIG)
    plan = snakemake(done, "--cores", "1", "-n", config=CONFIG)
    path.write_text(content)
    assert doctor.returncode == 1
    assert "selections/half.json: found no selection" in doctor.stdout
    assert plan.returncode != 0
    assert "selections/half.json: found no selection" in plan.stdout + plan.stderr
