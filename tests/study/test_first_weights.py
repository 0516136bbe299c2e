"""Which file the path of first weights means, as the plan, the workflow and training see it."""

from __future__ import annotations

from pathlib import Path

import planning
import pytest

from etrm.config.load import load_study
from etrm.config.parents import names_file
from etrm.storage.files import file_digest
from etrm.storage.first_weights import ParentError, find_first_weights
from etrm.study.layout import Layout
from etrm.study.stale import StudyStatus, check_records


def touch(*paths: Path) -> Path:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name, encoding="utf-8")
    return paths[0]


@pytest.mark.parametrize(
    "name", ["step_518071", "w.pt", "w.pth", "w.safetensors", "last.ckpt", "any name.v2"]
)
def test_a_file_is_a_checkpoint_under_any_name(tmp_path: Path, name: str) -> None:
    found = find_first_weights(touch(tmp_path / name))
    assert (found.file, found.run) == (tmp_path / name, None)
    assert found.files == [tmp_path / name]


@pytest.mark.parametrize("name", ["step_518071", "w.pt", "w.safetensors", "last.ckpt"])
def test_a_folder_with_one_checkpoint(tmp_path: Path, name: str) -> None:
    """Beside it what official TRM and our export write into the folder of a checkpoint."""
    others = ("all_config.yaml", "trm.py", "step_518071_all_preds.0", "w.encoder.pt", "sub/x.pt")
    touch(tmp_path / name, *(tmp_path / other for other in others))
    assert find_first_weights(tmp_path).files == [tmp_path / name]


def test_a_folder_with_several_names_them_and_one_with_none_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "step_10", tmp_path / "step_20", tmp_path / "trm.py")
    with pytest.raises(ParentError, match=r"several checkpoints \(step_10, step_20\)"):
        find_first_weights(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ParentError, match=r"none: found no checkpoint, expected weights to start"):
        find_first_weights(tmp_path / "none")


def test_a_run_folder_and_its_weights_are_the_same(tmp_path: Path) -> None:
    weights = touch(tmp_path / "model.safetensors", tmp_path / "x.pt")
    assert find_first_weights(tmp_path).files == [weights, tmp_path / "run.json"]  # is missing
    assert find_first_weights(weights).files == [weights]
    touch(tmp_path / "run.json")
    assert find_first_weights(tmp_path) == find_first_weights(weights)
    assert find_first_weights(weights).run == tmp_path


@pytest.mark.parametrize("inside", [None, "step_518071", "w.pt", "last.ckpt"])
def test_the_layout_and_the_state_of_a_study_follow(tmp_path: Path, inside: str | None) -> None:
    path = tmp_path / "step_518071"
    file = touch(path if inside is None else path / inside)
    document = planning.document(tmp_path / "results")
    document["experiments"]["etrm"]["decoder"]["init"] = str(path)
    layout = Layout(load_study(document))
    assert layout.parent_files(planning.ETRM) == [str(file)]
    assert StudyStatus(layout).outside_weights(planning.ETRM) == file_digest(file)
    check_records(layout)
    if inside is not None:
        touch(path / "another.pt")
        with pytest.raises(ParentError, match=r"experiments\.etrm\.decoder\.init: .*\(another\.pt"):
            check_records(layout)


def test_a_name_of_an_experiment_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "trm", tmp_path / "step_7")
    (tmp_path / "folder").mkdir()
    for name in ("a/b", "~", "w.pt", "w.pth", "last.ckpt", "w.safetensors", "step_7", "folder"):
        assert names_file(name, ["trm"])
    for name in ("trm", "tmr", "step_8", "x" * 5000, "a\0b"):
        assert not names_file(name, ["trm"])
    document = planning.document(tmp_path / "results")
    touch(tmp_path / "strict")
    assert Layout(load_study(document)).parent(planning.ETRM) == planning.STRICT
    document["experiments"]["etrm"]["decoder"]["init"] = "step_7"
    assert Layout(load_study(document)).parent_files(planning.ETRM) == ["step_7"]
