"""The guide's thresholds hold at every scale: one failure, one finding, small or at paper size."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, make_trainer
from torch import Tensor

from etrm.config.health import HealthConfig
from etrm.training.health import check_rules
from etrm.training.trainer import Trainer

SCALES = {"mini": (64, 1.0), "paper": (512, None)}  # width, output_scale


@functools.cache
def trainer_at(scale: str, source: str = "standard") -> Trainer:
    """A trainer with the width and the output scale of a study, one for all tests."""
    width, output_scale = SCALES[scale]
    context = {"width": width, "heads": 8, "output_scale": output_scale}
    run = make_run(source, model={"width": width, "heads": 8, "H_cycles": 1}, context=context)
    return make_trainer(run, make_corpus(make_tasks(3), variants=1))


def findings(row: dict[str, float]) -> dict[str, str]:
    """Names and severities where every row of a run is this one."""
    rows = [{**row, "step": float(step)} for step in range(10, 410, 10)]
    rules = {n: r for n, r in HealthConfig().rules.items() if r.metric in row}
    return {f.finding: f.severity for f in check_rules(rows, HealthConfig(rules=rules))}


def encoder_row(trainer: Trainer, finish: Any = None) -> dict[str, float]:
    """Statistics of the encoder at a step, with other vectors given to `Encoder.finish`."""
    source: Any = trainer.model.context
    with pytest.MonkeyPatch.context() as patch:
        if finish is not None:
            usual = source.finish
            patch.setattr(source, "finish", lambda x, **rest: usual(finish(x), **rest))
        trainer.step()
    row = {n: v for n, v in trainer.row().items() if n.startswith("train/encoder_")}
    return row if row.pop("train/encoder_frozen") == 0.0 else {}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("variance", "severity"), [(0.02, "stop"), (0.07, "fail"), (0.2, "warn"), (0.5, None)]
)
def test_collapse_is_the_same_finding_at_every_scale(
    scale: str, variance: float, severity: str | None
) -> None:
    def apart(x: Tensor) -> Tensor:
        """Vectors of any size that differ from sample to sample by `variance`, normalised."""
        sign = 1.0 - 2.0 * (torch.arange(len(x)) % 2)
        common, own = torch.ones(x.shape[-1]), torch.ones(x.shape[-1])
        own[::2] = -1.0
        vectors = (1 - variance) ** 0.5 * common + variance**0.5 * sign[:, None, None] * own
        return 7.0 * vectors + 0.0 * x

    row = encoder_row(trainer_at(scale), apart)
    assert row["train/encoder_cross_sample_var"] == pytest.approx(variance, rel=1e-3)
    assert row["train/encoder_output_std"] ** 2 + row["train/encoder_output_mean"] ** 2 == (
        pytest.approx(1.0, rel=1e-3)
    )
    assert row["train/encoder_raw_norm"] == pytest.approx(7.0 * SCALES[scale][0] ** 0.5, rel=1e-3)
    assert findings(row) == ({"collapse": severity} if severity else {})


@pytest.mark.parametrize("source", ["standard", "cross_attention", "variational"])
def test_the_size_before_normalisation_can_be_seen(source: str) -> None:
    """At the width of the decoder, too, where no projection follows the last block."""
    norms = []
    for factor in (1.0, 20.0):
        trainer = trainer_at.__wrapped__("mini", source)  # of its own: weights are changed
        context: Any = trainer.model.context
        last = context.set.blocks[-1].mlp.down_proj.weight
        last.data.mul_(factor)
        row = encoder_row(trainer)
        norms.append(row["train/encoder_raw_norm"])
        assert row["train/encoder_output_norm"] == pytest.approx(64**0.5, rel=1e-3)
    if source == "variational":  # of a latent behind the block's norm
        assert norms[0] != pytest.approx(64**0.5, rel=0.05)
    else:
        assert norms[1] > 1.5 * norms[0]


@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_judged_apart(scale: str) -> None:
    """The mean of a sample's cells says little; cells that are all alike are a collapse."""
    row = encoder_row(trainer_at(scale, "in_context"))
    assert row["train/encoder_cross_sample_var"] > 0.3
    assert findings(row) == {}
    row = encoder_row(trainer_at(scale, "in_context"), lambda x: x[:1, :1] + 1e-3 * x)
    assert findings(row) == {"collapse": "stop"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("encoder", "total", "expected"),
    [
        (0.2, 10.0, {"gradient_starvation": "stop", "low_gradient_share": "warn"}),
        (0.5, 3.0, {"gradient_starvation": "warn"}),
        (0.04, 0.15, {"gradient_starvation": "stop"}),  # nothing is clipped
        (0.3, 0.9, {}),
    ],
)
def test_gradients_are_judged_after_clipping(
    scale: str, encoder: float, total: float, expected: dict[str, str]
) -> None:
    trainer = trainer_at(scale)
    updater, weights = trainer.updater, trainer.lane_weights.by_slot
    norms = {"context": encoder, "decoder": (total**2 - encoder**2) ** 0.5}
    for name, norm in norms.items():
        updater.parameters.gradient_of(name)[0] = norm
    row = {name: float(value) for name, value in updater.apply(1, weights).items()}
    assert row["grad/total_norm"] == pytest.approx(min(total, 1.0), rel=1e-3)
    assert row["grad/encoder_norm"] == pytest.approx(encoder / max(total, 1.0), rel=1e-3)
    assert row["grad/encoder_norm_unclipped"] == pytest.approx(encoder, rel=1e-3)
    assert row["grad/total_norm_unclipped"] == pytest.approx(total, rel=1e-3)
    assert findings(row) == expected


def test_no_encoder_is_judged_where_there_is_none() -> None:
    assert encoder_row(make_trainer(make_run("embedding"))) == {}
