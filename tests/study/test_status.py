"""What is on disk beside what would be made today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from planning import ETRM, FULL, STRICT, rewrite, scored, study, trained

from etrm.storage.checkpoint import state_path
from etrm.storage.files import file_digest
from etrm.study.layout import Layout
from etrm.study.status import Status, StudyStatus


def of_etrm(layout: Layout) -> Status:
    return StudyStatus(layout).run(ETRM)


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    layout = study(tmp_path)
    for run in (STRICT, ETRM, FULL):
        trained(layout, run)
    scored(layout, FULL)
    return layout


def test_what_is_as_today_is_current(made: Layout) -> None:
    status = StudyStatus(made)
    for found in (status.run(STRICT), status.run(ETRM), status.score(FULL)):
        assert found.whole
        assert found.current
        assert found.differences() == []
        assert found.kept
        assert found.step is None


def test_what_is_not_there_does_not_exist(tmp_path: Path) -> None:
    status = StudyStatus(study(tmp_path))
    for found in (status.run(ETRM), status.score(FULL)):
        assert not any((found.exists, found.whole, found.current, found.kept))
        assert found.differences() == []
    assert set(status.run(ETRM).missing) == {"model.safetensors", "metrics.parquet", "run.json"}


def test_changes_of_the_configuration_are_named_the_tag_first(made: Layout) -> None:
    found = of_etrm(study(made.root.parent, train={"lr": 1.0e-3}))
    assert found.config == (("train.lr", 1.0e-4, 1.0e-3),)
    assert found.differences() == ["train.lr 0.0001 → 0.001"]
    assert found.whole
    assert not found.current
    assert not found.kept
    small = {"source": "set_transformer", "width": 16, "heads": 2}
    found = of_etrm(study(made.root.parent, context=small))
    assert found.differences()[0] == "context.source standard → set_transformer"
    assert found.differences()[3].endswith(" more")


def test_a_change_that_is_taken_back_takes_the_run_back(made: Layout) -> None:
    layout = study(made.root.parent, train={"lr": 1.0e-3})
    shutil.rmtree(layout.folder(ETRM))
    trained(layout, ETRM)
    assert of_etrm(layout).current
    found = of_etrm(made)
    assert found.differences() == ["train.lr 0.001 → 0.0001"]
    assert found.kept


def test_changed_code_is_named_by_file(made: Layout) -> None:
    path = made.folder(ETRM) / "run.json"
    code = json.loads(path.read_text())["code"]
    rewrite(path, code={**code, "etrm.models.losses": "0" * 16, "etrm.gone": "1" * 16})
    found = of_etrm(made)
    assert found.differences() == ["code etrm/gone.py", "code etrm/models/losses.py"]
    rewrite(path, code={**code, "etrm.data": "0" * 16})
    assert of_etrm(made).differences() == ["code etrm/data/__init__.py"]


def test_a_record_without_modules_tells_that_some_code_changed(made: Layout) -> None:
    path = made.folder(ETRM) / "run.json"
    record = json.loads(path.read_text())
    del record["code"]
    path.write_text(json.dumps(record))
    assert of_etrm(made).current
    rewrite(path, code_digest="0" * 16)
    assert of_etrm(made).differences() == ["code"]


def test_another_table_is_new_data_for_runs_and_evaluations(made: Layout) -> None:
    made.augmentations.write_text("others")
    status = StudyStatus(made)
    assert status.run(ETRM).differences() == ["new data (augmentations)"]
    assert status.score(FULL).differences() == ["new data (augmentations)"]
    assert not status.run(ETRM).kept
    record = json.loads((made.folder(ETRM) / "run.json").read_text())
    del record["data"]
    (made.folder(ETRM) / "run.json").write_text(json.dumps(record))
    assert of_etrm(made).current, "it does not say with which data it was made"


def test_other_weights_of_the_parent_are_seen_by_its_children(made: Layout) -> None:
    weights = made.folder(STRICT) / "model.safetensors"
    weights.unlink()  # not through the link to what is kept
    weights.write_text("trained once more")
    rewrite_apart(made.folder(STRICT) / "run.json", weights_sha256=file_digest(weights))
    status = StudyStatus(made)
    assert status.run(STRICT).current
    assert status.run(ETRM).differences() == ["other first weights"]
    assert not status.run(ETRM).kept


def rewrite_apart(path: Path, **changes: object) -> None:
    """Change a record, but not the one that is kept under the same inode."""
    text = path.read_text(encoding="utf-8")
    path.unlink()
    path.write_text(text, encoding="utf-8")
    rewrite(path, **changes)


def test_an_evaluation_of_another_run_or_setting_is_told(made: Layout) -> None:
    layout = study(made.root.parent, evaluation={"variants": 3})
    found = StudyStatus(layout).score(FULL)
    assert found.differences() == ["evaluation.variants 1000 → 3"]
    rewrite_apart(made.folder(FULL) / "run.json", key="another")
    assert StudyStatus(made).score(FULL).differences() == ["of another run"]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def damaged(folder: Path) -> None:
    (folder / "run.json").write_text('{"config": ')


def foreign(folder: Path) -> None:
    (folder / "run.json").write_text('{"config": {}}')


@pytest.mark.parametrize(
    ("harm", "missing"),
    [
        (without("model.safetensors"), ("model.safetensors",)),
        (without("run.json"), ("run.json",)),
        (damaged, ()),
        (foreign, ()),
    ],
)
def test_a_run_of_which_something_is_lost_is_not_whole(
    made: Layout, harm: Callable[[Path], None], missing: tuple[str, ...]
) -> None:
    harm(made.folder(ETRM))
    found = of_etrm(made)
    assert found.exists
    assert not found.whole
    assert not found.current
    assert found.missing == missing


def test_the_newest_state_of_an_interrupted_run_is_found(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    key = json.loads((trained(layout, ETRM, kept=False) / "run.json").read_text())["key"]
    shutil.rmtree(layout.folder(ETRM))
    assert of_etrm(layout).step is None
    for step in (20, 40):
        path = state_path(layout.state / key[:16], step)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert of_etrm(layout).step == 40
    assert of_etrm(study(tmp_path, train={"lr": 1.0e-3})).step is None, "of another configuration"
    layout.tasks.write_text("others")
    assert of_etrm(layout).step is None, "of other data"


def test_a_run_whose_parent_is_missing_has_no_state_to_go_on_from(tmp_path: Path) -> None:
    layout = study(tmp_path)
    trained(layout, STRICT)
    trained(layout, ETRM)
    shutil.rmtree(layout.folder(STRICT))
    assert of_etrm(layout).kept, "its parent is taken back, and has the same weights then"
    shutil.rmtree(layout.state / "finished" / "strict")
    assert not of_etrm(layout).kept
    assert of_etrm(layout).current, "nothing says that it is not"
