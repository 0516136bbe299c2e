"""The evaluation of a run folder: predictions, score and submission from real files."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Pair, Task
from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.evaluation.decode import NotFiniteError
from etrm.evaluation.run import evaluate_run, evaluate_shard, held_out_tasks
from etrm.evaluation.shards import Shard
from etrm.storage.checkpoint import load_weights
from etrm.storage.files import file_digest
from etrm.storage.records import DamagedFileError
from etrm.storage.result_cache import SCORE_FILES
from etrm.training.run import RunPaths, train_run

CONFIG = EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=5)
TRAINING = make_tasks(3)
HELD_OUT = make_tasks(3, seed=9, prefix="held_out")
RUNS = ("trm", "etrm")


def evaluate(paths: RunPaths, out: Path, **changes: Any) -> dict[str, Any]:
    config = replace(CONFIG, **changes)
    return evaluate_run(paths.out, paths.tasks, paths.augmentations, config, out, device="cpu")


def predictions(folder: Path) -> Any:
    return pq.read_table(folder / "predictions.parquet").to_pandas()


@pytest.fixture(scope="module")
def evaluated(
    runs: dict[str, RunPaths], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Evaluations of the runs with the settings of these tests."""
    folders = {name: tmp_path_factory.mktemp(name) for name in RUNS}
    for name, folder in folders.items():
        evaluate(runs[name], folder)
    return folders


