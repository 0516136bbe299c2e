"""A study that trains in a moment, on tasks of its own, and the commands that compare its runs.

Everything is real but the HTML page of Snakemake, which takes longer than all the rest; that is
made where the small study is run as a whole.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import warm
import yaml
from projects import copy_project

CONFIG = "config/tiny.yaml"
ROOT = Path("results/tiny")
NO_PAGE = "from pathlib import Path\n\nPath(snakemake.output[0]).write_text('no page')\n"
Job = tuple[str, str | None, int | None]  # rule, experiment, seed

SMALL = {"width": 16, "heads": 2}
STUDY: dict[str, Any] = {
    "study": "tiny",
    "data": {
        "sources": {
            "ours": {"kind": "folder", "path": "tasks/training"},
            "theirs": {"kind": "folder", "path": "tasks/held_out"},
        },
        "training": ["ours"],
        "evaluation": ["theirs"],
        "variants": 2,
    },
    "defaults": {
        "episodes": {"canvas": [3], "translate": False},
        "model": {**SMALL, "context_tokens": 2, "H_cycles": 1, "L_cycles": 1, "layers": 1},
        "context": {"source": "standard", **SMALL, "layers": 1, "set_layers": 1},
        "decoder": {"init": "strict"},
        "halting": {"max_steps": 1},
        "train": {"batch_size": 4, "warmup_steps": 1, "log_every": 2, "probe_every": None},
        "stages": {
            "pretrain": {"steps": 2},
            "overfit": {"steps": 2, "tasks": 2},
            "full": {"steps": 2},
        },
        "health": {
            "rules": {
                name: {"warn": None, "fail": None, "stop": None}
                for name in ("divergence", "gradient_starvation", "gradient_coverage")
            }
            | {name: {"fail": None, "stop": None} for name in ("collapse",)}
        },
        "gate": {"exact_accuracy": 0.0},
        "evaluation": {"variants": 2, "pass_k": [1, 2], "bootstrap": 10},
    },
    "experiments": {
        "trm": {
            "split": "transductive",
            "context": {"source": "embedding"},
            "decoder": {"init": None},
        },
        "strict": {"context": {"source": "embedding"}, "decoder": {"init": None}},
        "one": {"group": "pair"},
        "two": {"halting": {"exploration_prob": 0.25}, "group": "pair"},
        "stopped": {"gate": {"exact_accuracy": 1.0}},
    },
    "figures": {"formats": ["png"], "dpi": 50, "qualitative_tasks": 1},
    "tracking": {"wandb": "disabled"},
}


def make(folder: Path) -> Path:
    """A copy of the project with the study in it, nothing run yet."""
    copy_project(folder)
    (folder / "workflow/scripts/report.py").write_text(NO_PAGE, encoding="utf-8")
    generator = np.random.default_rng(0)
    for split, count in (("training", 3), ("held_out", 2)):
        (folder / "tasks" / split).mkdir(parents=True)
        for number in range(count):
            write_task(folder / f"tasks/{split}/{split}{number}.json", generator)
    write(folder, STUDY)
    return folder


def write_task(path: Path, generator: np.random.Generator) -> None:
    """A task of three demos and a query: 3×3 grids in which a colour is replaced."""

    def pair() -> dict[str, Any]:
        grid = generator.integers(0, 9, (3, 3))
        return {"input": grid.tolist(), "output": (grid + 1).tolist()}

    task = {"train": [pair() for _ in range(3)], "test": [pair()]}
    path.write_text(json.dumps(task), encoding="utf-8")


def write(folder: Path, study: dict[str, Any]) -> None:
    """Write the configuration of the study."""
    (folder / CONFIG).write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake in a warm process, which forks its jobs."""
    return warm.run(folder, "snakemake", *arguments, "--configfile", CONFIG)


def jobs_of(run: subprocess.CompletedProcess[str]) -> list[Job]:
    """Rule, experiment and seed of every job that Snakemake has printed, but for `all`."""
    text = run.stdout + run.stderr
    assert run.returncode == 0, text[-6000:]
    found = []
    for block in re.split(r"^(?:local)?(?:rule|checkpoint) (?=\w+:$)", text, flags=re.M)[1:]:
        rule, wildcards = block.partition(":")[0], re.search(r"^ +wildcards: (.*)$", block, re.M)
        named = dict(re.findall(r"(\w+)=(\w+)", wildcards[1])) if wildcards else {}
        seed = named.get("seed")
        found.append((rule, named.get("experiment"), None if seed is None else int(seed)))
    return sorted((job for job in found if job[0] != "all"), key=str)


def planned_jobs(folder: Path) -> list[Job]:
    """The same by `etrm plan`."""
    run = warm.run(folder, "etrm", "plan", "--json", "--configfile", CONFIG)
    assert run.returncode == 0, run.stderr
    found = [(j["rule"], j["experiment"], j["seed"]) for j in json.loads(run.stdout)["jobs"]]
    return sorted((job for job in found if job[0] != "all"), key=str)
