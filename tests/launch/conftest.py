"""A job on two ranks, small programs in the place of commands, and how a run ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_run, make_tasks, write_study

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.launch.job import Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = replace(write_study(tmp_path, make_tasks(4), make_tasks(2)), strict_parents=("a", "b"))
    off = TrackingConfig(wandb="disabled")
    return Job(make_run(), paths, off, ExecutionConfig(micro_batch=2), "cpu", 3, tmp_path / "log")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script first on the PATH under the name of a command."""

    def install(name: str, text: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return install
