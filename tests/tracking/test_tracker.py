"""Metrics are complete whatever W&B does."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import make_run

from etrm.arc.grid import ARC_COLOURS
from etrm.config.execution import TrackingConfig
from etrm.config.load import plain
from etrm.tracking import tracker as tracker_module
from etrm.tracking.tracker import Tracker, metrics_table

RUN = make_run()
# Two calls at one step share a row.
ROWS = [{"step": 1.0, "a": 0.5}, {"step": 2.0, "a": 0.25, "b": 1.0}, {"step": 2.0, "c": 3.0}]
TABLE = {"step": [1, 2], "a": [0.5, 0.25], "b": [None, 1.0], "c": [None, 3.0]}
LOGGED = [[{"a": 0.5}, 1], [{"a": 0.25, "b": 1.0}, 2], [{"c": 3.0}, 2]]

# W&B as far as it is used: it writes down its calls; some of them raise, or never return.
FAKE = """
import json, os, time
from types import SimpleNamespace
broken, hanging = os.environ["BROKEN"].split(), os.environ["HANGING"].split()
mode = None

def called(call, content):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([call, content]) + "\\n")
    if call in broken or f"{call}:{mode}" in broken:
        raise RuntimeError(f"the network is gone ({call})")
    if call == os.environ.get("LOST") and not os.path.exists(os.environ["CALLS"] + ".lost"):
        open(os.environ["CALLS"] + ".lost", "w").close()
        raise RuntimeError("Connection lost")
    if call in hanging:
        time.sleep(60)

def Settings(**options):
    return SimpleNamespace(**options)

def Table(columns, data):
    return {"columns": columns, "data": data}

def Image(picture):
    return {"size": picture.shape, "corner": picture[0, 0].tolist()}

def init(settings, **options):
    global mode
    mode = options["mode"]
    called("init", options)
    print("W&B talks")
    run = SimpleNamespace(settings=SimpleNamespace(sync_dir=options["dir"] + "/run"))
    run.summary = SimpleNamespace(update=lambda values: called("summary", values))
    run.log = lambda values, step: called("log", [values, step])
    run.finish = lambda: called("finish", None)
    return run
