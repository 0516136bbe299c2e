"""Fixtures of all suites: one thread, and the folders of recorded data where they are given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take long, and stay on one worker, begin first: none is then left alone."""
    here = Path(__file__).parent
    first = (here / "workflow", here / "faults")
    items.sort(key=lambda item: next((i for i, f in enumerate(first) if f in item.path.parents), 9))


def _folder(variable: str, content: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set: it names the folder of {content}")
    return Path(path)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers recorded from the official TRM code."""
    return _folder("ETRM_GOLDEN", "numbers recorded from the official TRM code")


@pytest.fixture(scope="session")
def arc() -> Path:
    """ARC-AGI-1, ARC-AGI-2 and ConceptARC in Kaggle form."""
    return _folder("ETRM_ARC", "the public ARC sets in Kaggle form")
