"""Validation tasks: held out of every run that could be asked about them; full runs are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Pair, Task
from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.data.corpus import Corpus
from etrm.data.tables import read_augmentations
from etrm.evaluation.decode import decode
from etrm.evaluation.run import identify_evaluation
from etrm.evaluation.validation import shares, validate_run, validation_questions
from etrm.runtime.distributed import Ranks
from etrm.storage.records import read_metrics
from etrm.training.build import build_trainer, training_data
from etrm.training.initial_weights import read_parent
from etrm.training.optim import averaged_weights
from etrm.training.run import RunPaths, train_run

OFF = TrackingConfig(wandb="disabled")
OURS = make_tasks(4)
UNSEEN = make_tasks(3, seed=5, prefix="unseen")
HELD_OUT = make_tasks(2, seed=9, prefix="held_out")
FULL: dict[str, Any] = {"stage": "full", "train": {"eval_every": 2}}


def study(folder: Path, validation: list[Task] = UNSEEN) -> RunPaths:
    return write_study(folder, OURS, HELD_OUT, validation)


@pytest.mark.parametrize("split", ["strict", "transductive"])
@pytest.mark.parametrize(
    ("source", "stage"), [("embedding", "pretrain"), ("standard", "overfit"), ("standard", "full")]
)
def test_no_corpus_of_training_has_a_validation_task(
    source: str, stage: str, split: str, tmp_path: Path
) -> None:
    """But that of transductive TRM, which is published with all of them."""
    paths, run = study(tmp_path), make_run(source, stage=stage, split=split)
    corpus, episodes, _ = training_data(run, paths.tasks, paths.augmentations, torch.device("cpu"))
    names = {task.id for task in corpus.tasks}
    expected = OURS if split == "strict" else [*OURS, *HELD_OUT]
    expected = (
        [*expected, *UNSEEN] if split == "transductive" and source == "embedding" else expected
    )
    assert names == {task.id for task in expected}
    assert sum(map(len, episodes)) > 0


def test_poisoned_validation_tasks_change_no_weight(tmp_path: Path) -> None:
    """The leak test: weights are the same, bit for bit, whatever validation tasks hold."""
    poison = np.full((3, 3), 9, dtype=np.uint8)
    poisoned = [
        Task(t.id, t.demos, tuple(Pair(q.input, poison) for q in t.queries)) for t in UNSEEN
    ]
    weights, losses = [], []
    for name, tasks in (("clean", UNSEEN), ("poisoned", poisoned)):
        paths = study(tmp_path / name, tasks)
        record = train_run(make_run(**FULL), paths, OFF, device="cpu")
        assert record["seen_tasks"]["ids"] == sorted(task.id for task in OURS)
        weights.append(load_file(paths.out / "model.safetensors"))
        losses.append(read_metrics(paths.out).to_pandas()["validation.lm_loss"].dropna())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert len(losses[0]) == 2
    assert not np.isclose(*losses).any()  # but they were asked about these


def test_the_curve_is_a_direct_evaluation(tmp_path: Path) -> None:
    """Every test input in every variant, by hand, at the step of the row."""
    paths, run = study(tmp_path), make_run(**FULL)
    tables = paths.tasks, paths.augmentations
    trainer, _ = build_trainer(run, tables, None, Ranks(), ExecutionConfig())
    trainer.step()
    row = trainer.evaluate()
    corpus = Corpus(UNSEEN, read_augmentations(paths.augmentations))
    exact, losses = [], []
    assert trainer.validation is not None
    with averaged_weights(trainer.model, trainer.ema):
        trainer.model.eval()
        for lane, index, variant in trainer.validation[1]:
            for i, v in zip(index.tolist(), variant.tolist(), strict=True):
                batch = corpus.assemble(lane, torch.tensor([i]), torch.tensor([v]))
                task = UNSEEN[int(batch.task)]
                assert int(batch.demo_mask.sum()) == len(task.demos)
                output, _ = decode(trainer.model, batch, run.halting)
                cells = batch.labels != 0
                right = (output.logits.argmax(dim=-1) == batch.labels)[cells]
                exact.append(bool(right.all()) and bool(lane.fits[i]))
                losses.append(float(right.double().mean()))
    questions = sum(len(task.queries) for task in UNSEEN) * 4  # variants
    assert row["validation.count"] == len(exact) == questions
    assert row["validation.tasks"] == len(UNSEEN)
    assert row["validation.exact_accuracy"] == pytest.approx(np.mean(exact))
    assert row["validation.accuracy"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert row["validation.steps"] == run.halting.max_steps
    gap = row["all.exact_accuracy"] - row["validation.exact_accuracy"]
    assert row["validation.gap"] == pytest.approx(gap)


def test_an_evaluation_asks_at_most_eval_episodes_of_each(tmp_path: Path) -> None:
    paths, run = study(tmp_path), make_run(stage="full", train={"eval_episodes": 8})
    tables = paths.tasks, paths.augmentations
    trainer, _ = build_trainer(run, tables, None, Ranks(), ExecutionConfig())
    row = trainer.evaluate()
    assert 6 <= row["validation.count"] <= 8
    assert row == trainer.evaluate()  # the same draw


def test_only_full_runs_are_validated_and_all_steps_that_evaluate_are(tmp_path: Path) -> None:
    paths = study(tmp_path)
    for stage in ("overfit", "full"):
        out = tmp_path / stage
        run = make_run(stage=stage, train={"eval_every": 2, "steps": 4})
        train_run(run, replace(paths, out=out), OFF, device="cpu")
        metrics = read_metrics(out).to_pandas()
        steps = metrics.loc[metrics["all.exact_accuracy"].notna(), "step"].tolist()
        assert steps == [2, 4]
        if stage == "full":
            validated = metrics["validation.exact_accuracy"].notna()
            assert metrics.loc[validated, "step"].tolist() == steps
        else:
            assert not [name for name in metrics if name.startswith("validation.")]


def test_a_transductive_parent_has_seen_the_validation_tasks(tmp_path: Path) -> None:
    paths = study(tmp_path)
    train_run(make_run("embedding", split="transductive"), paths, OFF, device="cpu")
    child = replace(paths, parent=paths.out, out=tmp_path / "child")
    run = make_run(**FULL, split="transductive", decoder={"init": "trm"})
    train_run(run, child, OFF, device="cpu")
    assert "validation.exact_accuracy" not in read_metrics(child.out).column_names


@pytest.mark.parametrize("seen", [False, True])
def test_weights_that_may_have_seen_a_validation_task_have_no_validation(
    seen: bool, tmp_path: Path
) -> None:
    """A parent of another study, which trained on one of them, in other colours and under an id."""
    colors = np.array([0, 2, 3, 4, 5, 6, 7, 8, 9, 1], dtype=np.uint8)
    demos = tuple(Pair(colors[p.input], colors[p.output]) for p in UNSEEN[0].demos)
    other = write_study(tmp_path / "other", [*OURS, Task("other", demos, OURS[0].queries)], [])
    before = study(tmp_path / "before")
    parent = other if seen else before
    train_run(make_run("embedding"), parent, OFF, device="cpu")
    paths = replace(study(tmp_path / "own"), parent=parent.out)
    run = make_run(**FULL, decoder={"init": "strict"})
    train_run(run, paths, OFF, device="cpu")
    names = read_metrics(paths.out).column_names
    assert ("validation.exact_accuracy" in names) == (not seen)
    assert read_parent(parent.out, None).may_have_seen(UNSEEN) == seen


def test_a_validation_has_the_share_of_each_task(tmp_path: Path) -> None:
    """Of its test inputs in all variants; and no score where a task was seen in training."""
    paths = study(tmp_path)
    run = make_run("standard", **FULL)
    train_run(run, replace(paths, out=tmp_path / "run"), OFF, device="cpu")
    given = tmp_path / "run", paths.tasks, paths.augmentations
    config = EvaluationConfig(variants=3)
    found = validate_run(*given, config, tmp_path / "v", device="cpu", state=paths.state)
    assert list(found["tasks"]) == [task.id for task in UNSEEN]
    evaluation = identify_evaluation(*given[:1], given[1:], config, "validation")
    questions = validation_questions(evaluation, torch.device("cpu"))
    asked = sum(len(index) for _, index, _ in questions.lanes)
    assert asked == 3 * sum(len(task.queries) for task in UNSEEN)
    predicted = pa.table(
        {
            "task": ["unseen0"] * 4 + ["unseen1"] * 2,
            "correct": [True, False, False, False, True, True],
        }
    )
    assert shares(predicted, UNSEEN) == {"unseen0": 0.25, "unseen1": 1.0, "unseen2": 0.0}
    assert found["exact"] == pytest.approx(sum(found["tasks"].values()) / 3)

    seen = make_run("standard", split="transductive", **FULL)
    other = study(tmp_path / "seen", validation=[])
    train_run(seen, replace(other, out=tmp_path / "seen/run"), OFF, device="cpu")
    marked = write_study(tmp_path / "marked", OURS[1:], HELD_OUT, OURS[:1])
    found = validate_run(
        tmp_path / "seen/run", marked.tasks, marked.augmentations, config, tmp_path / "w", "cpu"
    )
    assert (found["exact"], found["seen"]) == (None, [OURS[0].id])


def test_a_finished_validation_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = study(tmp_path)
    train_run(make_run("standard", **FULL), replace(paths, out=tmp_path / "run"), OFF, device="cpu")
    given = tmp_path / "run", paths.tasks, paths.augmentations, EvaluationConfig(variants=2)
    first = validate_run(*given, tmp_path / "v", device="cpu", state=paths.state)
    (tmp_path / "v/validation.json").unlink()
    monkeypatch.setattr("etrm.evaluation.validation.decode_questions", None)
    assert validate_run(*given, tmp_path / "v", device="cpu", state=paths.state) == first
