"""Whole runs: the run folder, stopping early, interruption, first weights, leaks."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_run, make_tasks, write_study

from etrm.arc.task import Pair, Task
from etrm.config.execution import TrackingConfig
from etrm.config.health import HealthRule
from etrm.config.load import plain
from etrm.config.registry import CONTEXT_SOURCES
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.tables import read_tasks
from etrm.runtime.interruption import EXIT_INTERRUPTED
from etrm.storage.checkpoint import CheckpointError, load_weights, save_state
from etrm.storage.files import file_digest
from etrm.training.build import hide_answers, training_data
from etrm.training.initial_weights import LeakError
from etrm.training.outputs import OutputError
from etrm.training.run import RunPaths, train_run
from etrm.training.trainer import Trainer

OFF = TrackingConfig(wandb="disabled")


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return study(tmp_path)


def study(folder: Path) -> RunPaths:
    """Four training tasks and two held-out ones."""
    return write_study(folder, make_tasks(4), make_tasks(2, seed=7, prefix="held_out"))


def metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of a run but for what depends on the clock."""
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def train(run: RunConfig, paths: RunPaths, **places: Any) -> dict[str, Any]:
    return train_run(run, replace(paths, **places), OFF, device="cpu")


def data_of(run: RunConfig, paths: RunPaths) -> tuple[Corpus, list[Episodes]]:
    return training_data(run, paths.tasks, paths.augmentations, torch.device("cpu"))


