"""The small study, run once for all tests of the workflow, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from projects import copy_project, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the small study has been run to the end."""
    folder = copy_project(tmp_path_factory.mktemp("study"))
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, times kept, to be changed."""
    shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return tmp_path / "study"
