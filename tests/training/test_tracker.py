"""Metrics are complete whatever W&B does."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etrm.config.study import TrackingConfig
from etrm.tracker import Tracker, metrics_table

# Two calls at one step share a row.
ROWS = [{"step": 1.0, "a": 0.5}, {"step": 2.0, "a": 0.25, "b": 1.0}, {"step": 2.0, "c": 3.0}]
TABLE = {"step": [1, 2], "a": [0.5, 0.25], "b": [None, 1.0], "c": [None, 3.0]}


class FakeWandb(ModuleType):
    """W&B as far as it is used; `broken` names the calls that raise."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        super().__init__("wandb")
        self.broken = broken
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def Settings(self, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)

    def init(self, **options: Any) -> FakeWandb:
        self._maybe_fail("init")
        self.started = options
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._maybe_fail("log")
        self.logged.append((values, step))

    def finish(self, **_: Any) -> None:
        self._maybe_fail("finish")
        self.finished += 1

    def _maybe_fail(self, call: str) -> None:
        if call in self.broken:
            raise RuntimeError(f"the network is gone ({call})")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", "/nonexistent")


def tracked(
    monkeypatch: pytest.MonkeyPatch, folder: Path, wandb: ModuleType | None, mode: str = "auto"
) -> pa.Table:
    """The table that a run of three rows leaves."""
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # None: importing it fails
    tracker = Tracker(TrackingConfig(wandb=mode), "a/full/seed0", "0123", {"lr": 1}, folder / "w")
    for row in ROWS:
        tracker.log(dict(row))
    tracker.write(folder / "metrics.parquet")
    tracker.finish({"all.exact_accuracy": 1.0})
    return pq.read_table(folder / "metrics.parquet")


def test_wandb_gets_what_the_table_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = FakeWandb()
    table = tracked(monkeypatch, tmp_path, wandb)
    assert table.to_pydict() == TABLE
    assert wandb.logged == [({"a": 0.5}, 1), ({"a": 0.25, "b": 1.0}, 2), ({"c": 3.0}, 2)]
    assert wandb.summary == {"all.exact_accuracy": 1.0}
    assert wandb.finished == 1
    assert wandb.started["mode"] == "offline"
    assert (wandb.started["id"], wandb.started["resume"]) == ("0123", "allow")
    assert (wandb.started["project"], wandb.started["name"]) == ("etrm", "a/full/seed0")
    assert wandb.started["config"] == {"lr": 1}


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failing_wandb_is_a_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = tracked(monkeypatch, tmp_path, FakeWandb((broken,)))
    assert table.to_pydict() == TABLE
    assert caplog.text.count("the network is gone") == 1


def test_a_wandb_that_is_not_installed_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = tracked(monkeypatch, tmp_path, None)
    assert table.to_pydict() == TABLE
    assert "W&B: not started" in caplog.text


def test_a_disabled_wandb_is_not_even_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = tracked(monkeypatch, tmp_path, None, mode="disabled")
    assert table.to_pydict() == TABLE
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("wanted", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
    ],
)
def test_the_mode_of_wandb(
    wanted: str,
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb = FakeWandb()
    tracked(monkeypatch, tmp_path, wandb, mode=wanted)
    assert wandb.started["mode"] == expected


def test_a_key_in_netrc_is_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    wandb = FakeWandb()
    tracked(monkeypatch, tmp_path, wandb)
    assert wandb.started["mode"] == "online"


def test_columns_have_types_and_keep_numbers_that_are_not_finite() -> None:
    table = metrics_table([{"step": 3.0, "a": float("nan")}, {"step": 4.0}])
    assert table.schema.field("step").type == pa.int64()
    assert table.schema.field("a").type == pa.float64()
    first, second = table.column("a").to_pylist()
    assert first != first
    assert second is None