# --- the run folder ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_run_leaves_its_folder(source: str, paths: RunPaths) -> None:
    run = make_run(source)
    record = train(run, paths)
    assert {path.name for path in paths.out.iterdir()} == {
        "model.safetensors",
        "metrics.parquet",
        "run.json",
    }
    assert json.loads((paths.out / "run.json").read_text()) == record
    assert parse(RunConfig, record["config"]) == run
    assert record["kind"] == ("trm" if source == "embedding" else "etrm")
    assert record["steps_done"] == 4
    assert record["stopped_early"] is None
    assert record["tasks"] == [f"task{i}" for i in range(4)]
    assert record["seen_tasks"]["ids"] == record["tasks"]
    assert record["parents"] == []
    assert record["init"] is None
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 1e7
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    rows = metrics(paths.out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert "all.exact_accuracy" in rows[-1]
    assert record["num_params"] == rows[-1]["num_params"]
    assert not list(paths.state.rglob("*.state"))


def test_equal_runs_are_equal_bit_for_bit(paths: RunPaths, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(make_run(), paths, out=tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_rows_come_at_their_interval_and_at_the_end(paths: RunPaths) -> None:
    blocks = {"steps": 7, "log_every": 3, "eval_every": 2}
    train(make_run(train=blocks), paths)
    rows = metrics(paths.out)
    logged = [row["step"] for row in rows if row["train/lm_loss"] is not None]
    evaluated = [row["step"] for row in rows if row["all.exact_accuracy"] is not None]
    assert logged == [3, 6, 7]
    assert evaluated == [2, 4, 6, 7]


def test_the_last_evaluation_is_made_once(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    evaluate = Trainer.evaluate
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self: (calls.append(self.step_number), evaluate(self))[1]
    )
    train(make_run(train={"steps": 4, "eval_every": 2}), paths)
    assert calls == [2, 4]


def test_tasks_and_variants_limit_what_is_trained_on(paths: RunPaths) -> None:
    record = train(make_run(train={"tasks": 2, "variants": 3}), paths)
    assert len(record["tasks"]) == 2
    assert record["puzzles"] == 6
    more = data_of(make_run(train={"tasks": 3}), paths)[0].tasks
    assert set(record["tasks"]) < {task.id for task in more}
    for seed in (0, 1):
        again = data_of(make_run(seed=seed, train={"tasks": 2}), paths)[0].tasks
        assert [task.id for task in again] == record["tasks"]


# --- what is trained on ---


def test_a_strict_run_sees_no_held_out_task(paths: RunPaths) -> None:
    corpus, _ = data_of(make_run(), paths)
    assert [task.id for task in corpus.tasks] == [f"task{i}" for i in range(4)]


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_transductive_run_sees_demos_but_no_answer(source: str, paths: RunPaths) -> None:
    corpus, episodes = data_of(make_run(source, split="transductive"), paths)
    ids = [task.id for task in corpus.tasks]
    assert [name for name in ids if name.startswith("held_out")] == ["held_out0", "held_out1"]
    for number, task in enumerate(corpus.tasks):
        if task.id.startswith("held_out"):
            hidden = set(corpus.query_pairs[number])
            assert all(corpus.pairs[pair].output is None for pair in hidden)
            for lane in episodes:
                used = set(lane.query.tolist()) | set(lane.demos.flatten().tolist())
                assert not used & hidden
                assert (lane.task == number).any() or len(episodes) > 1
    training = [
        q for n, t in enumerate(corpus.tasks) if t.id == "task1" for q in corpus.query_pairs[n]
    ]
    asked = {q for lane in episodes for q in lane.query.tolist()}
    assert set(training) <= asked


def test_answers_are_removed_and_the_rest_stays() -> None:
    (task,) = make_tasks(1)
    bare = hide_answers(task)
    assert bare.demos == task.demos
    assert [query.output for query in bare.queries] == [None] * len(task.queries)
    assert all(
        np.array_equal(a.input, b.input) for a, b in zip(bare.queries, task.queries, strict=True)
    )


@pytest.mark.parametrize("source", ["embedding", "standard"])
@pytest.mark.parametrize("split", ["strict", "transductive"])
def test_poisoned_answers_of_held_out_tasks_change_no_weight(
    source: str, split: str, tmp_path: Path
) -> None:
    """The leak test: training is the same, bit for bit, whatever the hidden outputs are."""
    poison = np.full((3, 3), 9, dtype=np.uint8)
    held_out = make_tasks(2, seed=7, prefix="held_out")
    poisoned = [
        Task(t.id, t.demos, tuple(Pair(q.input, poison) for q in t.queries)) for t in held_out
    ]
    found = []
    for name, tasks in (("clean", held_out), ("poisoned", poisoned)):
        where = write_study(tmp_path / name, make_tasks(4), tasks)
        record = train(make_run(source, split=split), where)
        found.append(load_file(where.out / "model.safetensors"))
        assert len(record["seen_tasks"]["ids"]) == (4 if split == "strict" else 6)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


# --- interruption ---


def states(paths: RunPaths) -> list[int]:
    """Steps of the states that there are."""
    return sorted(int(path.stem.removeprefix("step")) for path in paths.state.rglob("*.state"))


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """A real signal arrives in the middle of a step."""
    original = Trainer.step

    def interrupted(self: Trainer) -> None:
        if self.step_number + 1 == step:
            os.kill(os.getpid(), number)
        original(self)

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.parametrize("source", CONTEXT_SOURCES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_was(
    source: str, number: signal.Signals, paths: RunPaths, tmp_path: Path
) -> None:
    run = make_run(source, train={"steps": 8, "log_every": 3, "save_every": 100, "eval_every": 4})
    train(run, paths, out=tmp_path / "whole", state=tmp_path / "other")
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, 5, number)
        with pytest.raises(SystemExit) as exit_code:
            train(run, paths)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert not paths.out.exists()
    assert states(paths) == [4, 5]  # before the evaluation, and now
    steps = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.step
        monkeypatch.setattr(
            Trainer, "step", lambda self: (original(self), steps.append(self.step_number))
        )
        record = train(run, paths)
    assert steps == [6, 7, 8]
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (paths.out / "model.safetensors").read_bytes() == whole
    assert metrics(paths.out) == metrics(tmp_path / "whole")
    assert record["steps_done"] == 8
    assert not list(paths.state.rglob("*.state"))


def test_a_killed_run_goes_on_from_its_last_saved_state(
    paths: RunPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is saved at the end; the newest state is damaged as well."""
    run = make_run(train={"steps": 8, "save_every": 2})
    train(run, paths, out=tmp_path / "whole", state=tmp_path / "other")
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = Trainer.step

        def die(self: Trainer) -> None:
            if self.step_number == 7:
                raise KeyboardInterrupt
            original(self)

        monkeypatch.setattr(Trainer, "step", die)
        with pytest.raises(KeyboardInterrupt):
            train(run, paths)
    assert states(paths) == [4, 6]
    newest = max(paths.state.rglob("*.state"))
    newest.write_bytes(newest.read_bytes()[:-5])
    with caplog.at_level(logging.INFO):
        train(run, paths)
    assert "is damaged" in caplog.text
    assert "resuming from step 4" in caplog.text
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (paths.out / "model.safetensors").read_bytes() == whole
    assert metrics(paths.out) == metrics(tmp_path / "whole")


def test_a_state_of_another_run_is_not_resumed(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train(make_run(), paths)
    monkeypatch.undo()
    steps = []
    original = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self: (steps.append(self.step_number), original(self))
    )
    train(make_run(train={"lr": 2e-3}), paths)
    assert steps[0] == 0
    assert len(list(paths.state.rglob("*.state"))) == 1  # that of the other run stays


def slow_evaluation(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """A real signal arrives in the evaluation of a step, which would go on for a minute."""
    original = Trainer.evaluate

    def evaluate(self: Trainer) -> dict[str, float]:
        if self.step_number == step:
            os.kill(os.getpid(), number)
            time.sleep(60)
        return original(self)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)


@pytest.mark.parametrize("step", [4, 6])
def test_a_signal_does_not_wait_for_an_evaluation(
    step: int, paths: RunPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 6 is the last: that evaluation is made by a run that has no step left to do."""
    run = make_run(train={"steps": 6, "save_every": 100, "eval_every": 4})
    train(run, paths, out=tmp_path / "whole", state=tmp_path / "other")
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("etrm.training.recorder.QUICK_SECONDS", 0.0)
        slow_evaluation(monkeypatch, step, signal.SIGINT)
        with pytest.raises(SystemExit) as exit_code, caplog.at_level(logging.INFO):
            train(run, paths)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert time.monotonic() - began < 10
    assert states(paths)[-1] == step
    assert (
        f"SIGINT: stopped evaluating step {step}; the state of step {step} is saved" in caplog.text
    )
    train(run, paths)
    assert metrics(paths.out) == metrics(tmp_path / "whole")


def test_a_run_that_was_ended_and_then_interrupted_is_not_trained_on(paths: RunPaths) -> None:
    """Its last evaluation is missing, and nothing else."""
    rule = HealthRule("train/lm_loss", stop=0.0, wrong="above", from_step=0, window=3)
    health = {"rules": {"divergence": plain(rule)}}
    run = make_run(train={"steps": 6, "stop_on_health": True}, health=health)
    with pytest.MonkeyPatch.context() as monkeypatch:
        slow_evaluation(monkeypatch, 3, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(run, paths)
    record = train(run, paths)
    assert record["steps_done"] == 3
    assert record["stopped_early"] == "divergence"


def test_an_interruption_before_an_evaluation_leaves_it_to_the_run_that_goes_on(
    paths: RunPaths, tmp_path: Path
) -> None:
    run = make_run(train={"steps": 6, "eval_every": 2, "target_exact_accuracy": 0.9})
    evaluated = []

    def evaluate(self: Trainer) -> dict[str, float]:
        evaluated.append(self.step_number)
        return {"all.exact_accuracy": 1.0}

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "evaluate", evaluate)
        interrupt_at(monkeypatch, 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(run, paths)
        assert evaluated == []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "evaluate", evaluate)
        record = train(run, paths)
    assert evaluated == [2]
    assert record["stopped_early"] == "target"
    assert record["steps_done"] == 2
    assert not states(paths)


def test_a_signal_before_the_first_step_ends_the_run_at_once(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("etrm.training.build.training_data", load)
    with pytest.raises(SystemExit) as exit_code, caplog.at_level(logging.INFO):
        train(make_run(), paths)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert "SIGTERM: stopped before the first step; run the same command again" in caplog.text


def test_a_resumed_run_repeats_no_warning(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    rule = HealthRule("train/lm_loss", warn=0.0, wrong="above", from_step=0, window=1)
    run = make_run(train={"steps": 6}, health={"rules": {"divergence": plain(rule)}})
    with caplog.at_level(logging.WARNING):
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt_at(monkeypatch, 4, signal.SIGTERM)
            with pytest.raises(SystemExit):
                train(run, paths)
        assert caplog.text.count("health, step") == 1
        train(run, paths)
    assert caplog.text.count("health, step") == 1


# --- folders that cannot be written ---


def fail_saves(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    original = save_state

    def save(folder: Path, step: int, *rest: Any) -> Path:
        if step in steps:
            raise OSError(28, "No space left on device")
        return original(folder, step, *rest)

    monkeypatch.setattr("etrm.training.recorder.save_state", save)


def test_a_state_that_cannot_be_written_does_not_end_training(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_saves(monkeypatch, {4, 6})
    with caplog.at_level(logging.WARNING):
        record = train(make_run(train={"steps": 10, "save_every": 2}), paths)
    assert record["steps_done"] == 10
    warnings = [r.getMessage() for r in caplog.records if "could not be written" in r.message]
    assert len(warnings) == 1
    for part in ("step0000000004.state", "No space left", "MiB free", "make room", "step 2"):
        assert part in warnings[0]


def test_a_signal_whose_save_fails_says_where_the_run_goes_on(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(train={"steps": 8, "save_every": 2})
    with pytest.MonkeyPatch.context() as monkeypatch, caplog.at_level(logging.WARNING):
        fail_saves(monkeypatch, {5})
        interrupt_at(monkeypatch, 5, signal.SIGUSR1)
        with pytest.raises(SystemExit) as exit_code:
            train(run, paths)
    assert exit_code.value.code == EXIT_INTERRUPTED
    assert "SIGUSR1: step 5 could not be saved (" in caplog.text
    assert "the last state is that of 4: 1 step is lost" in caplog.text
    assert states(paths) == [2, 4]


def test_results_that_cannot_be_written_are_written_by_the_next_run(
    paths: RunPaths, tmp_path: Path
) -> None:
    run = make_run(train={"steps": 5, "save_every": 2, "eval_every": 2})
    train(run, paths, out=tmp_path / "whole", state=tmp_path / "other")
    with pytest.MonkeyPatch.context() as monkeypatch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("etrm.training.outputs.write_json_atomic", full)
        with pytest.raises(OutputError, match=r"No space left.*resumes from the state of step 5"):
            train(run, paths)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "step", None)  # not one more
        train(run, paths)
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (paths.out / "model.safetensors").read_bytes() == whole
    assert metrics(paths.out) == metrics(tmp_path / "whole")
    assert not states(paths)


# --- ending early ---


@pytest.mark.parametrize(("reached", "steps"), [(0.9, 2), (0.89, 6)])
def test_a_target_ends_a_run(
    reached: float, steps: int, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"all.exact_accuracy": reached})
    run = make_run(train={"steps": 6, "eval_every": 2, "target_exact_accuracy": 0.9})
    record = train(run, paths)
    assert record["steps_done"] == steps
    assert record["stopped_early"] == ("target" if steps == 2 else None)
    assert metrics(paths.out)[-1]["all.exact_accuracy"] == reached


@pytest.mark.parametrize("stopping", [True, False])
def test_a_health_rule_ends_a_run_where_it_may(
    stopping: bool, paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    rule = HealthRule("train/lm_loss", stop=0.0, wrong="above", from_step=0, window=3)
    health = {"rules": {"divergence": plain(rule)}}
    run = make_run(train={"steps": 6, "stop_on_health": stopping}, health=health)
    with caplog.at_level(logging.WARNING):
        record = train(run, paths)
    assert record["stopped_early"] == ("divergence" if stopping else None)
    assert record["steps_done"] == (3 if stopping else 6)
    assert caplog.text.count("health, step") == 1
    assert (paths.out / "model.safetensors").is_file()
    # The finding is an event of the record, and of the row where it was first made.
    (event,) = record["health"]
    assert (event["finding"], event["severity"], event["step"]) == ("divergence", "stop", 3)
    marked = {row["step"]: row["health/divergence"] for row in metrics(paths.out)}
    assert [step for step, level in marked.items() if level is not None] == [3]
    assert marked[3] == 3.0


def test_a_loss_that_is_not_a_number_ends_every_run_with_its_record(paths: RunPaths) -> None:
    run = make_run(train={"steps": 6, "lr": 1e30, "weight_decay": 0.0, "warmup_steps": 0})
    record = train(run, paths)
    assert record["stopped_early"] == "divergence"
    assert record["steps_done"] < 6
    rows = metrics(paths.out)
    assert rows[-1]["train/lm_loss"] != rows[-1]["train/lm_loss"]
    assert rows[-1]["all.exact_accuracy"] == 0.0


# --- first weights ---


@pytest.fixture
def parent(paths: RunPaths, tmp_path: Path) -> Path:
    """A strict pretraining with embeddings."""
    train(make_run("embedding", experiment="trm_strict"), paths, out=tmp_path / "parent")
    return tmp_path / "parent"


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_a_decoder_starts_from_its_parent(
    which: str, parent: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, torch.Tensor] = {}
    build = Trainer.__init__

    def listen(self: Trainer, run: RunConfig, model: Any, *rest: Any) -> None:
        started.update({n: t.clone() for n, t in model.state_dict().items()})
        build(self, run, model, *rest)

    monkeypatch.setattr(Trainer, "__init__", listen)
    run = make_run(decoder={"init": "trm_strict", "weights": which})
    record = train(run, paths, parent=parent)
    given = load_weights(parent / "model.safetensors", which)
    for name, tensor in given.items():
        if name.startswith("decoder."):
            assert torch.equal(started[name], tensor)
    parents = json.loads((parent / "run.json").read_text())
    assert record["init"]["weights"] == which
    assert record["init"]["skipped"] == ["context.weights"]
    assert record["init"]["new"] == []
    assert record["parents"] == [
        {k: parents[k] for k in ("experiment", "stage", "seed", "split", "key")}
    ]
    assert record["seen_tasks"] == parents["seen_tasks"]


def test_tasks_of_parents_are_seen_tasks(parent: Path, paths: RunPaths, tmp_path: Path) -> None:
    """Transitively: the second generation lists what its grandparent saw."""
    few = {"train": {"tasks": 1}, "decoder": {"init": "trm_strict"}}
    child = train(make_run(**few), paths, parent=parent, out=tmp_path / "child")
    assert len(child["tasks"]) == 1
    assert child["seen_tasks"]["ids"] == [f"task{i}" for i in range(4)]
    grandchild = train(make_run(**few), paths, parent=tmp_path / "child", out=tmp_path / "third")
    assert grandchild["seen_tasks"]["ids"] == [f"task{i}" for i in range(4)]
    assert grandchild["seen_tasks"] == child["seen_tasks"]


def test_a_strict_run_refuses_a_parent_that_saw_held_out_tasks(
    paths: RunPaths, tmp_path: Path
) -> None:
    leaky = make_run("embedding", experiment="trm", split="transductive")
    train(leaky, paths, out=tmp_path / "leaky")
    run = make_run(decoder={"init": "trm"})
    with pytest.raises(
        LeakError, match=r"'trm' has seen 2 .*held-out tasks \(held_out0, held_out1\)"
    ):
        train(run, paths, parent=tmp_path / "leaky")
    assert not paths.out.exists()
    assert not list(paths.state.rglob("*.state"))
    allowed = make_run(decoder={"init": "trm"}, split="transductive")
    record = train(allowed, paths, parent=tmp_path / "leaky")
    assert len(record["seen_tasks"]["ids"]) == 6


def test_a_parent_of_another_size_is_an_error_before_training(
    parent: Path, paths: RunPaths
) -> None:
    run = make_run(decoder={"init": "trm_strict"}, model={"width": 32})
    with pytest.raises(CheckpointError, match="width 16 there and 32 here"):
        train(run, paths, parent=parent)
    assert not paths.out.exists()


def test_a_frozen_decoder_is_that_of_its_parent(parent: Path, paths: RunPaths) -> None:
    run = make_run(decoder={"init": "trm_strict", "frozen_steps": 4, "weights": "raw"})
    train(run, paths, parent=parent)
    ours = load_weights(paths.out / "model.safetensors", "raw")
    theirs = load_weights(parent / "model.safetensors", "raw")
    same = [n for n in ours if n.startswith("decoder.") and torch.equal(ours[n], theirs[n])]
    assert same == [n for n in ours if n.startswith("decoder.")]


def test_a_record_says_which_data_code_and_weights_it_was_made_with(
    parent: Path, paths: RunPaths
) -> None:
    record = train(make_run(decoder={"init": "trm_strict"}), paths, parent=parent)
    data = {name: file_digest(getattr(paths, name)) for name in ("tasks", "augmentations")}
    assert record["data"] == data
    assert {"etrm.training.run", "etrm.models.encoders.standard", "etrm.models.losses"} <= set(
        record["code"]
    )
    assert "etrm.models.encoders.lpn" not in record["code"]
    theirs = json.loads((parent / "run.json").read_text())
    assert record["init"]["sha256"] == theirs["weights_sha256"]


def test_the_key_of_a_run_depends_on_its_data_and_parent(
    parent: Path, paths: RunPaths, tmp_path: Path
) -> None:
    run = make_run(decoder={"init": "trm_strict"})
    keys = [train(run, paths, parent=parent)["key"]]
    keys.append(train(replace(run, seed=1), paths, parent=parent)["key"])
    other = study(tmp_path / "other")
    records = read_tasks(other.tasks)
    assert len(records) == 6
    fewer = write_study(tmp_path / "fewer", make_tasks(3), make_tasks(2, seed=7, prefix="held_out"))
    keys.append(train(run, fewer, parent=parent)["key"])
    train(make_run("embedding", seed=5), paths, out=tmp_path / "second")
    keys.append(train(run, paths, parent=tmp_path / "second")["key"])
    assert len(set(keys)) == 4
    assert train(run, paths, parent=parent)["key"] == keys[0]
