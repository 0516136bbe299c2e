"""What results say of the environment that made them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from etrm.runtime import environment as module
from etrm.runtime.environment import LOCK, environment, search_first, versions

IMAGE_ID = bytes(range(16))
VARIABLES = ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "PYTHONPATH", *module.SLURM.values()]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def place(monkeypatch: pytest.MonkeyPatch, prefix: Path, base: Path) -> tuple[str, str | None]:
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "base_prefix", str(base))
    found = environment()
    assert str(prefix.parent) not in json.dumps(found), "a path of this machine"
    return found["kind"], found["name"]


def test_a_virtual_environment_and_conda_are_named_by_their_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prefix = tmp_path / "mine"
    assert place(monkeypatch, prefix, tmp_path / "usr") == ("venv", "mine")
    (prefix / "conda-meta").mkdir(parents=True)
    assert place(monkeypatch, prefix, prefix) == ("conda", "mine")


@pytest.mark.parametrize(("marked", "expected"), [(True, ("container", None)), (False, None)])
def test_the_systems_python_may_be_in_a_container(
    marked: bool,
    expected: tuple[str, None] | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    exists = Path.exists
    marks = ("/.dockerenv", "/run/.containerenv")
    monkeypatch.setattr(Path, "exists", lambda p: marked if str(p) in marks else exists(p))
    found = place(monkeypatch, tmp_path / "usr", tmp_path / "usr")
    assert found == (expected or ("system", "usr"))


@pytest.mark.parametrize("variable", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_an_image_is_named_by_its_file_and_its_header(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = tmp_path / "etrm.sif"
    monkeypatch.setenv(variable, str(image))
    assert place(monkeypatch, tmp_path / "usr", tmp_path / "usr") == ("container", "etrm.sif")
    assert environment()["image_id"] is None, "its file is not visible"
    image.write_bytes(b"\0" * 32 + b"SIF_MAGIC\0" + b"01\0" + b"02\0" + IMAGE_ID + b"\0" * 100)
    assert environment()["image_id"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    image.write_bytes(b"\0" * 200)
    assert environment()["image_id"] is None, "it is in another format"


def test_this_checkout_is_compared_with_its_lock() -> None:
    found = environment()
    assert LOCK.name == "requirements.txt"
    assert found["lock_sha256"] == hashlib.sha256(LOCK.read_bytes()).hexdigest()
    assert found["locked"] is (found["differs"] == {})


def test_what_differs_from_the_lock_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch, numpy = metadata.version("torch").split("+")[0], metadata.version("numpy")
    lock = tmp_path / "lock.txt"
    monkeypatch.setattr(module, "LOCK", lock)
    assert environment()["locked"] is None
    lock.write_text(f"# what is used\nTorch=={torch}\nnumpy=={numpy}\n")
    assert environment()["locked"] is True, "a build's local label is no difference"
    lock.write_text(f"torch=={torch}\nnumpy==0.1\nno.such_package==2.0\n")
    found = environment()
    assert found["locked"] is False
    assert found["differs"] == {"numpy": [numpy, "0.1"], "no.such_package": [None, "2.0"]}


@pytest.mark.parametrize("installed", ["2.13.0+cpu", "2.13.0+cu128", "2.13.0"])
def test_builds_of_one_release_are_the_same(
    installed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "LOCK", tmp_path / "lock.txt")
    monkeypatch.setattr(module, "distribution_version", lambda name: installed)
    module.LOCK.write_text("torch==2.13.0\n")
    assert environment()["differs"] == {}
    module.LOCK.write_text("torch==2.13.1\n")
    assert environment()["differs"] == {"torch": [installed, "2.13.1"]}


def test_a_slurm_job_is_recorded_as_far_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment()["slurm"] is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert environment()["slurm"] == {"job": "17"}
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert environment()["slurm"] == {"job": "17", "partition": "gpu", "restarts": 2}


def test_nothing_fails_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOCK", tmp_path / "lock.txt")
    module.LOCK.write_bytes(b"torch==\xff\n")
    with caplog.at_level(logging.WARNING):
        found = environment()
    assert found["kind"] is None
    assert "UnicodeDecodeError" in found["error"]
    assert "could not be recorded" in caplog.text


def test_versions_are_those_of_what_results_depend_on() -> None:
    found = versions()
    assert {"python", "torch", "numpy", "pyarrow"} <= set(found)
    assert found["torch"] == metadata.version("torch")


def test_a_folder_is_searched_first_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched() -> list[str]:
        return os.environ["PYTHONPATH"].split(os.pathsep)

    search_first(Path("/checkout"))
    assert searched() == ["/checkout"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", "", "/checkout"]))
    search_first(Path("/checkout"))
    search_first(Path("/checkout"))
    assert searched() == ["/checkout", "/a"], "an empty entry would be the working directory"
