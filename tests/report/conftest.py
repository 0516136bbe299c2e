"""Fake studies that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import fake
import pytest
import synthetic

from etrm.report.run_view import RunView, StudyView


@pytest.fixture(scope="session")
def views(tmp_path_factory: pytest.TempPathFactory) -> list[RunView]:
    return fake.study(tmp_path_factory.mktemp("study"), steps=1000)


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> list[RunView]:
    return fake.study(tmp_path_factory.mktemp("seeded"), seeds=3, steps=1000)


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="session")
def synthetic_study(synthetic_folder: Path) -> StudyView:
    return synthetic.study(synthetic_folder)
