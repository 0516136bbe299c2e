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
from tiny import make_corpus, make_run, make_tasks, questions_of, write_study

from etrm.config.execution import TrackingConfig
from etrm.config.study import EvaluationConfig
from etrm.evaluation.decode import all_variants
from etrm.evaluation.run import evaluate_run, evaluate_shard
from etrm.evaluation.shards import Shard, ShardError, questions_of_shard, rows_of
from etrm.storage.finished import SCORE_FILES
from etrm.study.layout import SHARD_FILE
from etrm.training.run import RunPaths, train_run

# 16 answers, in batches of 5, the last one smaller.
CONFIG = EvaluationConfig(variants=4, pass_k=(1, 2), batch_size=5, bootstrap=20)
HELD_OUT = make_tasks(3, seed=9, prefix="held_out")
SOURCES = {"embedding": "transductive", "standard": "strict"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunPaths]:
    """A run with embeddings and one with an encoder."""
    folder = tmp_path_factory.mktemp("study")
    paths = write_study(folder, make_tasks(3), HELD_OUT)
    found = {source: replace(paths, out=folder / source) for source in SOURCES}
    for source, split in SOURCES.items():
        run = make_run(source, split=split, train={"steps": 3})
        train_run(run, found[source], TrackingConfig(wandb="disabled"), device="cpu")
    return found


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


@pytest.mark.parametrize("source", SOURCES)
def test_the_result_does_not_depend_on_the_number_of_jobs(
    source: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    one = evaluate(runs[source], tmp_path / "one")
    asked = one["predictions"]
    for jobs in (1, 2, 3, 7, asked + 1):
        config = replace(CONFIG, jobs=jobs)
        files = decode(runs[source], tmp_path / "shards", jobs, config=config)
        out = tmp_path / str(jobs)
        shared = evaluate(runs[source], out, shards=files, config=config)
        assert shared["seconds"] is None, "no job knows what all of them took"
        assert {**shared, "seconds": one["seconds"]} == one
        for name in set(SCORE_FILES) - {"score.json"}:
            assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
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


def drop_a_row(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


def double_a_row(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)


def rename_a_task(file: Path) -> None:
    table = pq.read_table(file)
    names = ["stranger", *table["task"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.schema.field("task"), [names]), file)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def copy_of_another(file: Path) -> None:
    shutil.copy(file.with_name(SHARD_FILE.format(shard=0, shards=3)), file)


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (Path.unlink, "not there, expected shard 1 of 3: run the same command again"),
    (cut_off, "found a damaged file"),
    (copy_of_another, "found shard 0 of 3, expected shard 1 of 3; delete it"),
    (
        drop_a_row,
        r"found 4 predictions, expected the 5 of shard 1 of 3, each once: 1 missing \(held",
    ),
    (
        double_a_row,
        r"found 6 predictions, .*: 1 twice \(held_out\d test \d variant \d\); delete it",
    ),
    (rename_a_task, r"1 missing \(held_out.*\), 1 not asked for \(stranger test"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), FAULTS, ids=lambda each: getattr(each, "__name__", "")
)
def test_a_part_that_is_not_what_it_should_be_is_named(
    spoil: Callable[[Path], Any], message: str, runs: dict[str, RunPaths], tmp_path: Path
) -> None:
    files = decode(runs["standard"], tmp_path, 3)
    spoil(files[1])
    with pytest.raises(ShardError, match=message) as error:
        evaluate(runs["standard"], tmp_path / "out", shards=files)
    assert str(error.value).startswith(f"{files[1]}: ")
    assert not (tmp_path / "out").exists()
    decode(runs["standard"], tmp_path, 3, range(1, 2))
    evaluate(runs["standard"], tmp_path / "out", shards=files)


def test_parts_of_another_evaluation_are_refused(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    files = decode(runs["standard"], tmp_path, 2)
    other = replace(CONFIG, weights="raw")
    with pytest.raises(ShardError, match="found shard 0 of 2 of another evaluation"):
        evaluate(runs["standard"], tmp_path / "out", shards=files, config=other)
    with pytest.raises(ShardError, match="found shard 0 of 2, expected shard 0 of 1"):
        evaluate(runs["standard"], tmp_path / "out", shards=files[:1])
    with pytest.raises(ShardError, match="found shard 2 of 2, expected one of 0 to 1"):
        Shard(2, 2)


def test_a_kept_evaluation_is_taken_back_whatever_the_number_of_jobs(
    runs: dict[str, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    two = decode(runs["standard"], tmp_path, 2, state=state)
    before = evaluate(runs["standard"], tmp_path / "out", shards=two, state=state)

    def fail(*_: object) -> None:
        raise AssertionError("something was decoded")

    monkeypatch.setattr("etrm.evaluation.run.predict", fail)
    three = decode(runs["standard"], tmp_path, 3, state=state)
    assert [pq.read_metadata(file).num_rows for file in three] == [0, 0, 0]
    for shards, jobs in ((three, 3), ((), 1)):
        config = replace(CONFIG, jobs=jobs)
        out = tmp_path / str(jobs)
        again = evaluate(runs["standard"], out, shards=shards, state=state, config=config)
        assert again == before
        assert {path.name for path in out.iterdir()} == set(SCORE_FILES)
    # What was kept is gone meanwhile: an empty shard is no answer.
    shutil.rmtree(state)
    with pytest.raises(ShardError, match="found 0 predictions, expected the 6 of shard 0 of 3"):
        evaluate(runs["standard"], tmp_path / "lost", shards=three, state=state)


def test_gathering_builds_no_model(
    runs: dict[str, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = decode(runs["standard"], tmp_path, 2)
    monkeypatch.setattr("etrm.evaluation.run.build_model", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tables = runs["standard"].tasks, runs["standard"].augmentations
    evaluate_run(runs["standard"].out, *tables, CONFIG, tmp_path / "out", shards=files)
    assert (tmp_path / "out" / "score.json").is_file()
