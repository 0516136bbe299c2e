"""Whole runs: the run folder, stopping early, interruption, first weights, leaks."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.runtime.interruption import EXIT_INTERRUPTED
from etrm.storage.checkpoint import CheckpointError, load_weights, save_state
from etrm.storage.files import table_digest, write_json_atomic
from etrm.training.build import hide_answers, training_data
from etrm.training.initial_weights import LeakError
from etrm.training.outputs import OutputError
from etrm.training.run import RunPaths, train_run
from etrm.training.trainer import Trainer

Patch, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
Whole = Callable[[str], Path]
HELD_OUT = make_tasks(2, seed=7, prefix="held_out")
TRAINING = [f"task{i}" for i in range(4)]
# Its last step is none of `eval_every`: the evaluation there is made when no step is left.
RESUMABLE = {"steps": 7, "log_every": 3, "save_every": 2, "eval_every": 4}
STEP, EVALUATE = Trainer.step, Trainer.evaluate


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Four training tasks and two held-out ones."""
    return write_study(tmp_path_factory.mktemp("tables"), make_tasks(4), HELD_OUT)


@pytest.fixture
def paths(tables: RunPaths, tmp_path: Path) -> RunPaths:
    return replace(tables, out=tmp_path / "run", state=tmp_path / "state", wandb=tmp_path)


