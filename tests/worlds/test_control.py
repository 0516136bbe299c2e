"""The positive control, and its negative ones: who reads demos answers rules it never saw."""

from __future__ import annotations

from typing import Any

import pytest

from etrm.config.execution import TrackingConfig
from etrm.config.load import load_study, run_config
from etrm.data.prepare import prepare_augmentations, prepare_tasks
from etrm.evaluation.run import evaluate_run
from etrm.training.run import RunPaths, train_run

# Every colour becomes another one: maps of four colours, of which a task shows each.
WORLD = {"kind": "world", "rules": ["recolour"], "size": [1, 5], "split_from": 20}
SMALL = {"width": 32, "heads": 2}
STUDY: dict[str, Any] = {
    "study": "control",
    "data": {
        "sources": {
            "world": {**WORLD, "part": "training", "tasks": 1000},
            "unseen": {**WORLD, "part": "held_out", "tasks": 100},
        },
        "training": ["world"],
        "evaluation": ["unseen"],
        "validation_tasks": 0,
        "variants": 1,
    },
    "defaults": {
        "episodes": {"canvas": [[1, 5]], "queries": "test_pairs", "translate": False},
        "model": {
            **{**SMALL, "layers": 1, "context_tokens": 4, "H_cycles": 1, "L_cycles": 2},
            **{"rope_theta": 100.0, "loss_type": "softmax_cross_entropy"},
        },
        "halting": {"max_steps": 1},
        "train": {
            **{"batch_size": 32, "lr": 5e-3, "warmup_steps": 20, "ema_decay": 0.98},
            **{"log_every": 100, "probe_every": None},
        },
        "stages": {"pretrain": {"steps": 80}, "full": {"steps": 220}},
        "evaluation": {"variants": 1, "pass_k": [1], "shuffled": True},
    },
    "experiments": {
        "trm": {"context": {"source": "embedding", "unseen": "mean"}, "decoder": {"init": None}},
        "in_context": {
            "context": {"source": "in_context", "pairing": "aligned", **SMALL, "layers": 1},
            "decoder": {"init": None},
        },
    },
    "tracking": {"wandb": "disabled"},
}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both models, trained on the same world and asked about the same unseen rules."""
    folder, study, scores = tmp_path_factory.mktemp("control"), load_study(STUDY), {}
    tables = folder / "tasks.parquet", folder / "augmentations.parquet"
    prepare_tasks(study.data, tables[0])
    prepare_augmentations(*tables, study.data.variants, study.data.seed)
    for name, stage in (("trm", "pretrain"), ("in_context", "full")):
        out = folder / name
        paths = RunPaths(*tables, None, out, folder / "state", folder / "wandb")
        run = run_config(study, name, stage, 0)
        train_run(run, paths, TrackingConfig(wandb="disabled"), device="cpu")
        config = study.experiments[name].evaluation
        scores[name] = evaluate_run(out, *tables, config, out / "evaluation", device="cpu")
    return scores


def right(score: dict[str, Any]) -> int:
    """Answered tasks of 100."""
    share = score["pass"]["1"]["task_fraction"]
    assert share["denominator"] == 100
    return int(share["numerator"])


def test_an_encoder_that_reads_its_demos_answers_rules_that_it_has_never_seen(
    scores: dict[str, Any],
) -> None:
    assert right(scores["in_context"]) >= 90


def test_without_the_demos_of_the_task_nobody_is_above_chance(scores: dict[str, Any]) -> None:
    """By guessing, one colour in nine is right, and one map of two or more in 81."""
    assert right(scores["in_context"]["shuffled"]) <= 5
    assert right(scores["trm"]) <= 5