@pytest.mark.parametrize("name", RUNS)
def test_an_evaluation_leaves_its_files(
    name: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    result = evaluate(runs[name], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(SCORE_FILES)
    assert json.loads((tmp_path / "score.json").read_text()) == result
    frame = predictions(tmp_path)
    asked = [(t.id, q) for t in HELD_OUT for q in range(len(t.queries))]
    assert len(frame) == 4 * len(asked)
    assert not frame.duplicated(["task", "query", "variant"]).any()
    assert sorted(set(zip(frame["task"], frame["query"], strict=True))) == asked
    assert result["tasks_asked"] == result["tasks_evaluated"] == result["tasks_of_split"] == 3
    assert result["partial"] is False
    assert result["predictions"] == len(frame)
    assert result["pass"]["1"]["task_fraction"]["denominator"] == 3
    assert result["variants"] == 4
    record = json.loads((runs[name].out / "run.json").read_text())
    assert result["run_key"] == record["key"]
    assert result["data"] == record["data"]
    assert result["weights_sha256"] == file_digest(runs[name].out / "model.safetensors")
    assert {"etrm.evaluation.run", "etrm.evaluation.voting", "etrm.models.act"} <= set(
        result["code"]
    )
    assert result["seconds"] > 0
    assert result["device"] == record["device"]
    assert (result["experiment"], result["kind"]) == (name, name)
    submission = json.loads((tmp_path / "submission.json").read_text())
    assert {task: len(tests) for task, tests in submission.items()} == {
        t.id: len(t.queries) for t in HELD_OUT
    }


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize("name", RUNS)
def test_true_answers_score_one(name: str, runs: dict[str, RunPaths], tmp_path: Path) -> None:
    result = evaluate(runs[name], tmp_path)
    assert predictions(tmp_path)["correct"].all()
    for k in ("1", "2"):
        for rule in ("task_fraction", "all_tests"):
            assert result["pass"][k][rule]["value"] == 1.0
    assert result["metrics"]["all.exact_accuracy"] == 1.0
    submission = json.loads((tmp_path / "submission.json").read_text())
    for task in HELD_OUT:
        for query, attempts in zip(task.queries, submission[task.id], strict=True):
            assert query.output is not None
            assert attempts["attempt_1"] == query.output.tolist()


def test_held_out_status_tells_what_was_seen(evaluated: dict[str, Path]) -> None:
    unseen, seen = (
        json.loads((evaluated[name] / "score.json").read_text())["held_out"]
        for name in ("etrm", "trm")
    )
    assert (unseen["status"], unseen["seen"], unseen["of"]) == ("proven", 0, 3)
    assert (seen["status"], seen["seen"], seen["of"]) == ("seen", 3, 3)
    assert (seen["answers"], unseen["answers"]) == (0, 0)


def test_answers_that_a_parent_has_seen_are_counted(tmp_path: Path) -> None:
    """It trained on a held-out task as one of its training tasks, test pairs included."""
    elsewhere = write_study(tmp_path / "elsewhere", [*TRAINING, HELD_OUT[2]], HELD_OUT[:1])
    off = TrackingConfig(wandb="disabled")
    train_run(make_run("embedding", train={"steps": 1}), elsewhere, off, device="cpu")
    paths = replace(write_study(tmp_path / "here", TRAINING, HELD_OUT), parent=elsewhere.out)
    run = make_run(split="transductive", decoder={"init": "x"}, train={"steps": 1})
    train_run(run, paths, off, device="cpu")
    status = evaluate(paths, tmp_path / "out")["held_out"]
    assert (status["status"], status["seen"], status["answers"]) == ("seen", 3, 1)


@pytest.mark.usefixtures("oracle")
def test_a_subset_is_scored_over_the_tasks_asked_for(
    runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    result = evaluate(runs["etrm"], tmp_path, tasks=2)
    chosen = set(predictions(tmp_path)["task"])
    assert len(chosen) == 2
    assert result["partial"] is False
    assert (result["tasks_asked"], result["tasks_evaluated"], result["tasks_of_split"]) == (2, 2, 3)
    credit = result["pass"]["1"]["task_fraction"]
    assert (credit["numerator"], credit["denominator"]) == (2.0, 2)
    assert set(result["ranks"]) == chosen
    assert result["held_out"]["of"] == 2
    again = evaluate(runs["trm"], tmp_path, tasks=1)
    assert set(predictions(tmp_path)["task"]) < chosen
    assert again["tasks_evaluated"] == 1


@pytest.mark.parametrize("name", RUNS)
def test_fewer_variants_vote(
    name: str, runs: dict[str, RunPaths], evaluated: dict[str, Path], tmp_path: Path
) -> None:
    result = evaluate(runs[name], tmp_path, variants=2)
    four, two = predictions(evaluated[name]), predictions(tmp_path)
    assert sorted(set(two["variant"])) == [0, 1]
    kept = four[four["variant"] < 2].reset_index(drop=True)
    assert kept["grid"].tolist() == two["grid"].tolist()
    assert kept["q_halt"].tolist() == pytest.approx(two["q_halt"].tolist(), abs=1e-4)
    assert result["variants_used_mean"] == 2.0


def test_embeddings_are_those_of_the_puzzles_trained_on(
    runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    """Rows of the table belong to the tasks of the run, in its order, not of the evaluation."""
    other = copied(runs["trm"], tmp_path)
    record = json.loads((other.out / "run.json").read_text())
    tensors = load_file(other.out / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(tensors["raw.context.weights"].shape, generator=generator)
    tensors["raw.context.weights"] = table
    tensors |= {n: torch.randn_like(t) for n, t in tensors.items() if n.endswith("q_head.weight")}
    rewrite(other, tensors)
    evaluate(other, tmp_path / "before")
    rows = table.shape[0] // 6
    task, variant = record["tasks"].index("held_out1"), 2
    tensors["raw.context.weights"][task * rows + variant] += 3.0
    rewrite(other, tensors)
    evaluate(other, tmp_path / "after")
    before, after = predictions(tmp_path / "before"), predictions(tmp_path / "after")
    moved = before[before["q_halt"] != after["q_halt"]]
    assert set(zip(moved["task"], moved["variant"], strict=True)) == {("held_out1", variant)}


def test_averaged_weights_are_used_unless_raw_ones_are_asked_for(
    runs: dict[str, RunPaths], evaluated: dict[str, Path], tmp_path: Path
) -> None:
    assert CONFIG.weights == "ema"
    evaluate(runs["etrm"], tmp_path, weights="raw")
    averaged, raw = (predictions(path)["q_halt"] for path in (evaluated["etrm"], tmp_path))
    assert averaged.tolist() != raw.tolist()


def test_halting_early_uses_fewer_steps(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    other = copied(runs["etrm"], tmp_path)
    tensors = load_file(other.out / "model.safetensors")
    for kind in ("raw", "ema"):
        tensors[f"{kind}.decoder.q_head.bias"] = torch.tensor([9.0, 0.0])
    rewrite(other, tensors)
    for early, expected in ((False, 3), (True, 1)):
        result = evaluate(other, tmp_path / str(early), halt_early=early)
        assert set(predictions(tmp_path / str(early))["steps"]) == {expected}
        assert result["metrics"]["all.steps"] == expected


def test_settings_of_the_score_are_used(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    result = evaluate(runs["etrm"], tmp_path, pass_k=(1, 3))
    assert set(result["pass"]) == {"1", "3"}
    assert result["evaluation"]["pass_k"] == [1, 3]


@pytest.mark.usefixtures("oracle")
def test_outputs_that_do_not_fit_are_counted(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    """One test output is larger than any lane; it counts as wrong, and is counted."""
    large = np.full((9, 9), 3, dtype=np.uint8)
    first = HELD_OUT[0]
    grown = Task(first.id, first.demos, tuple(Pair(q.input, large) for q in first.queries))
    paths = write_study(tmp_path / "data", TRAINING, [grown, *HELD_OUT[1:]])
    result = evaluate(replace(paths, out=runs["etrm"].out), tmp_path / "out")
    assert result["outputs_not_fitting_canvas"] == len(first.queries)
    credit = result["pass"]["1"]["task_fraction"]
    assert (credit["numerator"], credit["denominator"]) == (2.0, 3)


def test_held_out_tasks_are_those_of_the_evaluation_split(runs: dict[str, RunPaths]) -> None:
    assert held_out_tasks(runs["trm"].tasks) == HELD_OUT


def test_an_evaluation_does_not_look_at_answers(
    runs: dict[str, RunPaths], evaluated: dict[str, Path], tmp_path: Path
) -> None:
    """Other test outputs of the same sizes or not: the predictions stay the same."""
    poison = np.full((4, 1), 9, dtype=np.uint8)
    poisoned = [
        Task(t.id, t.demos, tuple(Pair(q.input, poison) for q in t.queries)) for t in HELD_OUT
    ]
    other = write_study(tmp_path / "data", TRAINING, poisoned)
    for name, paths in runs.items():
        evaluate(replace(other, out=paths.out), tmp_path / name)
        clean, changed = predictions(evaluated[name]), predictions(tmp_path / name)
        for column in ("task", "query", "variant", "grid", "height", "width", "q_halt"):
            assert clean[column].tolist() == changed[column].tolist()
        first = json.loads((evaluated[name] / "submission.json").read_text())
        assert first == json.loads((tmp_path / name / "submission.json").read_text())


# --- whose weights they are ---


def copied(paths: RunPaths, folder: Path) -> RunPaths:
    """A copy of a run's folder, to be damaged."""
    shutil.copytree(paths.out, folder / "run")
    return replace(paths, out=folder / "run")


def rewrite(paths: RunPaths, tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    """Other weights that the record says are its own."""
    weights, record = paths.out / "model.safetensors", paths.out / "run.json"
    save_file(tensors, weights)
    content = json.loads(record.read_text()) | {"weights_sha256": file_digest(weights), **changes}
    record.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("how", ["of another run", "flipped"])
def test_weights_that_the_run_has_not_written_are_refused(
    how: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    paths = copied(runs["etrm"], tmp_path)
    weights = paths.out / "model.safetensors"
    if how == "flipped":
        data = bytearray(weights.read_bytes())
        data[-2000:] = bytes(byte ^ 0x7F for byte in data[-2000:])
        weights.write_bytes(data)
    else:
        weights.write_bytes((runs["trm"].out / "model.safetensors").read_bytes())
    expected = json.loads((paths.out / "run.json").read_text())["weights_sha256"]
    files = (paths.out, paths.tasks, paths.augmentations)
    whole = functools.partial(evaluate, paths, tmp_path / "out")
    shard = functools.partial(evaluate_shard, *files, CONFIG, tmp_path / "shard", Shard(0, 2))
    for call in (whole, shard):
        with pytest.raises(DamagedFileError) as error:
            call()
        assert str(error.value).startswith(f"{weights}: found SHA-256 {file_digest(weights)}")
        assert expected in str(error.value)
    assert not (tmp_path / "out").exists()


def test_answers_that_are_no_numbers_are_an_error(
    runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    """But where the run diverged they are its result: it has no answers, and no task is solved."""
    paths = copied(runs["etrm"], tmp_path)
    tensors = load_file(paths.out / "model.safetensors")
    wrong = {n: torch.full_like(t, torch.nan) if "lm_head" in n else t for n, t in tensors.items()}
    assert any(tensor.isnan().any() for tensor in wrong.values())
    rewrite(paths, wrong)
    with pytest.raises(
        NotFiniteError, match=r"model\.safetensors: found logits that are not finite"
    ):
        evaluate(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rewrite(paths, wrong, stopped_early="divergence")
    score = evaluate(paths, tmp_path / "out")
    assert score["tasks_evaluated"] == 0
    assert score["pass"]["1"]["task_fraction"]["numerator"] == 0
    assert score["pass"]["1"]["task_fraction"]["denominator"] == len(HELD_OUT)
    sent = json.loads((tmp_path / "out/submission.json").read_text())
    assert set(sent) == {task.id for task in HELD_OUT}
    # The same from jobs that share it.
    tables = (paths.tasks, paths.augmentations)
    shards = [tmp_path / f"shard{number}" for number in range(2)]
    for number, path in enumerate(shards):
        evaluate_shard(paths.out, *tables, CONFIG, path, Shard(number, 2))
    shared = evaluate_run(paths.out, *tables, CONFIG, tmp_path / "shared", shards=shards)
    assert shared["pass"] == score["pass"]


def test_contexts_are_those_of_the_trained_model(
    runs: dict[str, RunPaths], evaluated: dict[str, Path]
) -> None:
    """Of an encoder for tasks of both splits; of TRM its embeddings of those that it knows."""
    for name, paths in runs.items():
        frame = pq.read_table(evaluated[name] / "contexts.parquet").to_pandas()
        assert list(frame["task"]) == [task.id for task in (*TRAINING, *HELD_OUT)]
        assert list(frame["split"]) == ["training"] * 3 + ["evaluation"] * 3
        if name == "trm":
            weights = load_weights(paths.out / "model.safetensors", "ema")
            table = weights["context.weights"].numpy()
            first = range(0, len(table), len(table) // 6)  # a task's unchanged puzzle is its first
            assert np.stack(frame["context"]) == pytest.approx(table[list(first)])
        else:
            assert len({len(row) for row in frame["context"]}) == 1
            assert np.stack(frame["context"]).std(axis=0).max() > 1e-3  # tasks differ
