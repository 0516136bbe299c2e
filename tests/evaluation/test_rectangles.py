"""Runs on lanes that are not square: worlds of one row, from training to the score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import grid, make_batch, make_run, write_study

from etrm.arc.task import Pair, Task
from etrm.config.execution import TrackingConfig
from etrm.config.lanes import Lane
from etrm.config.study import EvaluationConfig
from etrm.data.tables import read_augmentations
from etrm.evaluation.run import evaluate_run
from etrm.models.act import act_step, empty_carry
from etrm.models.build import build_model
from etrm.training.run import RunPaths, train_run


def row_task(name: str, seed: int, demos: int = 3) -> Task:
    """Rows of up to ten cells, whose colours are exchanged and whose order is reversed."""
    rng = np.random.default_rng(seed)
    colors = rng.permutation(10).astype(np.uint8)
    pairs = []
    for width in rng.integers(3, 11, demos + 1):
        x = grid(rng, 1, int(width))
        pairs.append(Pair(x, np.ascontiguousarray(colors[x][:, ::-1])))
    return Task(name, tuple(pairs[:-1]), (pairs[-1],))


TRAINING = [row_task(f"row{i}", i) for i in range(4)]
HELD_OUT = [row_task(f"held_out{i}", 100 + i) for i in range(9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    paths = write_study(tmp_path_factory.mktemp("rows"), TRAINING, HELD_OUT)
    config = make_run(split="strict", episodes={"canvas": [[1, 10]]}, train={"steps": 3})
    train_run(config, paths, TrackingConfig(wandb="disabled"), device="cpu")
    return paths


@pytest.mark.usefixtures("oracle")
def test_true_answers_are_restored_from_every_dihedral(run: RunPaths, tmp_path: Path) -> None:
    variants = read_augmentations(run.augmentations)
    drawn = {int(d) for task in HELD_OUT for d in variants[task.id].dihedral}
    assert drawn == set(range(8))
    config = EvaluationConfig(variants=4, pass_k=(1,), batch_size=5)
    score = evaluate_run(run.out, run.tasks, run.augmentations, config, tmp_path, device="cpu")
    frame = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert len(frame) == 4 * len(HELD_OUT)
    assert frame["correct"].all()
    assert frame["fits"].all()
    assert (frame["height"] == 1).all()
    assert score["pass"]["1"]["task_fraction"]["value"] == 1.0


def test_a_trained_run_answers_on_its_lane(run: RunPaths, tmp_path: Path) -> None:
    assert json.loads((run.out / "run.json").read_text())["lanes"] == {"1x10": 16}
    config = EvaluationConfig(variants=2, pass_k=(1,), batch_size=64)
    evaluate_run(run.out, run.tasks, run.augmentations, config, tmp_path, device="cpu")
    frame = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert (frame["height"] <= 1).all()
    assert (frame["width"] <= 10).all()


@pytest.mark.parametrize("source", ["embedding", "standard", "in_context"])
def test_the_same_tokens_on_another_shape_are_another_question(source: str) -> None:
    """The model knows rows and columns, not the number of tokens alone."""
    model = build_model(make_run(source), 8).eval()
    answers = []
    for lane in (Lane(2, 6), Lane(3, 4), Lane(6, 2), Lane(2, 6)):
        batch = replace(make_batch(side=(2, 6)), lane=lane)
        with torch.no_grad():
            _, output = act_step(model, empty_carry(model, batch, torch.float32), batch)
        answers.append(output.logits)
    assert torch.equal(answers[0], answers[3])
    for other in answers[1:3]:
        assert (other - answers[0]).abs().max() > 1e-3
