"""Numbers recorded from the official TRM code: evaluation, and six steps of training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_corpus, make_run, questions_of
from torch import Tensor

from etrm.config.lanes import Lane
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.build import build_model
from etrm.models.losses import SampleLoss, sample_losses
from etrm.training.trainer import Trainer

PREFIX = "_orig_mod.model.inner."
IGNORED = -100  # of the official labels
ABSOLUTE, LOSS, NORM = 1e-4, 1e-4, 1e-3


@dataclass
class Recorded:
    """A recording: settings, tensors, and the run that they describe."""

    folder: Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    run: RunConfig

    def weights(self, name: str) -> dict[str, Tensor]:
        """Weights by our names."""
        return {ours(k): t for k, t in load_file(self.folder / f"{name}.safetensors").items()}

    def model(self) -> Model:
        """The official model before training."""
        model = build_model(self.run, self.settings["config"]["num_puzzle_identifiers"])
        model.load_state_dict(self.weights("trm_checkpoint_step0"))
        return model

    def batch(self, prefix: str = "") -> Batch:
        """One recorded batch; labels that the official loss ignores are PAD here."""
        inputs = self.tensors[f"{prefix}inputs"].long()
        labels = self.tensors[f"{prefix}labels"].long()
        puzzle = self.tensors[f"{prefix}puzzle_identifiers"].long()
        none = torch.zeros(len(inputs), 1, inputs.shape[1], dtype=torch.int64)
        mask = torch.zeros(len(inputs), 1, dtype=torch.bool)
        labels = labels.masked_fill(labels == IGNORED, 0)
        return Batch(puzzle, puzzle, inputs, labels, none, none, mask, Lane(30, 30))


def ours(official: str) -> str:
    """The name of a weight in our model."""
    name = official.removeprefix("_orig_mod.").removeprefix("model.inner.")
    return "context.weights" if name == "puzzle_emb.weights" else f"decoder.{name}"


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Recorded:
    settings = json.loads((golden / "trm_cases.json").read_text())
    return Recorded(golden, settings, load_file(golden / "trm_cases.safetensors"), run_of(settings))


def run_of(settings: dict[str, Any]) -> RunConfig:
    config, optimizer = settings["config"], settings["optimizer"]
    return make_run(
        "embedding",
        episodes={"canvas": [30]},
        model={
            "width": config["hidden_size"],
            "heads": config["num_heads"],
            "layers": config["L_layers"],
            "expansion": float(config["expansion"]),
            "context_tokens": config["puzzle_emb_len"],
            "H_cycles": config["H_cycles"],
            "L_cycles": config["L_cycles"],
            "positions": config["pos_encodings"],
        },
        halting={
            "max_steps": config["halt_max_steps"],
            "exploration_prob": config["halt_exploration_prob"],
            "loss_weight": 0.5,
        },
        train={
            "batch_size": config["batch_size"],
            "lr": optimizer["lr"],
            "warmup_steps": 0,
            "betas": optimizer["betas"],
            "weight_decay": optimizer["weight_decay"],
            "embedding_lr": optimizer["puzzle_emb_lr"],
            "embedding_weight_decay": optimizer["puzzle_emb_weight_decay"],
            "ema_decay": optimizer["ema_decay"],
            "grad_clip": None,
        },
    )


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


class Replay:
    """Stands in for the sampler: the recorded batches, one after the other."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def batch(self, step: int) -> Batch:
        return self.recorded.batch(f"train.step{max(step - 1, 0)}.")


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
