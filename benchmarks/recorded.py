"""Numbers recorded from the official TRM code: evaluation, and steps of training.

A folder with them is not part of the project; the environment variable `ETRM_GOLDEN` names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from etrm.config.health import HealthConfig
from etrm.config.lanes import Lane
from etrm.config.load import plain
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.build import build_model

FOLDER = "ETRM_GOLDEN"
IGNORED = -100  # of the official labels


@dataclass
class Recorded:
    """A recording: settings, tensors, and the run that they describe."""

    folder: Path
    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    run: RunConfig

    @staticmethod
    def read(folder: Path, device: torch.device | str = "cpu") -> Recorded:
        """Read the recording of a folder."""
        settings = json.loads((folder / "trm_cases.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "trm_cases.safetensors", str(device))
        return Recorded(folder, settings, tensors, run_of(settings))

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return recorded weights by our names."""
        return {ours(k): t for k, t in load_file(self.folder / f"{name}.safetensors").items()}

    def model(self) -> Model:
        """Return the official model before training, on the CPU."""
        model = build_model(self.run, self.settings["config"]["num_puzzle_identifiers"])
        model.load_state_dict(self.weights("trm_checkpoint_step0"))
        return model

    def batch(self, prefix: str = "") -> Batch:
        """Return one recorded batch; labels that the official loss ignores are PAD here."""
        inputs = self.tensors[f"{prefix}inputs"].long()
        labels = self.tensors[f"{prefix}labels"].long()
        puzzle = self.tensors[f"{prefix}puzzle_identifiers"].long()
        none = torch.zeros_like(inputs)[:, None]
        mask = torch.zeros_like(none[..., 0], dtype=torch.bool)
        labels = labels.masked_fill(labels == IGNORED, 0)
        return Batch(puzzle, puzzle, inputs, labels, none, none, mask, Lane(30, 30))


class Replay:
    """Stands in for the sampler: the recorded batches, one after the other."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def batch(self, step: int) -> Batch:
        """Return the batch of a training step, from 1."""
        return self.recorded.batch(f"train.step{max(step - 1, 0)}.")


def ours(official: str) -> str:
    """Return the name of a weight in our model."""
    name = official.removeprefix("_orig_mod.").removeprefix("model.inner.")
    return "context.weights" if name == "puzzle_emb.weights" else f"decoder.{name}"


def run_of(settings: dict[str, Any]) -> RunConfig:
    """Return the run that the recorded settings describe."""
    config, optimizer = settings["config"], settings["optimizer"]
    document = {
        "experiment": "recorded",
        "stage": "pretrain",
        "seed": 0,
        "split": "strict",
        "sources": None,
        "health": plain(HealthConfig()),
        "context": {"source": "embedding"},
        "decoder": {},
        "episodes": {"canvas": [30]},
        "model": {
            "width": config["hidden_size"],
            "heads": config["num_heads"],
            "layers": config["L_layers"],
            "expansion": float(config["expansion"]),
            "context_tokens": config["puzzle_emb_len"],
            "H_cycles": config["H_cycles"],
            "L_cycles": config["L_cycles"],
            "positions": config["pos_encodings"],
        },
        "halting": {
            "max_steps": config["halt_max_steps"],
            "exploration_prob": config["halt_exploration_prob"],
            "loss_weight": 0.5,
        },
        "train": {
            "steps": len(settings["train"]),
            "log_every": 1,
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
    }
    run: RunConfig = parse(RunConfig, document)
    return run
