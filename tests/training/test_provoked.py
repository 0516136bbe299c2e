"""Every way to fail, provoked in a real run, is found; a healthy run is left alone.

With the guide's own rules and thresholds, a row of metrics at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tiny import make_corpus, make_run, make_task, make_trainer, recolour

from etrm.config.health import GateConfig
from etrm.models.encoders.base import Encoded
from etrm.training.health import Finding, check_rules, check_stuck, find_stop, verdict
from etrm.training.trainer import Trainer

Rows = list[dict[str, float]]


def trained(
    steps: int, change: Callable[[Trainer], None] = lambda trainer: None, **blocks: Any
) -> tuple[Rows, Trainer]:
    """Rows of a run on two colour maps, which learns them by heart in some 150 steps."""
    rng = np.random.default_rng(0)
    tasks = [make_task(f"t{i}", recolour(rng), rng, demos=3, side=2) for i in range(2)]
    usual: dict[str, Any] = {
        "episodes": {"canvas": [2], "translate": False},
        "train": {"lr": 4e-3, "batch_size": 16, "steps": steps, "ema_decay": 0.9},
        "context": {"pairing": "aligned"},
        "halting": {"max_steps": 4, "exploration_prob": 0.1},
        "model": {"width": 32},
    }
    merged = {name: {**usual.get(name, {}), **blocks.get(name, {})} for name in {*usual, *blocks}}
    trainer = make_trainer(make_run(**merged), make_corpus(tasks, variants=1))
    change(trainer)
    rows: Rows = []
    for _ in range(steps):
        trainer.step()
        rows.append(trainer.row())
        if not np.isfinite(rows[-1]["train/lm_loss"]):
            break
    return rows, trainer


def findings(rows: Rows, trainer: Trainer) -> dict[str, str]:
    """Names with severities of all findings."""
    health = trainer.run.health
    found = [*check_rules(rows, health), *check_stuck(rows, health)]
    return {f.finding: f.severity for f in found}


def stop_of(rows: Rows, trainer: Trainer) -> Finding | None:
    return find_stop(rows, trainer.run.health)


def encoding(change: Callable[[Encoded], Encoded]) -> Callable[[Trainer], None]:
    """A change of a trainer's encodings."""

    def apply(trainer: Trainer) -> None:
        source = trainer.model.context
        forward = source.forward
        source.forward = lambda batch, state: change(forward(batch, state))

    return apply


def test_a_healthy_run_raises_none_at_any_step() -> None:
    rows, trainer = trained(260, train={"batch_size": 8})
    health = trainer.run.health
    assert rows[-1]["train/exact_accuracy"] > 0.9
    assert findings(rows, trainer) == {}
    assert all(find_stop(rows[:end], health) is None for end in range(20, 200, 20))
    judged = verdict([*rows, {"step": 260.0, "all.exact_accuracy": 1.0}], health, GateConfig())
    assert judged["passed"]
    assert judged["diagnosis"] == []


def test_a_detached_encoder_starves() -> None:
    detached = encoding(lambda e: replace(e, tokens=e.tokens.detach()))
    rows, trainer = trained(115, detached, train={"lr": 1e-3})  # not by heart before that
    assert findings(rows, trainer)["gradient_starvation"] == "stop"
    reason = stop_of(rows, trainer)
    assert (reason.finding, reason.step) == ("gradient_starvation", 115)


def test_cached_encodings_starve_the_encoder_too() -> None:
    """The negative control, which no gate passes."""
    halting = {"max_steps": 8, "exploration_prob": 1.0}
    rows, trainer = trained(115, train={"cache_context": True}, halting=halting)
    assert findings(rows, trainer)["gradient_starvation"] == "stop"
    assert np.median([row["grad/encoder_coverage"] for row in rows[-10:]]) < 0.5
    rows = [*rows, {"step": 115.0, "all.exact_accuracy": 1.0}]
    assert not verdict(rows, trainer.run.health, GateConfig())["passed"]


def test_a_constant_encoder_has_collapsed() -> None:
    """One context for all, with gradients in plenty."""

    def flatten(e: Encoded) -> Encoded:
        return replace(e, tokens=e.tokens.mean(dim=0, keepdim=True).expand_as(e.tokens))

    rows, trainer = trained(205, encoding(flatten))
    assert findings(rows, trainer)["collapse"] == "stop"
    assert stop_of(rows, trainer).finding in ("collapse", "gradient_starvation")
    assert rows[-1]["train/encoder_cross_sample_var"] < 1e-6


def test_a_learning_rate_that_is_far_too_high_diverges() -> None:
    rows, trainer = trained(60, train={"lr": 30.0, "grad_clip": None})
    assert stop_of(rows, trainer).finding == "divergence"
    judged = verdict(rows, trainer.run.health, GateConfig())
    assert judged["diagnosis"][0]["finding"] == "divergence"


def test_a_q_head_that_never_halts_is_found() -> None:
    rows, trainer = trained(
        150, train={"batch_size": 4}, halting={"loss_weight": 0.0, "exploration_prob": 0.0}
    )
    assert all(row["train/steps_share"] == 1.0 for row in rows if "train/steps_share" in row)
    assert findings(rows, trainer)["never_halts"] == "warn"


def test_a_run_that_does_not_move_is_stuck() -> None:
    stuck = {"within": 300, "min_gain": 0.05}  # few samples show a large gain only
    still = {"lr": 1e-9, "batch_size": 8}
    rows, trainer = trained(300, train=still, model={"width": 16}, health={"stuck": stuck})
    assert findings(rows, trainer)["stuck"] == "stop"
    judged = verdict(rows, trainer.run.health, GateConfig())
    assert not judged["passed"]
    assert "stuck" in {each["finding"] for each in judged["diagnosis"]}