"""


class Wandb:
    """The fake W&B of a test: its calls, and what is said of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
        self.folder, self._set, self._log = folder, monkeypatch.setenv, log
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        (folder / "fake").mkdir()
        self.is_program(FAKE)
        self.has(PYTHONPATH=str(folder / "fake"), CALLS=str(folder / "calls"))
        self.has(BROKEN="", HANGING="", NETRC="/nonexistent", HOME="/nonexistent")

    def is_program(self, text: str) -> None:
        (self.folder / "fake/wandb.py").write_text(text)

    def has(self, **environment: str) -> None:
        for name, value in environment.items():
            self._set(name, value)

    def calls(self, name: str) -> list[Any]:
        """What W&B was called with."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [content for call, content in map(json.loads, lines) if call == name]

    def modes(self) -> list[str]:
        return [started["mode"] for started in self.calls("init")]

    def tracker(self, mode: str) -> Tracker:
        tracking = TrackingConfig(wandb=mode)
        return Tracker(tracking, RUN, "0123" * 8, self.folder / "a_study" / "w")

    def track(self, mode: str = "auto") -> str:
        """Track a run of three rows, whose table is complete; return the warnings."""
        tracker = self.tracker(mode)
        for row in ROWS:
            tracker.log(dict(row))
        with self._log.at_level(logging.WARNING):
            tracker.write(self.folder / "metrics.parquet")
            tracker.finish({"all.exact_accuracy": 1.0})
        assert pq.read_table(self.folder / "metrics.parquet").to_pydict() == TABLE
        return str(self._log.text)


@pytest.fixture(autouse=True)
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Wandb:
    return Wandb(tmp_path, monkeypatch, caplog)


def test_wandb_gets_what_the_table_gets(wandb: Wandb) -> None:
    assert wandb.track() == ""
    assert wandb.calls("log") == LOGGED
    assert wandb.calls("summary") == [{"all.exact_accuracy": 1.0}]
    assert len(wandb.calls("finish")) == 1
    [started] = wandb.calls("init")
    assert started["mode"] == "offline"
    assert (started["id"], started["resume"]) == ("0123" * 4, "allow")
    assert (started["project"], started["name"]) == ("etrm", "tiny/overfit/seed0")
    assert started["group"] == "tiny/overfit", "of all seeds"
    assert set(started["tags"]) >= {"a_study", "overfit", "standard", "seed0"}
    assert started["config"] == plain(RUN)


def test_a_table_shows_grids_as_pictures_in_the_colours_of_arc(wandb: Wandb) -> None:
    tracker = wandb.tracker("offline")
    tracker.table(7, "eval_predictions", ("task", "grid"), [["a", [[3, 0, 0]]], ["b", None]])
    tracker.finish({})
    [[values, step]] = wandb.calls("log")
    assert step == 7
    found = values["eval_predictions"]
    assert found["columns"] == ["task", "grid"]
    (name, picture), second = found["data"]
    assert (name, second) == ("a", ["b", None])
    height, width, _ = picture["size"]
    assert width == 3 * height
    assert picture["corner"] == list(bytes.fromhex(ARC_COLOURS[3][1:]))


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_failing_wandb_is_a_warning(broken: str, wandb: Wandb) -> None:
    wandb.has(BROKEN=broken)
    text = wandb.track()
    assert text.count("the network is gone") == 1
    assert text.count("WARNING") == 1


@pytest.mark.parametrize("lost", ["log", "summary", "finish"])
def test_a_wandb_whose_own_process_is_lost_gets_everything_again(lost: str, wandb: Wandb) -> None:
    wandb.has(LOST=lost)
    assert wandb.track() == ""
    first, again = wandb.calls("init")
    assert first["id"] == again["id"]
    assert wandb.calls("log")[-3:] == LOGGED
    assert wandb.calls("summary")[-1] == {"all.exact_accuracy": 1.0}
    assert len(wandb.calls("finish")) == (2 if lost == "finish" else 1)


def test_a_server_that_cannot_be_reached_leaves_a_run_that_can_be_sent_later(wandb: Wandb) -> None:
    wandb.has(BROKEN="init:online")
    assert f"wandb sync {wandb.folder}/a_study/w/run" in wandb.track("online")
    assert wandb.modes() == ["online", "offline"]
    assert len(wandb.calls("log")) == 3
    assert len(wandb.calls("finish")) == 1


@pytest.mark.parametrize("hanging", ["init", "log", "finish"])
def test_a_hanging_wandb_is_not_waited_for(
    hanging: str, wandb: Wandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is its process left behind."""
    monkeypatch.setattr(tracker_module, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(tracker_module, "MARGIN_SECONDS", 0.3)
    wandb.has(HANGING=hanging)
    tracker = wandb.tracker("offline")
    for step in range(20000):  # more than a pipe holds
        tracker.log({"step": float(step), "a": 1.0})
    assert hanging == "finish" or len(wandb.calls("log")) <= 1, "it still hangs"
    process = tracker._mirror._process  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        tracker.finish({})
    assert process.wait(5) is not None
    assert "did not take everything" in caplog.text


def test_wandb_ends_with_a_run_that_is_killed(wandb: Wandb) -> None:
    """A signal to the whole group, as Ctrl-C is, does not end it before it has sent everything."""
    folder = str(wandb.folder)
    code = (
        "import sys, time; from pathlib import Path; from etrm.tracking.tracker import Tracker;"
        " from etrm.config.study import TrackingConfig; from tiny import make_run;"
        f" t = Tracker(TrackingConfig(wandb='offline'), make_run(), 'b', Path({folder!r}));"
        " t.log({'step': 1.0, 'a': 2.0}); print(t._mirror._process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    paths = (wandb.folder / "fake", root, root / "tests")
    wandb.has(PYTHONPATH=os.pathsep.join(map(str, paths)))
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None
    mirror = int(run.stdout.readline())
    wait_for(lambda: wandb.calls("log"))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: wandb.calls("finish"))
    wait_for(lambda: not Path(f"/proc/{mirror}/cmdline").exists() or is_zombie(mirror))


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z"


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_wandb_that_is_not_installed_is_a_warning(wandb: Wandb) -> None:
    wandb.is_program("raise ModuleNotFoundError('no module wandb')")
    assert "W&B: not started (no module wandb)" in wandb.track()


def test_a_disabled_wandb_is_not_even_started(
    monkeypatch: pytest.MonkeyPatch, wandb: Wandb
) -> None:
    monkeypatch.setattr(tracker_module, "MIRROR", None)
    assert wandb.track("disabled") == ""


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
    wanted: str, environment: dict[str, str], expected: str, wandb: Wandb
) -> None:
    wandb.has(**environment)
    wandb.track(wanted)
    assert wandb.modes() == [expected]


def test_a_key_in_netrc_is_a_key(wandb: Wandb) -> None:
    path = wandb.folder / ".netrc"
    path.write_text("machine api.wandb.ai login user password secret\n")
    path.chmod(0o600)
    wandb.has(HOME=str(wandb.folder), NETRC=str(path))
    wandb.track()
    assert wandb.modes() == ["online"]


def test_columns_have_types_and_keep_numbers_that_are_not_finite() -> None:
    table = metrics_table([{"step": 3.0, "a": float("nan")}, {"step": 4.0}])
    assert table.schema.field("step").type == pa.int64()
    assert table.schema.field("a").type == pa.float64()
    first, second = table.column("a").to_pylist()
    assert first != first
    assert second is None
