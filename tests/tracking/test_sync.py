"""`etrm sync`: offline runs are sent, in order, by W&B's own command; and the dashboard."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from etrm.errors import UserError
from etrm.tracking.sync import PANELS, dashboard, offline_runs, save_dashboard, sync

# `python -m wandb`: it sends what it finds in the folder but for the runs that it is told to lose.
FAKE = """
import os, pathlib, sys
given = sys.argv[1:]
told = " ".join([*given, os.environ.get("WANDB_MODE", "-")])
pathlib.Path(os.environ["CALLS"]).write_text(told)
for run in sorted(pathlib.Path(given[-1]).glob("offline-run-*")):
    if not run.name.endswith(os.environ.get("LOST", "no run")):
        (run / f"run-{run.name[-4:]}.wandb.synced").touch()
"""
# Two of one id: a run that was interrupted.
NAMES = [f"offline-run-20260101_{time}-{name}" for time, name in ((9, "aaaa"), (10, "bbbb"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """W&B's folder of a study with two offline runs."""
    for name in NAMES:
        (tmp_path / "w/wandb" / name).mkdir(parents=True)
    (tmp_path / "w/wandb/run-20260101_080000-cccc").mkdir()  # online
    (tmp_path / "fake/wandb").mkdir(parents=True)
    (tmp_path / "fake/wandb/__init__.py").touch()
    (tmp_path / "fake/wandb/__main__.py").write_text(FAKE)
    return tmp_path / "w"


def environment(folder: Path, **more: str) -> dict[str, str]:
    fake, calls = str(folder.parent / "fake"), str(folder.parent / "calls")
    return {**os.environ, "PYTHONPATH": fake, "CALLS": calls, **more}


def test_offline_runs_are_sent_once_even_where_runs_are_to_be_offline(folder: Path) -> None:
    assert len(offline_runs(folder)) == 2
    said = sync(folder, "mine", environment(folder, WANDB_MODE="offline"))
    assert said.startswith("2 ")
    calls = folder.parent / "calls"
    assert calls.read_text() == f"sync --project mine {folder}/wandb -"
    calls.unlink()
    assert "nothing to send" in sync(folder, "mine", environment(folder))
    assert not calls.exists()


def test_what_was_not_sent_is_an_error_that_says_what_to_do(folder: Path) -> None:
    with pytest.raises(UserError, match="1 of 2 offline runs are not sent") as error:
        sync(folder, "mine", environment(folder, LOST="bbbb"))
    assert "WANDB_API_KEY" in str(error.value)
    assert [run.name for run in offline_runs(folder)] == [NAMES[1]]


def test_the_dashboard_has_the_four_panels_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: dict[str, Any] = {}

    class Workspace(SimpleNamespace):
        def save(self) -> Workspace:
            saved.update(vars(self))
            self.url = "https://example.org/view"
            return self

    for name, content in {
        "wandb_workspaces": SimpleNamespace(),
        "wandb_workspaces.workspaces": SimpleNamespace(Workspace=Workspace, Section=dict),
        "wandb_workspaces.reports": SimpleNamespace(),
        "wandb_workspaces.reports.v2": SimpleNamespace(LinePlot=dict),
    }.items():
        monkeypatch.setitem(sys.modules, name, content)  # type: ignore[arg-type]
    assert save_dashboard("me", "mine") == "https://example.org/view"
    assert (saved["entity"], saved["project"]) == ("me", "mine")
    shown = {s["name"]: tuple(p["y"][0] for p in s["panels"]) for s in saved["sections"]}
    assert shown == PANELS
    assert len(shown) == 4


def test_no_dashboard_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    api = SimpleNamespace(Api=lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setitem(sys.modules, "wandb", api)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # type: ignore[arg-type]
    assert "pip install wandb-workspaces" in dashboard("mine")
