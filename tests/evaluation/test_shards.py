"""An evaluation that several jobs share is the one that a single job makes, to the last bit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import make_corpus, make_run, make_tasks, questions_of

from etrm.config.study import EvaluationConfig
from etrm.evaluation.decode import all_variants
from etrm.evaluation.run import evaluate_run, evaluate_shard
from etrm.evaluation.shards import Shard, ShardError, questions_of_shard, rows_of
from etrm.storage.result_cache import SCORE_FILES
from etrm.study.layout import SHARD_FILE
from etrm.training.run import RunPaths

# 16 answers, in batches of 5, the last one smaller.
CONFIG = EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=5)


def evaluate(paths: RunPaths, out: Path, **more: Any) -> dict[str, Any]:
    more = {"config": CONFIG, **more}
    tables = paths.tasks, paths.augmentations
    return evaluate_run(paths.out, *tables, out=out, device="cpu", **more)


def decode(paths: RunPaths, out: Path, of: int, numbers: range | None = None, **more: Any) -> Any:
    """The files of shards, all or those with the given numbers."""
    files = [out / SHARD_FILE.format(shard=number, shards=of) for number in range(of)]
    tables = paths.tasks, paths.augmentations
    more = {"config": CONFIG, **more}
    for number in numbers or range(of):
        shard = Shard(number, of)
        evaluate_shard(paths.out, *tables, out=files[number], shard=shard, device="cpu", **more)
    return files


@pytest.mark.parametrize("name", ["trm", "etrm"])
def test_the_result_does_not_depend_on_the_number_of_jobs(
    name: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    one = evaluate(runs[name], tmp_path / "one")
    asked = one["predictions"]
    for jobs in (1, 3, 7):  # there are 4 batches
        config = replace(CONFIG, jobs=jobs)
        files = decode(runs[name], tmp_path / "shards", jobs, config=config)
        out = tmp_path / str(jobs)
        shared = evaluate(runs[name], out, shards=files, config=config)
        assert shared["seconds"] is None, "no job knows the time of all"
        assert {**shared, "seconds": one["seconds"]} == one
        for file in set(SCORE_FILES) - {"score.json"}:
            assert (out / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
        assert sum(pq.read_metadata(file).num_rows for file in files) == asked


def test_parts_share_all_questions_evenly() -> None:
    tasks = [*make_tasks(5, side=3), *make_tasks(4, seed=1, side=4, prefix="large")]
    corpus = make_corpus(tasks, variants=8)
    lanes = all_variants(corpus, questions_of(make_run(), corpus))
    assert len(lanes) == 2
    asked = Counter(rows_of(corpus, lanes))
    assert set(asked.values()) == {1}
    for of in (1, 2, 5, 9, 1000):
        shards = [questions_of_shard(lanes, 3, Shard(number, of)) for number in range(of)]
        assert sum((Counter(rows_of(corpus, shard)) for shard in shards), Counter()) == asked
        batches = [sum(-(-len(index) // 3) for _, index, _ in shard) for shard in shards]
        assert max(batches) - min(batches) <= 1
        for lane, _, _ in lanes:
            mine = [[len(i) for e, i, _ in shard if e is lane] for shard in shards]
            sizes = [-(-sum(found) // 3) for found in mine]
            assert max(sizes) - min(sizes) <= 1
    # Batches stay whole: cut up again, a shard has batches that the whole lane has.
    whole = {tuple(b.tolist()) for _, index, v in lanes for b in (index * 100 + v).split(3)}
    for number in range(5):
        for _, index, v in questions_of_shard(lanes, 3, Shard(number, 5)):
            assert {tuple(b.tolist()) for b in (index * 100 + v).split(3)} <= whole


def change(rows: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda file: pq.write_table(rows(pq.read_table(file)), file)


def rename_a_task(table: pa.Table) -> pa.Table:
    names = ["stranger", *table["task"].to_pylist()[1:]]
    return table.set_column(0, table.schema.field("task"), [names])


def copy_of_another(file: Path) -> None:
    shutil.copy(file.with_name(SHARD_FILE.format(shard=0, shards=3)), file)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deleted": (Path.unlink, "not there, expected shard 1 of 3"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:100]), "damaged file"),
    "copied": (copy_of_another, "found shard 0 of 3, expected shard 1 of 3"),
    "row dropped": (
        change(lambda table: table.slice(1)),
        r"found 4 predictions, expected the 5 of shard 1 of 3, .*1 missing \(held",
    ),
    "row doubled": (
        change(lambda table: pa.concat_tables([table, table.slice(0, 1)])),
        r"found 6 predictions, .*: 1 twice \(held_out\d test \d variant \d\)",
    ),
    "task renamed": (
        change(rename_a_task),
        r"1 missing \(held_out.*\), 1 not asked for \(stranger test",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_is_not_as_expected_is_named(
    fault: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    spoil, message = FAULTS[fault]
    files = decode(runs["etrm"], tmp_path, 3)
    spoil(files[1])
    with pytest.raises(ShardError, match=message) as error:
        evaluate(runs["etrm"], tmp_path / "out", shards=files)
    assert str(error.value).startswith(f"{files[1]}: ")
    assert not (tmp_path / "out").exists()
    decode(runs["etrm"], tmp_path, 3, range(1, 2))
    evaluate(runs["etrm"], tmp_path / "out", shards=files)


def test_parts_of_another_evaluation_are_refused(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    files = decode(runs["etrm"], tmp_path, 2)
    other = replace(CONFIG, weights="raw")
    with pytest.raises(ShardError, match="found shard 0 of 2 of another evaluation"):
        evaluate(runs["etrm"], tmp_path / "out", shards=files, config=other)
    with pytest.raises(ShardError, match="found shard 0 of 2, expected shard 0 of 1"):
        evaluate(runs["etrm"], tmp_path / "out", shards=files[:1])
    with pytest.raises(ShardError, match="found shard 2 of 2, expected one of 0 to 1"):
        Shard(2, 2)


def test_a_kept_evaluation_is_taken_back_whatever_the_number_of_jobs(
    runs: dict[str, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    two = decode(runs["etrm"], tmp_path, 2, state=state)
    before = evaluate(runs["etrm"], tmp_path / "out", shards=two, state=state)

    def fail(*_: object) -> None:
        raise AssertionError("something was decoded")

    monkeypatch.setattr("etrm.evaluation.run.decode_questions", fail)
    three = decode(runs["etrm"], tmp_path, 3, state=state)
    assert [pq.read_metadata(file).num_rows for file in three] == [0, 0, 0]
    for shards, jobs in ((three, 3), ((), 1)):
        config = replace(CONFIG, jobs=jobs)
        out = tmp_path / str(jobs)
        again = evaluate(runs["etrm"], out, shards=shards, state=state, config=config)
        assert again == before
        assert {path.name for path in out.iterdir()} == set(SCORE_FILES)
    # The kept result is gone meanwhile: an empty shard is no answer.
    shutil.rmtree(state)
    with pytest.raises(ShardError, match="found 0 predictions, expected the 6 of shard 0 of 3"):
        evaluate(runs["etrm"], tmp_path / "lost", shards=three, state=state)


def test_gathering_builds_no_model(
    runs: dict[str, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = decode(runs["etrm"], tmp_path, 2)
    monkeypatch.setattr("etrm.evaluation.run.load_model", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tables = runs["etrm"].tasks, runs["etrm"].augmentations
    evaluate_run(runs["etrm"].out, *tables, CONFIG, tmp_path / "out", shards=files)
    assert (tmp_path / "out" / "score.json").is_file()
