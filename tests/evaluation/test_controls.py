"""Controls: sources of an experiment, demos of other tasks, TRM's mean embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_evaluation_run import HELD_OUT, TRAINING, evaluate
from tiny import make_batch, make_run, make_tasks, make_variants

from etrm.config.execution import TrackingConfig
from etrm.config.load import load_study, run_config, to_yaml
from etrm.config.schema import ConfigError
from etrm.data.corpus import Corpus
from etrm.data.episodes import held_out_questions, shuffle_demos
from etrm.data.tables import TaskRecord, write_augmentations, write_tasks
from etrm.models.build import build_model
from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.training.build import training_data
from etrm.training.run import RunPaths, train_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mean_run(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, RunPaths]) -> RunPaths:
    """A strict run with embeddings, of which none is a held-out task's."""
    paths = replace(runs["trm"], out=tmp_path_factory.mktemp("mean") / "run")
    run = make_run("embedding", context={"unseen": "mean"}, train={"steps": 3})
    train_run(run, paths, TrackingConfig(wandb="disabled"), device="cpu")
    return paths


def test_a_strict_table_answers_by_the_mean_of_its_rows(mean_run: RunPaths, tmp_path: Path) -> None:
    score = evaluate(mean_run, tmp_path)
    assert score["tasks_asked"] == len(HELD_OUT)
    assert score["held_out"]["status"] == "proven"
    rows = load_file(mean_run.out / "model.safetensors")["raw.context.weights"]
    assert len(rows) == len(TRAINING) * 4
    assert rows.std(dim=0).max() > 0
    model = build_model(make_run("embedding"), len(rows))
    assert isinstance(model.context, PuzzleEmbedding)
    model.context.weights.copy_(rows)
    model.context.meet_unseen(7)
    batch = make_batch(3, puzzles=7)
    tokens = model.context(replace(batch, puzzle=torch.tensor([0, 3, 6])), None).tokens
    expected = rows.mean(dim=0) * model.config.width**0.5
    torch.testing.assert_close(tokens[:, 0], expected.expand(3, -1))


def test_every_task_has_the_demos_of_another() -> None:
    tasks = make_tasks(5)
    corpus = Corpus(tasks, make_variants(tasks))
    own = held_out_questions(corpus)
    other = shuffle_demos(corpus, own)
    assert [q.query for q in other] == [q.query for q in own]
    owner = {pair: task for task, pairs in enumerate(corpus.demo_pairs) for pair in pairs}
    shown = {q.task: {owner[pair] for pair in q.pool} for q in other}
    assert all(len(each) == 1 and task not in each for task, each in shown.items())
    assert {next(iter(each)) for each in shown.values()} == set(shown)  # each is used once


def test_a_shuffled_evaluation_is_beside_the_score(
    runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    plain = evaluate(runs["etrm"], tmp_path / "plain")
    score = evaluate(runs["etrm"], tmp_path / "shuffled", shuffled=True)
    assert "shuffled" not in plain
    assert score["pass"] == plain["pass"]
    assert score["shuffled"]["pass"]["1"]["task_fraction"]["denominator"] == len(HELD_OUT)
    assert "shuffled" not in evaluate(runs["trm"], tmp_path / "trm", shuffled=True)


@pytest.fixture
def two_sources(tmp_path: Path) -> tuple[Path, Path]:
    """Tables of two sources of training tasks, and two of held-out ones."""
    records = [
        TaskRecord(task, f"{split}_{name}", split)
        for split in ("training", "evaluation")
        for seed, name in enumerate("ab")
        for task in make_tasks(3, seed=seed + 7 * (split == "training"), prefix=f"{split}_{name}")
    ]
    paths = tmp_path / "tasks.parquet", tmp_path / "augmentations.parquet"
    write_tasks(paths[0], records)
    write_augmentations(paths[1], make_variants([r.task for r in records]))
    return paths


def test_an_experiment_trains_on_its_sources_and_is_asked_about_them(
    two_sources: tuple[Path, Path], tmp_path: Path
) -> None:
    run = make_run(sources=["training_b", "evaluation_a"])
    corpus, *_ = training_data(run, *two_sources, CPU)
    assert [task.id[:10] for task in corpus.tasks] == ["training_b"] * 3
    everything, *_ = training_data(make_run(), *two_sources, CPU)
    assert len(everything.tasks) == 6
    paths = RunPaths(*two_sources, None, tmp_path / "run", tmp_path / "state", tmp_path / "wandb")
    train_run(run, paths, TrackingConfig(wandb="disabled"), device="cpu")
    score = evaluate(paths, tmp_path / "evaluation")
    assert score["tasks_of_split"] == 3
    assert all(name.startswith("evaluation_a") for name in score["ranks"])


def study_of(**sources: object) -> dict[str, Any]:
    """A study of one experiment with its own sources, beside one with those of the study."""
    folder = {"kind": "folder", "path": "tasks"}
    encoder = {"context": {"source": "standard"}}
    return {
        "study": "s",
        "data": {
            "sources": dict.fromkeys(("train", "test", "world", "unseen"), folder),
            "training": ["train"],
            "evaluation": ["test"],
        },
        "experiments": {"arc": encoder, "control": {**encoder, "sources": sources}},
    }


def test_a_study_has_the_sources_of_all_its_experiments() -> None:
    study = load_study(study_of(training=["world"], evaluation=["unseen"]))
    assert study.data.training == ("train", "world")
    assert study.data.evaluation == ("test", "unseen")
    used = {name: run_config(study, name, "full", 0).sources for name in study.experiments}
    assert used == {"arc": ("train", "test"), "control": ("world", "unseen")}
    assert load_study(yaml.safe_load(to_yaml(study))) == study
    partly = load_study(study_of(training=["train", "world"]))
    assert run_config(partly, "control", "full", 0).sources == ("train", "world", "test")


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"training": ["nowhere"]}, "experiments.control.sources.training: found 'nowhere'"),
        ({"evaluation": []}, r"sources.evaluation: found \[\], expected at least one"),
        ({"evaluation": ["train"]}, "that no experiment trains on"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(sources: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        load_study(study_of(**sources))
