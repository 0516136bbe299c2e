"""A study that trains in a moment: its configuration, and tasks of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SMALL = {"width": 16, "heads": 2}
STUDY: dict[str, Any] = {
    "study": "tiny",
    "baseline": "one",
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
        "evaluation": {"variants": 2, "pass_k": [1, 2]},
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


def write_sources(folder: Path) -> None:
    """Write three training and two held-out tasks."""
    generator = np.random.default_rng(0)
    for split, count in (("training", 3), ("held_out", 2)):
        (folder / "tasks" / split).mkdir(parents=True)
        for number in range(count):
            write_task(folder / f"tasks/{split}/{split}{number}.json", generator)


def write_task(path: Path, generator: np.random.Generator) -> None:
    """A task of three demos and a query: 3×3 grids in which a colour is replaced."""

    def pair() -> dict[str, Any]:
        grid = generator.integers(0, 9, (3, 3))
        return {"input": grid.tolist(), "output": (grid + 1).tolist()}

    task = {"train": [pair() for _ in range(3)], "test": [pair()]}
    path.write_text(json.dumps(task), encoding="utf-8")
