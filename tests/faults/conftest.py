"""A warm server of jobs, a study, and an undisturbed run of it, which all fault tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import STEPS, Scene, Server, Study, make_study


@pytest.fixture(scope="session")
def kills() -> int:
    """How often the job is killed."""
    return int(os.environ.get("ETRM_SOAK", "20"))  # `make soak` sets more


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Both experiments, run to the end."""
    study = make_study(tmp_path_factory.mktemp("undisturbed"), STEPS)
    for experiment in ("other", "etrm"):
        server.run(study.command(experiment))
    return study


@pytest.fixture
def study(undisturbed: Study, tmp_path: Path) -> Study:
    """The same study, in which `other` has been run and `etrm` has not."""
    study = make_study(tmp_path / "study", STEPS)
    for part in ("runs/other", "state/finished/other"):
        shutil.copytree(undisturbed.root / part, study.root / part)
    return study


@pytest.fixture
def scene(server: Server, study: Study, undisturbed: Study, tmp_path: Path) -> Scene:
    return Scene(server, study, undisturbed, tmp_path / "stalled")
