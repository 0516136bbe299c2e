"""Numbers recorded from the official TRM code: evaluation, and six steps of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_corpus, questions_of
from torch import Tensor

from benchmarks.recorded import Recorded, Replay, ours
from etrm.models.act import act_step, empty_carry
from etrm.models.losses import SampleLoss, sample_losses
from etrm.training.trainer import Trainer

ABSOLUTE, LOSS, NORM = 1e-4, 1e-4, 1e-3


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recorded:
    return Recorded.read(golden)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())


def test_evaluation_is_that_of_the_official_code(recorded: Recorded) -> None:
    model = recorded.model().eval()
    batch = recorded.batch()
    carry = empty_carry(model, batch, torch.float32)
    steps = [k for k in recorded.tensors if k.startswith("eval.step") and k.endswith(".logits")]
    assert len(steps) == recorded.settings["config"]["halt_max_steps"]
    for number in range(len(steps)):
        with torch.no_grad():
            carry, output = act_step(model, carry, batch)
        carry.halted = torch.zeros_like(carry.halted)
        case = f"eval.step{number}."
        loss = sample_losses(output, batch.labels).total(0.5, {}).sum()
        assert difference(output.logits, recorded.tensors[case + "logits"]) <= ABSOLUTE
        assert difference(output.q_halt, recorded.tensors[case + "q_halt_logits"]) <= ABSOLUTE
        assert difference(loss[None], recorded.tensors[case + "loss"]) <= ABSOLUTE
    for name in ("z_H", "z_L"):
        expected = recorded.tensors[f"eval.final.{name}"]
        found = getattr(carry, name)[:, : expected.shape[1]]
        assert difference(found, expected) <= ABSOLUTE


class Listening(Trainer):
    """A trainer that shows the losses and gradients of its last step."""

    losses: SampleLoss
    halted: Tensor
    norms: dict[str, float]

    def _forward_backward(self, lane: Any) -> Any:
        output, self.losses, self.halted = super()._forward_backward(lane)
        return output, self.losses, self.halted

    def _update(self) -> None:
        self.norms = {
            name: float(p.grad.norm())
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }
        super()._update()


Trained = tuple[Listening, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(recorded: Recorded) -> Trained:
    """The trainer after the recorded steps, and the results of each step."""
    corpus = make_corpus()
    trainer = Listening(recorded.run, recorded.model(), corpus, questions_of(recorded.run, corpus))
    (lane,) = trainer.lane_slots
    lane.sampler = Replay(recorded)  # type: ignore[assignment]
    lane.carry = empty_carry(trainer.model, recorded.batch(), torch.float32)
    steps = []
    for _ in recorded.settings["train"]:
        trainer.step()
        losses, counted = trainer.losses, trainer.halted & trainer.losses.labelled
        steps.append(
            {
                "loss": losses.total(trainer.halting.loss_weight, {}).sum().item(),
                "norms": trainer.norms,
                "halted": trainer.halted.tolist(),
                "steps": lane.carry.steps.tolist(),
                "metrics": {
                    "count": float(counted.sum()),
                    "accuracy": float(losses.accuracy[counted].sum()),
                    "exact_accuracy": float(losses.exact[counted].sum()),
                    "q_halt_accuracy": float(losses.q_right[counted].sum()),
                    "steps": float(lane.carry.steps[counted].sum()),
                    "lm_loss": losses.lm.sum().item(),
                    "q_halt_loss": losses.q_halt.sum().item(),
                },
                "row": trainer.row(),
            }
        )
    return trainer, steps


def test_training_losses_and_metrics_are_official(recorded: Recorded, trained: Trained) -> None:
    for expected, found in zip(recorded.settings["train"], trained[1], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=LOSS)
        assert found["halted"] == expected["halted"]
        assert found["steps"] == expected["steps"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=LOSS, abs=1e-6)


def test_logged_rows_are_the_official_sums_divided(recorded: Recorded, trained: Trained) -> None:
    """Official logs divide losses by the batch and the other sums by how many halted."""
    size = recorded.settings["config"]["batch_size"]
    for expected, found in zip(recorded.settings["train"], trained[1], strict=True):
        sums, row = expected["metrics"], found["row"]
        assert row["train/lm_loss"] == pytest.approx(sums["lm_loss"] / size, rel=LOSS)
        assert row["train/q_halt_loss"] == pytest.approx(sums["q_halt_loss"] / size, rel=LOSS)
        assert row["train/halted"] == sums["count"]
        assert row["train/count"] == size
        for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps"):
            if sums["count"]:
                mean = pytest.approx(sums[name] / sums["count"], rel=LOSS, abs=1e-6)
                assert row[f"train/{name}"] == mean
            else:
                assert f"train/{name}" not in row


def test_gradient_norms_are_official(recorded: Recorded, trained: Trained) -> None:
    for expected, found in zip(recorded.settings["train"], trained[1], strict=True):
        norms = {ours(name): norm for name, norm in expected["grad_norms"].items()}
        assert found["norms"] == pytest.approx(norms, rel=NORM, abs=1e-9)


@pytest.mark.parametrize("name", ["checkpoint", "ema"])
def test_weights_after_training_are_official(
    name: str, recorded: Recorded, trained: Trained
) -> None:
    expected = recorded.weights(f"trm_{name}_step{len(recorded.settings['train'])}")
    trainer = trained[0]
    found = trainer.model.state_dict() if name == "checkpoint" else trainer.ema.values
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert difference(found[key], tensor) <= ABSOLUTE, key
    if name == "checkpoint":
        before = recorded.weights("trm_checkpoint_step0")["context.weights"]
        assert difference(expected["context.weights"], before) > 1e-3
