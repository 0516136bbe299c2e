"""W&B cannot be reached: training does not notice, and what it recorded can be sent later."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from jobs import Scene

KEY = "a" * 40


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_training_does_not_wait_for_wandb(how: str, scene: Scene, silent: int) -> None:
    pytest.importorskip("wandb")
    study = scene.study
    study.config.write_text(study.config.read_text().replace("wandb: disabled", "wandb: online"))
    port = silent if how == "silent" else 9
    began = time.monotonic()
    address = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY}
    patch = {"etrm.tracking.tracker:INIT_SECONDS": 2.0}
    log = scene.server.start(study.command(), None, patch, **address).ended(0)
    assert time.monotonic() - began < 30
    assert log.count("W&B: not started") == 1
    scene.same()
    [record] = study.root.glob("wandb/wandb/offline-run-*/*.wandb")
    assert record.stat().st_size > 2000
    assert f"wandb sync {record.parent}" in log
