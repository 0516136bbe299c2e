"""A cluster for the tests of this folder: started for them, stopped after them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cluster
import pytest


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A real SLURM of one node with two GPUs in name."""
    if not os.environ.get("ETRM_TEST_SLURM"):
        pytest.skip("installs and starts SLURM on this machine: `make test-slurm` does that")
    cluster.start()
    yield
    cluster.stop()
