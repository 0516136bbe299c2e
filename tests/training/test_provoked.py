"""Every way to fail, provoked in a real run, is found; a healthy run is left alone.

With the guide's own rules and thresholds, a row of metrics at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import make_corpus, make_run, make_task, make_trainer, recolour

from etrm.config.health import GateConfig
from etrm.models.encoders.base import Encoded
from etrm.training.health import Finding, check_rules, check_stuck, find_stop, verdict
from etrm.training.trainer import Trainer

Rows = list[dict[str, float]]


def trained(
    steps: int,
    change: Callable[[Trainer], None] = lambda trainer: None,
    maps: int = 2,
    **blocks: Any,
) -> tuple[Rows, Trainer]:
    """Rows of a run on two colour maps, which learns them by heart in some 150 steps."""
    rng = np.random.default_rng(0)
    tasks = [make_task(f"t{i}", recolour(rng), rng, demos=3, side=2) for i in range(maps)]
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
    rows, trainer = trained(300, maps=4)  # contexts of two maps alone need not differ much
    health = trainer.run.health
    assert rows[-1]["train/exact_accuracy"] > 0.9
    assert {row["grad/encoder_coverage"] for row in rows} == {1.0}
    assert findings(rows, trainer) == {}
    assert all(find_stop(rows[:end], health) is None for end in range(20, 200, 20))
    judged = verdict([*rows, {"step": 300.0, "all.exact_accuracy": 1.0}], health, GateConfig())
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
    assert np.median([row["grad/encoder_coverage"] for row in rows[-10:]]) < 0.4
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
        104, train={"batch_size": 4}, halting={"loss_weight": 0.0, "exploration_prob": 0.0}
    )
    assert all(row["train/steps_share"] == 1.0 for row in rows if "train/steps_share" in row)
    assert findings(rows, trainer)["never_halts"] == "warn"


def test_one_act_step_is_no_finding_of_the_q_head() -> None:
    rows, trainer = trained(104, train={"batch_size": 4}, halting={"max_steps": 1})
    assert "never_halts" not in findings(rows, trainer)


def test_a_run_that_does_not_move_is_stuck() -> None:
    stuck = {"within": 300, "min_gain": 0.05}  # few samples show a large gain only
    still = {"lr": 1e-9, "batch_size": 8}
    rows, trainer = trained(300, train=still, model={"width": 16}, health={"stuck": stuck})
    assert findings(rows, trainer)["stuck"] == "stop"
    judged = verdict(rows, trainer.run.health, GateConfig())
    assert not judged["passed"]
    assert "stuck" in {each["finding"] for each in judged["diagnosis"]}


# --- the same failure at every scale (collapse and small gradients: test_units.py) ---

FLAT = {"heads": 8, "layers": 1, "expansion": 0.1}  # only the width makes the scale
ONE_CYCLE = {**FLAT, "H_cycles": 1, "L_cycles": 1}
SCALES: dict[str, dict[str, Any]] = {
    "mini": {
        "model": {**ONE_CYCLE, "width": 64},
        "context": {**FLAT, "set_layers": 1, "width": 64, "output_scale": 1.0},
    },
    "paper": {
        "model": {**ONE_CYCLE, "width": 512},
        "context": {**FLAT, "set_layers": 1, "width": 512, "output_scale": None},
    },
}


def q_head(bias: float) -> Callable[[Trainer], None]:
    def apply(trainer: Trainer) -> None:
        trainer.model.decoder.q_head.bias.data.fill_(bias)

    return apply


SLOW = {"lr": 1e-7, "batch_size": 4}
UNTAUGHT = {"loss_weight": 0.0, "exploration_prob": 0.0, "max_steps": 16}
# Steps, the failure, further settings, and the findings with their severity. (After step 100, from
# which they are judged, samples that never halt end at the 112th.)
FAILURES: dict[str, tuple[int, Callable[[Trainer], None], dict[str, Any], dict[str, str]]] = {
    "learning rate": (
        *(30, lambda trainer: None, {"train": {"lr": 30.0, "batch_size": 4, "grad_clip": None}}),
        {"divergence": "stop"},
    ),
    "never halts, cached encodings": (
        *(113, q_head(-50.0), {"train": {**SLOW, "cache_context": True}, "halting": UNTAUGHT}),
        {"never_halts": "warn", "gradient_starvation": "stop"},
    ),
    "halts at once": (
        *(101, q_head(50.0), {"train": SLOW, "halting": UNTAUGHT}),
        {"halts_at_once": "warn", "unsure_halting": "warn"},
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_the_same_finding_at_every_scale(failure: str, scale: str) -> None:
    steps, change, blocks, expected = FAILURES[failure]
    context = {"pairing": "aligned", **SCALES[scale]["context"]}
    rows, trainer = trained(steps, change, **{**blocks, **SCALES[scale], "context": context})
    found = findings(rows, trainer)
    assert expected.items() <= found.items(), found
