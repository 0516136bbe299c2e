"""Two trained runs, and a model that knows the answers, for the tests of the evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import TrackingConfig
from etrm.config.study import HaltingConfig
from etrm.data.batch import Batch
from etrm.models.act import Model, StepOutput
from etrm.models.encoders.base import Encoded
from etrm.training.run import RunPaths, train_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunPaths]:
    """A transductive run with embeddings, and a strict one with an encoder."""
    folder = tmp_path_factory.mktemp("study")
    paths = write_study(folder, make_tasks(3), make_tasks(3, seed=9, prefix="held_out"))
    found = {}
    for name, source, split in (
        ("trm", "embedding", "transductive"),
        ("etrm", "standard", "strict"),
    ):
        found[name] = replace(paths, out=folder / name)
        run = make_run(source, split=split, experiment=name, train={"steps": 3})
        train_run(run, found[name], TrackingConfig(wandb="disabled"), device="cpu")
    return found


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding answers with the labels: as far as they are on the canvas."""

    def answer(
        model: Model, batch: Batch, halting: HaltingConfig, *_: object
    ) -> tuple[StepOutput, torch.Tensor]:
        logits = torch.nn.functional.one_hot(batch.labels, 12).float()
        ones = torch.ones(len(batch))
        output = StepOutput(
            logits, ones, {}, ones.bool(), Encoded(logits), "stablemax_cross_entropy"
        )
        return output, torch.full((len(batch),), halting.max_steps)

    monkeypatch.setattr("etrm.evaluation.decode.decode", answer)