@pytest.fixture(scope="module")
def parent(tables: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strict pretraining with embeddings."""
    folder = tmp_path_factory.mktemp("parent")
    train(make_run("embedding", experiment="trm_strict"), tables, out=folder, state=folder / "s")
    return folder


@pytest.fixture(scope="module")
def whole(tables: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Folders of `RESUMABLE` runs that nothing interrupted, by context source."""
    found: dict[str, Path] = {}

    def of(source: str) -> Path:
        if source not in found:
            found[source] = tmp_path_factory.mktemp(source)
            run = make_run(source, train=RESUMABLE)
            train(run, tables, out=found[source], state=found[source] / "s")
        return found[source]

    return of


def metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of a run but for columns that depend on the clock."""
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def assert_same(first: Path, second: Path) -> None:
    """Weights and metrics of two run folders are equal bit for bit."""
    one, two = ((folder / "model.safetensors").read_bytes() for folder in (first, second))
    assert one == two
    assert metrics(first) == metrics(second)


def train(run: RunConfig, paths: RunPaths, **places: Any) -> dict[str, Any]:
    off = TrackingConfig(wandb="disabled")
    return train_run(run, replace(paths, **places), off, device="cpu")


def data_of(run: RunConfig, paths: RunPaths) -> tuple[Corpus, list[Episodes]]:
    return training_data(run, paths.tasks, paths.augmentations, torch.device("cpu"))[:2]


def diverging(**train: Any) -> RunConfig:
    """A run with a rule that its third row breaks."""
    rule = HealthRule("train/lm_loss", stop=0.0, wrong="above", from_step=0, window=3)
    return make_run(train={"steps": 6, **train}, health={"rules": {"divergence": plain(rule)}})


# --- the run folder ---


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_run_leaves_its_folder(source: str, paths: RunPaths) -> None:
    run = make_run(source)
    record = train(run, paths)
    files = {path.name for path in paths.out.iterdir()}
    assert files == {"model.safetensors", "metrics.parquet", "run.json"}
    assert json.loads((paths.out / "run.json").read_text()) == record
    assert parse(RunConfig, record["config"]) == run
    expected = {
        "kind": "trm" if source == "embedding" else "etrm",
        "steps_done": 4,
        "stopped_early": None,
        "tasks": TRAINING,
        "parents": [],
        "init": None,
        "data": {name: table_digest(getattr(paths, name)) for name in ("tasks", "augmentations")},
    }
    assert {name: record[name] for name in expected} == expected
    assert record["seen_tasks"]["ids"] == TRAINING
    assert record["seconds"] > 0
    assert record["peak_memory_bytes"] > 1e7
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    rows = metrics(paths.out)
    first = [] if source == "embedding" else [0]  # the probe of the first weights
    assert [row["step"] for row in rows] == [*first, 1, 2, 3, 4]
    assert "all.exact_accuracy" in rows[-1]
    assert record["num_params"] == rows[-1]["num_params"]
    assert not states(paths)


def test_rows_and_evaluations_come_at_their_intervals_and_at_the_end(
    paths: RunPaths, monkeypatch: Patch
) -> None:
    calls = []
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self: (calls.append(self.step_number), EVALUATE(self))[1]
    )
    for steps in (7, 4):
        train(make_run(train={"steps": steps, "log_every": 3, "eval_every": 2}), paths)
        rows = metrics(paths.out)
        logged = [row["step"] for row in rows if row["train/lm_loss"] is not None]
        evaluated = [row["step"] for row in rows if row["all.exact_accuracy"] is not None]
        assert logged == ([3, 6, 7] if steps == 7 else [3, 4])
        assert evaluated == calls == ([2, 4, 6, 7] if steps == 7 else [2, 4])  # each once
        calls.clear()


def test_there_is_a_row_at_the_step_that_the_guide_looks_at(paths: RunPaths) -> None:
    train(make_run(train={"steps": 12, "log_every": 100}), paths)
    rows = [row for row in metrics(paths.out) if row["train/lm_loss"] is not None]
    assert [row["step"] for row in rows] == [10, 12]
    assert all(row["train/encoder_cross_sample_var"] is not None for row in rows)


def test_tasks_and_variants_limit_the_corpus(paths: RunPaths) -> None:
    record = train(make_run(train={"tasks": 2, "variants": 3}), paths)
    assert len(record["tasks"]) == 2
    assert record["puzzles"] == 6
    more = data_of(make_run(train={"tasks": 3}), paths)[0].tasks
    assert set(record["tasks"]) < {task.id for task in more}
    for seed in (0, 1):
        again = data_of(make_run(seed=seed, train={"tasks": 2}), paths)[0].tasks
        assert [task.id for task in again] == record["tasks"]


# --- training data ---


def test_a_strict_run_sees_no_held_out_task(paths: RunPaths) -> None:
    corpus, _ = data_of(make_run(), paths)
    assert [task.id for task in corpus.tasks] == TRAINING


@pytest.mark.parametrize("source", ["embedding", "standard"])
def test_a_transductive_run_sees_demos_but_no_answer(source: str, paths: RunPaths) -> None:
    corpus, episodes = data_of(make_run(source, split="transductive"), paths)
    ids = [task.id for task in corpus.tasks]
    assert [name for name in ids if name.startswith("held_out")] == ["held_out0", "held_out1"]
    for number, name in enumerate(ids):
        if name.startswith("held_out"):
            hidden = set(corpus.query_pairs[number])
            assert all(corpus.pairs[pair].output is None for pair in hidden)
            for lane in episodes:
                used = set(lane.query.tolist()) | set(lane.pools.members.tolist())
                assert not used & hidden
                assert (lane.task == number).any() or len(episodes) > 1
    asked = {query for lane in episodes for query in lane.query.tolist()}
    assert set(corpus.query_pairs[ids.index("task1")]) <= asked


def test_answers_are_removed_and_the_rest_stays() -> None:
    (task,) = make_tasks(1)
    bare = hide_answers(task)
    assert bare.demos == task.demos
    assert [query.output for query in bare.queries] == [None] * len(task.queries)
    for query, before in zip(bare.queries, task.queries, strict=True):
        assert np.array_equal(query.input, before.input)


@pytest.mark.parametrize("source", ["embedding", "standard"])
@pytest.mark.parametrize("split", ["strict", "transductive"])
def test_poisoned_answers_of_held_out_tasks_change_no_weight(
    source: str, split: str, tmp_path: Path
) -> None:
    """The leak test: training is the same, bit for bit, whatever the hidden outputs are."""
    poison = np.full((3, 3), 9, dtype=np.uint8)
    poisoned = [
        Task(t.id, t.demos, tuple(Pair(q.input, poison) for q in t.queries)) for t in HELD_OUT
    ]
    found = []
    for name, tasks in (("clean", HELD_OUT), ("poisoned", poisoned)):
        where = write_study(tmp_path / name, make_tasks(4), tasks)
        record = train(make_run(source, split=split), where)
        found.append(load_file(where.out / "model.safetensors"))
        assert len(record["seen_tasks"]["ids"]) == (4 if split == "strict" else 6)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


# --- interruption ---


def states(paths: RunPaths) -> list[int]:
    """Steps of the states that there are."""
    return sorted(int(path.stem.removeprefix("step")) for path in paths.state.rglob("*.state"))


@contextmanager
def interrupted(
    step: int, number: signal.Signals = signal.SIGTERM, function: str = "step"
) -> Iterator[Patch]:
    """Within the block, a real signal arrives in a step, or in its evaluation; it ends the run.

    An evaluation would go on for a minute.
    """

    def signalled(self: Trainer) -> Any:
        if function == "step" and self.step_number + 1 == step:
            os.kill(os.getpid(), number)
        elif function == "evaluate" and self.step_number == step:
            os.kill(os.getpid(), number)
            time.sleep(60)
        return STEP(self) if function == "step" else EVALUATE(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, function, signalled)
        with pytest.raises(SystemExit) as ended:
            yield monkeypatch
    assert ended.value.code == EXIT_INTERRUPTED


@pytest.fixture
def steps_done(monkeypatch: Patch) -> list[int]:
    """Steps that trainers do from here on."""
    steps: list[int] = []

    def step(self: Trainer) -> None:
        STEP(self)
        steps.append(self.step_number)

    monkeypatch.setattr(Trainer, "step", step)
    return steps


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("standard", signal.SIGTERM),
        ("standard", signal.SIGUSR1),
        ("standard", signal.SIGINT),
        ("embedding", signal.SIGTERM),
        ("recurrent_trm", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_resumes(
    source: str, number: signal.Signals, paths: RunPaths, whole: Whole, steps_done: list[int]
) -> None:
    run, handled = make_run(source, train=RESUMABLE), (signal.SIGTERM, signal.SIGUSR1)
    expected, before = whole(source), [signal.getsignal(s) for s in (*handled, signal.SIGINT)]
    with interrupted(5, number):
        train(run, paths)
    assert [signal.getsignal(s) for s in (*handled, signal.SIGINT)] == before
    assert not paths.out.exists()
    assert states(paths) == [4, 5]
    steps_done.clear()
    assert train(run, paths)["steps_done"] == 7
    assert steps_done == [6, 7]
    assert_same(paths.out, expected)
    assert not states(paths)


def test_a_killed_run_resumes_from_its_newest_intact_state(
    paths: RunPaths, whole: Whole, caplog: Log
) -> None:
    """Nothing is saved at the end; the newest state is damaged as well."""
    run = make_run(train=RESUMABLE)
    with pytest.MonkeyPatch.context() as monkeypatch:

        def die(self: Trainer) -> None:
            if self.step_number == 6:
                raise KeyboardInterrupt
            STEP(self)

        monkeypatch.setattr(Trainer, "step", die)
        with pytest.raises(KeyboardInterrupt):
            train(run, paths)
    assert states(paths) == [4, 6]
    newest = max(paths.state.rglob("*.state"))
    newest.write_bytes(newest.read_bytes()[:-5])
    with caplog.at_level(logging.INFO):
        train(run, paths)
    assert "is damaged" in caplog.text
    assert "from step 4 " in caplog.text
    assert_same(paths.out, whole("standard"))


def test_a_state_of_another_run_is_not_resumed(paths: RunPaths, steps_done: list[int]) -> None:
    with interrupted(2):
        train(make_run(), paths)
    steps_done.clear()
    train(make_run(train={"lr": 2e-3}), paths)
    assert steps_done[0] == 1
    assert len(states(paths)) == 1  # that of the other run stays


@pytest.mark.parametrize("step", [4, 7])
def test_a_signal_does_not_wait_for_a_long_evaluation(
    step: int, paths: RunPaths, whole: Whole, caplog: Log, steps_done: list[int]
) -> None:
    run, expected = make_run(train=RESUMABLE), whole("standard")
    with caplog.at_level(logging.INFO), interrupted(step, signal.SIGINT, "evaluate") as monkeypatch:
        monkeypatch.setattr("etrm.training.recorder.QUICK_SECONDS", 0.0)
        train(run, paths)
    assert states(paths)[-1] == step
    assert f"SIGINT: stopped evaluating step {step}" in caplog.text
    steps_done.clear()
    train(run, paths)
    assert steps_done == list(range(step + 1, 8))
    assert_same(paths.out, expected)


def test_a_run_that_was_ended_and_then_interrupted_is_only_evaluated(
    paths: RunPaths, steps_done: list[int]
) -> None:
    run = diverging(stop_on_health=True)
    with interrupted(3, function="evaluate"):
        train(run, paths)
    steps_done.clear()
    record = train(run, paths)
    assert steps_done == []
    assert (record["steps_done"], record["stopped_early"]) == (3, "divergence")


def test_an_interruption_before_an_evaluation_leaves_it_to_the_resumed_run(
    paths: RunPaths, monkeypatch: Patch
) -> None:
    run = make_run(train={"steps": 6, "eval_every": 2, "target_exact_accuracy": 0.9})
    evaluated = []

    def evaluate(self: Trainer) -> dict[str, float]:
        evaluated.append(self.step_number)
        return {"all.exact_accuracy": 1.0}

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    with interrupted(2):
        train(run, paths)
    assert evaluated == []
    record = train(run, paths)
    assert evaluated == [2]
    assert (record["steps_done"], record["stopped_early"]) == (2, "target")
    assert not states(paths)


def test_a_signal_before_the_first_step_ends_the_run_at_once(
    paths: RunPaths, monkeypatch: Patch, caplog: Log
) -> None:
    def load(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("etrm.training.build.training_data", load)
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.INFO):
        train(make_run(), paths)
    assert ended.value.code == EXIT_INTERRUPTED
    assert "SIGTERM: stopped before the first step" in caplog.text


def test_a_resumed_run_repeats_no_warning(paths: RunPaths, caplog: Log) -> None:
    run = diverging()
    with caplog.at_level(logging.WARNING):
        with interrupted(4):
            train(run, paths)
        assert caplog.text.count("health, step") == 1
        train(run, paths)
    assert caplog.text.count("health, step") == 1


# --- folders that cannot be written ---


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def fail_saves(monkeypatch: Patch, *steps: int) -> None:
    def save(folder: Path, step: int, *rest: Any) -> Path:
        if step in steps:
            full()
        return save_state(folder, step, *rest)

    monkeypatch.setattr("etrm.training.recorder.save_state", save)


def test_a_state_that_cannot_be_written_does_not_end_training(
    paths: RunPaths, monkeypatch: Patch, caplog: Log
) -> None:
    fail_saves(monkeypatch, 4, 6)
    with caplog.at_level(logging.WARNING):
        record = train(make_run(train={"steps": 10, "save_every": 2}), paths)
    assert record["steps_done"] == 10
    (warning,) = [r.getMessage() for r in caplog.records if "could not be written" in r.message]
    for part in ("step0000000004.state", "No space left", "MiB free", "make room", "step 2"):
        assert part in warning


def test_a_signal_whose_save_fails_says_what_is_lost(paths: RunPaths, caplog: Log) -> None:
    run = make_run(train={"steps": 8, "save_every": 2})
    with caplog.at_level(logging.WARNING), interrupted(5, signal.SIGUSR1) as monkeypatch:
        fail_saves(monkeypatch, 5)
        train(run, paths)
    assert "SIGUSR1: step 5 could not be saved (" in caplog.text
    assert "of 4: 1 step is lost" in caplog.text
    assert states(paths) == [2, 4]


def test_results_that_cannot_be_written_are_written_by_the_next_run(
    paths: RunPaths, whole: Whole
) -> None:
    run, expected = make_run(train=RESUMABLE), whole("standard")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("etrm.training.outputs.write_json_atomic", full)
        with pytest.raises(OutputError, match=r"No space left.* state of step 7"):
            train(run, paths)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Trainer, "step", None)  # not one more
        train(run, paths)
    assert_same(paths.out, expected)
    assert not states(paths)


def test_results_are_tried_again_when_the_state_has_found_room(
    paths: RunPaths, whole: Whole, monkeypatch: Patch
) -> None:
    tried: list[Path] = []

    def full_at_first(path: Path, content: Any) -> None:
        tried.append(path)
        if len(tried) == 1:
            full()
        write_json_atomic(path, content)

    monkeypatch.setattr("etrm.training.outputs.write_json_atomic", full_at_first)
    train(make_run(train=RESUMABLE), paths)
    assert len(tried) == 2
    assert_same(paths.out, whole("standard"))


# --- ending early ---


@pytest.mark.parametrize(("reached", "steps"), [(0.9, 2), (0.89, 6)])
def test_a_target_ends_a_run(
    reached: float, steps: int, paths: RunPaths, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"all.exact_accuracy": reached})
    run = make_run(train={"steps": 6, "eval_every": 2, "target_exact_accuracy": 0.9})
    record = train(run, paths)
    assert record["steps_done"] == steps
    assert record["stopped_early"] == ("target" if steps == 2 else None)
    assert metrics(paths.out)[-1]["all.exact_accuracy"] == reached


@pytest.mark.parametrize("stopping", [True, False])
def test_a_health_rule_ends_a_run_where_it_may(
    stopping: bool, paths: RunPaths, caplog: Log
) -> None:
    with caplog.at_level(logging.WARNING):
        record = train(diverging(stop_on_health=stopping), paths)
    assert record["stopped_early"] == ("divergence" if stopping else None)
    assert record["steps_done"] == (3 if stopping else 6)
    assert caplog.text.count("health, step") == 1
    assert (paths.out / "model.safetensors").is_file()
    # The finding is an event of the record, and of the row where it was first made.
    (event,) = record["health"]
    assert (event["finding"], event["severity"], event["step"]) == ("divergence", "stop", 3)
    marked = {row["step"]: row["health/divergence"] for row in metrics(paths.out)}
    assert {step: level for step, level in marked.items() if level is not None} == {3: 3.0}


def test_a_finding_by_the_clock_is_in_the_record_and_in_no_row(paths: RunPaths) -> None:
    """Rows are equal bit for bit wherever a run is made."""
    rules = {
        name: {"metric": metric, "wrong": "above", "warn": 0.0, "from_step": 1}
        for name, metric in (("by_clock", "perf/examples_per_second"), ("by_step", "train/steps"))
    }
    run = make_run(health={"rules": rules}, train={"steps": 4, "log_every": 1})
    record = train(run, paths)
    assert {"by_clock", "by_step"} <= {each["finding"] for each in record["health"]}
    columns = {name for row in metrics(paths.out) for name in row}
    assert "health/by_step" in columns
    assert "health/by_clock" not in columns


def test_a_loss_that_is_not_a_number_ends_every_run_with_its_record(paths: RunPaths) -> None:
    run = make_run(train={"steps": 6, "lr": 1e30, "weight_decay": 0.0, "warmup_steps": 0})
    record = train(run, paths)
    assert record["stopped_early"] == "divergence"
    assert record["steps_done"] < 6
    last = metrics(paths.out)[-1]
    assert np.isnan(last["train/lm_loss"])
    assert last["all.exact_accuracy"] == 0.0


# --- first weights ---


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_a_decoder_starts_from_its_parent(
    which: str, parent: Path, paths: RunPaths, monkeypatch: Patch
) -> None:
    started: dict[str, torch.Tensor] = {}
    build = Trainer.__init__

    def listen(self: Trainer, run: RunConfig, model: Any, *rest: Any) -> None:
        started.update({n: t.clone() for n, t in model.state_dict().items()})
        build(self, run, model, *rest)

    monkeypatch.setattr(Trainer, "__init__", listen)
    run = make_run(decoder={"init": "trm_strict", "weights": which, "frozen_steps": 4})
    record = train(run, paths, parent=parent)
    given = load_weights(parent / "model.safetensors", which)
    after = load_weights(paths.out / "model.safetensors", "raw")
    decoder = [name for name in after if name.startswith("decoder.")]
    for name in decoder:
        assert torch.equal(started[name], given[name])
        assert torch.equal(after[name], given[name])  # frozen
    theirs = json.loads((parent / "run.json").read_text())
    assert record["init"]["weights"] == which
    assert record["init"]["skipped"] == ["context.weights"]
    assert record["init"]["new"] == []
    assert record["init"]["sha256"] == theirs["weights_sha256"]
    names = ("experiment", "stage", "seed", "split", "key")
    assert record["parents"] == [{name: theirs[name] for name in names}]
    assert record["seen_tasks"] == theirs["seen_tasks"]
    assert {"etrm.training.loop", "etrm.models.encoders.standard"} <= set(record["code"])
    assert not {"etrm.training.recorder", "etrm.models.encoders.lpn"} & set(record["code"])


def test_tasks_of_parents_are_seen_tasks(parent: Path, paths: RunPaths, tmp_path: Path) -> None:
    """Transitively: the second generation lists the tasks of its grandparent."""
    run = make_run(train={"tasks": 1}, decoder={"init": "trm_strict"})
    child = train(run, paths, parent=parent, out=tmp_path / "child")
    assert len(child["tasks"]) == 1
    grandchild = train(run, paths, parent=tmp_path / "child", out=tmp_path / "third")
    assert grandchild["seen_tasks"] == child["seen_tasks"]
    assert child["seen_tasks"]["ids"] == TRAINING


def test_a_strict_run_refuses_a_parent_that_saw_held_out_tasks(
    paths: RunPaths, tmp_path: Path
) -> None:
    leaky = make_run("embedding", experiment="trm", split="transductive")
    train(leaky, paths, out=tmp_path / "leaky")
    with pytest.raises(LeakError, match=r"'trm' .* \(held_out0, held_out1\)"):
        train(make_run(decoder={"init": "trm"}), paths, parent=tmp_path / "leaky")
    assert not paths.out.exists()
    assert not states(paths)
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


def test_the_key_of_a_run_depends_on_its_data_and_parent(
    parent: Path, paths: RunPaths, tmp_path: Path
) -> None:
    run = make_run(decoder={"init": "trm_strict"}, train={"steps": 1})
    fewer = write_study(tmp_path / "fewer", make_tasks(3), HELD_OUT)
    train(make_run("embedding", seed=5), paths, out=tmp_path / "second")
    keys = [
        train(run, paths, parent=parent)["key"],
        train(replace(run, seed=1), paths, parent=parent)["key"],
        train(run, fewer, parent=parent)["key"],
        train(run, paths, parent=tmp_path / "second")["key"],
    ]
    assert len(set(keys)) == 4
    assert train(run, paths, parent=parent)["key"] == keys[0]


# --- continuing a shorter run ---


def test_a_longer_run_continues_a_shorter_one_to_the_same_weights(
    tables: RunPaths, whole: Whole, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Bit for bit, and without doing the shorter one's steps again."""
    shorter = make_run("standard", experiment="screen", train={**RESUMABLE, "steps": 4})
    paths = replace(tables, state=tmp_path / "state", keep_state=True)
    train(shorter, paths, out=tmp_path / "screen")
    taken: list[int] = []

    def step(self: Trainer) -> None:
        STEP(self)
        taken.append(self.step_number)

    monkeypatch.setattr(Trainer, "step", step)
    longer = make_run("standard", experiment="final", train=RESUMABLE)
    train(longer, paths, out=tmp_path / "final")
    assert taken == [5, 6, 7]
    ours, theirs = (
        load_file(f / "model.safetensors") for f in (tmp_path / "final", whole("standard"))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = json.loads((tmp_path / "final/run.json").read_text())
    assert (record["steps_done"], record["experiment"]) == (7, "final")

    other = make_run("standard", experiment="other", train={**RESUMABLE, "lr": 2e-3})
    taken.clear()
    train(other, paths, out=tmp_path / "other")
    assert taken[0] == 1, "a run of another learning rate takes other steps"


def test_no_state_is_kept_of_a_run_that_ended_early(tables: RunPaths, tmp_path: Path) -> None:
    """Its steps are not those that a longer run would have taken."""
    paths = replace(tables, state=tmp_path / "state", keep_state=True)
    record = train(diverging(stop_on_health=True), paths, out=tmp_path / "run")
    assert record["stopped_early"] == "divergence"
    assert not list((tmp_path / "state/continued").glob("*/*.state"))
