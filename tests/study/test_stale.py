"""Status of runs and evaluations on disk, compared with the current study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import planning
import pytest
from planning import ETRM, FULL, STRICT, rewrite, study, trained, write

from etrm.arc.task import Rule
from etrm.config.load import load_study
from etrm.data.tables import read_tasks, write_tasks
from etrm.storage.checkpoint import state_path
from etrm.storage.files import file_digest
from etrm.storage.first_weights import ParentError
from etrm.storage.records import DamagedFileError
from etrm.study.layout import Layout
from etrm.study.stale import Status, StudyStatus, check_records


def of_etrm(layout: Layout) -> Status:
    return StudyStatus(layout).run(ETRM)


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    return planning.made(study(tmp_path))


def test_finished_results_are_up_to_date(made: Layout) -> None:
    status = StudyStatus(made)
    for found in (status.run(STRICT), status.run(ETRM), status.score(FULL)):
        assert found.complete
        assert found.up_to_date
        assert found.cached
        assert (found.reasons(), found.step) == ([], None)


def test_missing_results_have_no_differences(tmp_path: Path) -> None:
    status = StudyStatus(study(tmp_path))
    for found in (status.run(ETRM), status.score(FULL)):
        assert not any((found.files, found.complete, found.up_to_date, found.cached, found.stale))
    assert set(status.run(ETRM).missing) == {"model.safetensors", "metrics.parquet", "run.json"}


def test_changes_of_the_configuration_are_named_the_tag_first(made: Layout) -> None:
    found = of_etrm(study(made.root.parent, train={"lr": 1.0e-3}))
    assert found.config == (("train.lr", 1.0e-4, 1.0e-3),)
    assert found.differences() == ["train.lr 0.0001 → 0.001"]
    assert found.complete
    assert not found.up_to_date
    assert not found.cached
    small = {"source": "set_transformer", "width": 16, "heads": 2}
    found = of_etrm(study(made.root.parent, context=small))
    folded = found.differences()[0]
    assert folded.startswith("4 keys")
    assert ": context.source standard → set_transformer; " in folded


def test_a_reverted_change_restores_the_run(made: Layout) -> None:
    layout = study(made.root.parent, train={"lr": 1.0e-3})
    shutil.rmtree(layout.folder(ETRM))
    trained(layout, ETRM)
    assert of_etrm(layout).up_to_date
    found = of_etrm(made)
    assert found.differences() == ["train.lr 0.001 → 0.0001"]
    assert found.cached


def test_changed_code_is_named_by_file_where_the_record_has_modules(made: Layout) -> None:
    path = made.folder(ETRM) / "run.json"
    code = json.loads(path.read_text())["code"]
    rewrite(path, code={**code, "etrm.models.losses": "0" * 16, "etrm.gone": "1" * 16})
    assert of_etrm(made).differences() == ["code etrm/gone.py", "code etrm/models/losses.py"]
    rewrite(path, code={**code, "etrm.data": "0" * 16})
    assert of_etrm(made).differences() == ["code etrm/data/__init__.py"]
    rewrite(path, "code")
    assert of_etrm(made).up_to_date
    rewrite(path, code_digest="0" * 16)
    assert of_etrm(made).differences() == ["code"]


def test_another_table_is_new_data_for_runs_and_evaluations(made: Layout) -> None:
    made.augmentations.write_text("others")
    status = StudyStatus(made)
    assert status.run(ETRM).differences() == ["new data (augmentations)"]
    assert status.score(FULL).differences() == ["new data (augmentations)"]
    assert not status.run(ETRM).cached
    rewrite(made.folder(ETRM) / "run.json", "data")
    assert of_etrm(made).up_to_date, "it does not say with which data it was made"


def test_other_rules_are_new_data_for_evaluations_alone(made: Layout) -> None:
    """No run sees the rule of a generated task, but an evaluation reads it out of contexts."""
    records = read_tasks(made.tasks)
    known = [replace(r, task=replace(r.task, rule=Rule("fill", "{}"))) for r in records]
    write_tasks(made.tasks, known)
    status = StudyStatus(made)
    assert (status.run(ETRM).up_to_date, status.run(ETRM).cached) == (True, True)
    assert not status.score(FULL).cached
    score = made.score(FULL)
    rewrite(score, data={**json.loads(score.read_text())["data"], "ground_truth": "of others"})
    assert StudyStatus(made).score(FULL).differences() == ["new data (ground_truth)"]


def test_other_weights_of_the_parent_make_its_children_stale(made: Layout) -> None:
    weights = made.folder(STRICT) / "model.safetensors"
    weights.unlink()  # not through the link to the cache
    weights.write_text("trained once more")
    rewrite(made.folder(STRICT) / "run.json", weights_sha256=file_digest(weights))
    status = StudyStatus(made)
    assert status.run(STRICT).up_to_date
    assert status.run(ETRM).differences() == ["other first weights"]
    assert not status.run(ETRM).cached


def test_first_weights_from_outside_count_by_content(tmp_path: Path) -> None:
    outside = write(tmp_path / "official.pt", "weights")
    document = planning.document(tmp_path)
    document["experiments"]["etrm"]["decoder"]["init"] = str(outside)
    layout = planning.with_tables(Layout(load_study(document)))
    init = {"sha256": file_digest(outside)}
    trained(layout, STRICT)
    path = layout.folder(ETRM)
    trained(layout, ETRM, init=init)
    assert of_etrm(layout).up_to_date
    outside.write_text("others")
    assert of_etrm(layout).differences() == ["other first weights"]
    check_records(layout)
    outside.unlink()
    with pytest.raises(ParentError, match=r"etrm\.decoder\.init.*official\.pt"):
        check_records(layout)
    write(outside, "")
    write(path / "run.json", "{")
    with pytest.raises(DamagedFileError, match="overfit"):
        check_records(layout)


def test_a_refinement_is_stale_by_its_own_settings(made: Layout, tmp_path: Path) -> None:
    """And restorable from the cache where these are reverted; an evaluation has others."""
    layout = study(tmp_path, refinement={"steps": [0, 2]})
    assert layout.results() == [(FULL, "evaluation"), (FULL, "refinement")]
    assert made.results() == [(FULL, "evaluation")]
    assert StudyStatus(layout).score(FULL, "refinement").missing
    folder = planning.scored(layout, FULL, stage="refinement")
    status = StudyStatus(layout)
    assert status.score(FULL, "refinement").up_to_date
    assert status.score(FULL, "refinement").cached
    assert status.score(FULL).up_to_date
    other = StudyStatus(study(tmp_path, refinement={"steps": [0, 2], "lr": 0.5}))
    changed = other.score(FULL, "refinement")
    assert changed.differences() == ["refinement.lr 0.03 → 0.5"]
    assert not changed.cached
    assert other.score(FULL).up_to_date
    (folder / "refinement.parquet").unlink()
    assert StudyStatus(layout).score(FULL, "refinement").missing == ("refinement.parquet",)
    (folder / "refinement.json").write_text("{")
    with pytest.raises(DamagedFileError, match="refinement"):
        check_records(layout)


def test_an_evaluation_of_another_run_or_setting_is_stale(made: Layout) -> None:
    layout = study(made.root.parent, evaluation={"variants": 3})
    assert StudyStatus(layout).score(FULL).differences() == ["evaluation.variants 1000 → 3"]
    record = made.folder(FULL) / "run.json"
    rewrite(made.score(FULL), weights_sha256="others")
    assert StudyStatus(made).score(FULL).differences() == ["of other weights"]
    rewrite(record, key="another")
    assert StudyStatus(made).score(FULL).differences() == ["of another run"]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_record(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "run.json").write_text(text) and None


@pytest.mark.parametrize(
    ("harm", "missing"),
    [
        (without("model.safetensors"), ("model.safetensors",)),
        (without("run.json"), ("run.json",)),
        (with_record('{"config": '), ()),
        (with_record('{"config": {}}'), ()),
    ],
)
def test_a_run_that_has_lost_a_file_is_not_complete(
    made: Layout, harm: Callable[[Path], None], missing: tuple[str, ...]
) -> None:
    harm(made.folder(ETRM))
    found = of_etrm(made)
    assert found.files
    assert not found.complete
    assert not found.up_to_date
    assert found.missing == missing
    assert len(found.reasons()) == 1


def test_the_newest_state_of_an_interrupted_run_is_found(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    key = json.loads((trained(layout, ETRM, cached=False) / "run.json").read_text())["key"]
    shutil.rmtree(layout.folder(ETRM))
    assert of_etrm(layout).step is None
    for step in (20, 40):
        write(state_path(layout.state / key[:16], step), "")
    assert of_etrm(layout).step == 40
    assert of_etrm(study(tmp_path, train={"lr": 1.0e-3})).step is None, "of another configuration"
    layout.tasks.write_text("others")
    assert of_etrm(layout).step is None, "of other data"


def test_a_run_is_restorable_as_long_as_its_parent_is(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    trained(layout, ETRM)
    shutil.rmtree(layout.folder(STRICT))
    assert of_etrm(layout).cached, "its parent is restored, with the same weights"
    shutil.rmtree(layout.state / "finished" / "strict")
    assert not of_etrm(layout).cached
    assert of_etrm(layout).up_to_date, "nothing says that it is not"
