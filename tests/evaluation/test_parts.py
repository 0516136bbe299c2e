"""A decoding that ends early resumes from its parts, and neither repeats nor loses a prediction."""

from __future__ import annotations

import errno
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etrm.config.study import EvaluationConfig
from etrm.evaluation import parts
from etrm.evaluation import run as evaluation
from etrm.evaluation.run import evaluate_run, evaluate_shard
from etrm.evaluation.shards import Shard
from etrm.training.run import RunPaths

CONFIG = EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=3)  # 16 answers, in 6 batches
BATCHES = 6


def evaluate(paths: RunPaths, out: Path, **more: Any) -> dict[str, Any]:
    more = {"config": CONFIG, **more}
    return evaluate_run(paths.out, paths.tasks, paths.augmentations, out=out, device="cpu", **more)


@pytest.fixture(scope="module")
def whole(runs: dict[str, RunPaths], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the run `etrm` that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    evaluate(runs["etrm"], out)
    return out


def assert_same(out: Path, whole: Path) -> None:
    for name in ("predictions.parquet", "submission.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are decoded, each of which is a part."""
    sizes: list[int] = []
    predict = evaluation.predict_batches

    def counted(*arguments: Any) -> Iterator[pa.Table]:
        for table in predict(*arguments):
            sizes.append(len(table))
            yield table

    monkeypatch.setattr(evaluation, "predict_batches", counted)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    return sizes


def parts_in(state: Path) -> list[Path]:
    return sorted(state.rglob("batches-*.parquet"))


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> Callable[[], None]:
    """Interrupt the decoding after so many batches; returns the way back."""
    predict = evaluation.predict_batches

    def stopping(*arguments: Any) -> Iterator[pa.Table]:
        for number, table in enumerate(predict(*arguments)):
            if number == batches:
                raise KeyboardInterrupt
            yield table

    monkeypatch.setattr(evaluation, "predict_batches", stopping)
    return lambda: monkeypatch.setattr(evaluation, "predict_batches", predict)


def test_an_evaluation_that_was_killed_resumes(
    runs: dict[str, RunPaths], whole: Path, tmp_path: Path, decoded: list[int]
) -> None:
    """A kill in the third batch: nothing is flushed, no handler runs."""
    state, out = tmp_path / "state", tmp_path / "out"
    process = os.fork()
    if process == 0:
        try:
            predict = evaluation.predict_batches
            evaluation.predict_batches = partial(_killed, predict)
            evaluate(runs["etrm"], out, state=state)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(parts_in(state)) == 2
    assert not out.exists()
    evaluate(runs["etrm"], out, state=state)
    assert len(decoded) == BATCHES - 2
    assert_same(out, whole)
    assert parts_in(state) == []


def _killed(predict: Callable[..., Iterator[pa.Table]], *arguments: Any) -> Iterator[pa.Table]:
    for number, table in enumerate(predict(*arguments)):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield table


@pytest.mark.parametrize("batches", range(BATCHES))
def test_no_batch_is_decoded_twice_wherever_it_stopped(
    batches: int,
    runs: dict[str, RunPaths],
    whole: Path,
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped once there, and once more in the next batch."""
    for more in (batches, 1):
        go_on = stop_after(monkeypatch, more)
        if len(decoded) + more < BATCHES:
            with pytest.raises(KeyboardInterrupt):
                evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
            decoded.pop()  # the batch in which it stopped
        go_on()
    evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
    assert len(decoded) == BATCHES
    assert_same(tmp_path / "out", whole)


def test_a_shard_resumes_and_the_merged_result_is_the_same(
    runs: dict[str, RunPaths],
    whole: Path,
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, state = runs["etrm"], tmp_path / "state"
    tables = run.tasks, run.augmentations
    files = [tmp_path / f"{number}.parquet" for number in range(2)]

    def shard(number: int) -> None:
        of = Shard(number, 2)
        evaluate_shard(run.out, *tables, CONFIG, files[number], of, device="cpu", state=state)

    go_on = stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        shard(0)
    go_on()
    decoded.clear()
    shard(0)
    assert len(decoded) == BATCHES / 2 - 1
    shard(1)
    assert len(parts_in(state)) == BATCHES
    evaluate(run, tmp_path / "out", state=state, shards=files)
    assert_same(tmp_path / "out", whole)
    assert parts_in(state) == []


def of_another(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"etrm_evaluation": "another"}), file)


def cut_rows(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:99]), of_another, cut_rows],
    ids=["missing", "cut", "of another evaluation", "a row less"],
)
def test_a_part_that_cannot_be_used_is_decoded_again(
    spoil: Callable[[Path], Any],
    runs: dict[str, RunPaths],
    whole: Path,
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = stop_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
    go_on()
    spoil(parts_in(tmp_path / "state")[1])
    decoded.clear()
    evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
    assert len(decoded) == BATCHES - 4 + 1
    assert_same(tmp_path / "out", whole)


def test_parts_of_other_settings_are_not_used_and_removed(
    runs: dict[str, RunPaths], tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = stop_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
    go_on()
    decoded.clear()
    other = replace(CONFIG, weights="raw")
    evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state", config=other)
    assert len(decoded) == BATCHES
    assert parts_in(tmp_path / "state") == []


def test_a_full_disk_loses_no_prediction(
    runs: dict[str, RunPaths],
    whole: Path,
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(parts, "write_table_atomic", full)
    evaluate(runs["etrm"], tmp_path / "out", state=tmp_path / "state")
    assert full.call_count == len(decoded) == BATCHES
    assert_same(tmp_path / "out", whole)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_size_of_batches_moves_no_vote(
    batch_size: int, runs: dict[str, RunPaths], whole: Path, tmp_path: Path
) -> None:
    evaluate(runs["etrm"], tmp_path, config=replace(CONFIG, batch_size=batch_size))
    assert (tmp_path / "submission.json").read_bytes() == (whole / "submission.json").read_bytes()
    columns = ["task", "query", "variant", "height", "width", "grid", "correct"]
    found, expected = (
        pq.read_table(folder / "predictions.parquet", columns=columns)
        for folder in (tmp_path, whole)
    )
    assert found.equals(expected)


def test_memory_holds_what_is_not_written_yet(tmp_path: Path) -> None:
    """One table at a time where each is a part: what was written is let go."""
    alive: list[int] = []
    tables: list[weakref.ref[Any]] = []

    class Rows:  # stands for the index of a batch
        def __len__(self) -> int:
            return 1

    def predict(batches: Any) -> Iterator[pa.Table]:
        for number in range(len(batches)):
            columns = {field.name: [None] for field in evaluation.PREDICTIONS}
            named = {**columns, "task": ["t"], "query": [0], "variant": [number]}
            table = pa.table(named, schema=evaluation.PREDICTIONS)
            tables.append(weakref.ref(table))
            yield table
            del table
            alive.append(sum(ref() is not None for ref in tables))

    store = parts.Parts(tmp_path, {"etrm_evaluation": "key"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SECONDS", 0.0)
        found = store.complete([(Mock(), Rows(), Rows())] * 50, predict, "name")
    assert found["variant"].to_pylist() == list(range(50))
    assert max(alive) <= 2
