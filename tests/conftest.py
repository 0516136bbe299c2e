"""Fixtures of all suites: one thread, and the folders of recorded data where they are given."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from etrm.arc.sources import Loaded, load_sources
from etrm.config.sources import KaggleSource

torch.set_num_threads(1)


# Folders whose tests share what takes long to make: they are on one worker, and begin first.
TOGETHER = ("tests/workflow", "tests/faults", "tests/reruns")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left alone at last."""
    items.sort(key=lambda item: _unit(item.nodeid) not in TOGETHER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file, or of a folder that shares more, are on one worker, in this order.

    (pytest-xdist's own groups, by a mark, are passed over by this version of pytest.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    return Units(config, log)


def _unit(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(folder + "/")), file)


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


Public = Callable[[str], KaggleSource]


@pytest.fixture(scope="session")
def public(arc: Path) -> Public:
    """A public set in Kaggle form, by its name there."""

    def source(name: str) -> KaggleSource:
        challenges, solutions = (
            str(arc / f"arc-agi_{name}_{kind}.json") for kind in ("challenges", "solutions")
        )
        return KaggleSource(challenges=challenges, solutions=solutions)

    return source


@pytest.fixture(scope="session")
def public_set(public: Public) -> Callable[[str], Loaded]:
    """A public set in Kaggle form as it is read, once."""
    return cache(lambda name: load_sources({name: public(name)})[name])
