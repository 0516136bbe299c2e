"""Real training jobs on a tiny study, to be killed: `etrm run` in processes of their own.

A job is the command line as a person types it, in a process forked from a warm one (importing
PyTorch takes longer than these runs). `stall` stops a job at the n-th call of a function, so that
it can be killed right there, as in the middle of a save.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file
from tiny import MODEL, make_tasks, small_context, write_study

from etrm.runtime.run_lock import this_process
from etrm.storage.digests import code_digest, train_code

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/faults")])
EXIT_INTERRUPTED = 75
Patch = dict[str, Any] | None
SILENCE = 3.0  # seconds without a heartbeat, for all processes of a test that waits for that
PATIENCE = 60.0  # seconds until a job that does not do what it should is a failure


@dataclass(frozen=True)
class Study:
    """A study with its tables and two experiments, of which `etrm` is the one that is disturbed."""

    folder: Path
    name: str = "config.yaml"

    @property
    def config(self) -> Path:
        return self.folder / self.name

    @property
    def root(self) -> Path:
        return self.folder / "results/tiny"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def out(self, experiment: str = "etrm") -> Path:
        return self.root / "runs" / experiment / "overfit/seed0"

    def states(self) -> list[Path]:
        """Those that runs can go on from, the newest last."""
        return sorted(self.state.glob("*/step*.state"), key=step_of)

    def newest(self) -> int:
        """The step of the newest state; 0 where there is none."""
        return max(map(step_of, self.states()), default=0)

    def copy(self, folder: Path) -> Study:
        """The same study as it is now, elsewhere."""
        shutil.copytree(self.folder, folder)
        other = Study(folder, self.name)
        document = yaml.safe_load(self.config.read_text())
        other.config.write_text(yaml.safe_dump({**document, "results": str(folder / "results")}))
        return other

    def clear(self, experiment: str = "etrm") -> None:
        """As if it had never been run."""
        shutil.rmtree(self.out(experiment).parents[1], ignore_errors=True)
        shutil.rmtree(self.state / "finished" / experiment, ignore_errors=True)
        for path in self.states():
            path.unlink()

    def command(self, experiment: str = "etrm", *more: str) -> list[str]:
        """What follows `etrm` on the command line."""
        where = ["--configfile", str(self.config), "--device", "cpu"]
        return ["run", experiment, "overfit", *where, *more]


def step_of(state: Path) -> int:
    """The step in a state's name."""
    return int(state.stem.removeprefix("step"))


def make_study(folder: Path, steps: int, **train: Any) -> Study:
    """The study in `folder`, nothing run."""
    study = Study(folder)
    training = {"steps": steps, "batch_size": 6, "lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9}
    training |= {"log_every": 4, "save_every": 6, "eval_every": 25, "eval_episodes": 8, **train}
    document = {
        "study": "tiny",
        "results": str(folder / "results"),
        "defaults": {
            "episodes": {"canvas": [3, 4]},
            "model": MODEL,
            "context": small_context("standard"),
            "halting": {"max_steps": 3},
            "train": training,
        },
        "experiments": {"etrm": {}, "other": {"halting": {"max_steps": 2}}},
        "tracking": {"wandb": "disabled"},
    }
    (study.root / "data").mkdir(parents=True)
    study.config.write_text(yaml.safe_dump(document))
    write_study(study.root / "data", make_tasks(4), make_tasks(2, seed=7, prefix="held_out"))
    return study


# --- jobs ---


class Job:
    """A process of the server that runs one command."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self._server = server
        self._code: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A job that has ended already is left alone: it is reaped by `wait`, so its id is its."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        if self._code is None:
            self._code = self._server.result(self.pid)
        return self._code


class Server:
    """A warm process that forks jobs."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._folder, self._count = folder, 0

    def start(
        self, command: list[str], stall: Stall | None = None, patch: Patch = None, **env: str
    ) -> Job:
        """Start a job, for which `wait` must be called in the end.

        `patch`: values of `module:attribute`, for it alone; `env`: its environment.
        """
        self._count += 1
        log = self._folder / f"job{self._count}.log"
        log.touch()
        stalling = None
        if stall is not None:
            stall.marker.unlink(missing_ok=True)
            stalling = [stall.function, stall.call, str(stall.marker)]
        asked = {"command": command, "stall": stalling, "patch": patch or {}, "env": env}
        self._send({**asked, "log": str(log)})
        return Job(self, self._receive()["pid"], log)

    def run(self, command: list[str], patch: Patch = None, **env: str) -> tuple[int, str]:
        """Exit code and log of a job that is left alone."""
        job = self.start(command, None, patch, **env)
        return job.wait(), job.log.read_text()

    def result(self, pid: int) -> int:
        self._send({"wait": pid})
        code: int = self._receive()["code"]
        return code

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def _send(self, content: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@dataclass(frozen=True)
class Stall:
    """Where a job stops: just before a call of `module:attribute`, counted from one."""

    function: str
    call: int
    marker: Path  # is written when the job has stopped there, which goes on when it is removed


def serve() -> None:
    """What the server does; it never trains itself, so that its children can.

    What every job would import and compute first is there already.
    """
    for module in (
        "etrm.cli",
        "etrm.launch.torchrun",
        "etrm.models.encoders.standard",
        "torch._dynamo",
    ):
        importlib.import_module(module)
    code_digest(*train_code("standard"))
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            status = os.waitpid(asked["wait"], 0)[1]
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                _run(asked)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _run(asked: dict[str, Any]) -> None:
    """The child: its output goes to the log, and it ends as a command does."""
    from etrm.cli import main

    file = os.open(asked["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(asked["env"])
    code = 1
    try:
        for name, value in asked["patch"].items():
            setattr(*_place(name), value)
        if asked["stall"] is not None:
            _stall(*asked["stall"])
        code = main(asked["command"])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _place(name: str) -> tuple[Any, str]:
    """The module or class, and its attribute, that `module:attribute` names."""
    module, _, path = name.partition(":")
    *classes, attribute = path.split(".")
    return functools.reduce(getattr, classes, importlib.import_module(module)), attribute


def _stall(function: str, call: int, marker: str) -> None:
    owner, name = _place(function)
    original, count = getattr(owner, name), 0

    def stalling(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            Path(marker).touch()
            while os.path.exists(marker):
                time.sleep(0.01)
        return original(*arguments, **options)

    setattr(owner, name, stalling)


# --- what came of them ---


def metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of a run but for what depends on the clock."""
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def assert_same_run(found: Path, expected: Path) -> None:
    """Equal weights, bit for bit, and equal rows."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert set(ours) == set(theirs)
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different
    assert metrics(found) == metrics(expected)


def content(*folders: Path) -> dict[str, bytes]:
    """Every file under some folders."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def claim(folder: Path, **record: Any) -> Path:
    """Give a run's lease to a process that is none of this test's, by default this one."""
    record = {**this_process(), "token": "other", "key": "", "began": "today", **record}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "holder.json").write_text(json.dumps(record))
    lines = ["filelock/2", f"pid={record['pid']}", f"host={record['host']}", "mode=lease"]
    lines += [f"token={record['token']}", f"duration={float(SILENCE)!r}"]
    (folder / "new").write_text("".join(f"{line}\n" for line in lines))
    return (folder / "new").replace(folder / "lock")


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Until it is so."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
