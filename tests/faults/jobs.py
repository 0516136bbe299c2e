"""Real training jobs on a tiny study, to be killed: `etrm run` in processes of their own.

A job is the command line as a person types it, in a process forked from a warm one (importing
PyTorch takes longer than these runs), and so are the processes that it starts: `srun`, launchers
of nodes, ranks. `stall` stops each of them at its n-th call of a function, so that it can be killed
right there, as in the middle of a save.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file
from tiny import MODEL, make_tasks, small_context, write_study

from etrm.runtime.interruption import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from etrm.runtime.interruption import Interruption
from etrm.runtime.run_lock import LEASES, this_process
from etrm.storage.digests import code_digest, train_code

NAME = "etrm/overfit/seed0"
STEPS = 36
ROOT = Path(__file__).resolve().parents[2]
SEARCHED = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/faults")])
# Nodes take all cores for their ranks, and here they have the same: threads sleep as they wait.
PYTHON = {"PYTHONPATH": SEARCHED, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
Patch = dict[str, Any] | None
PATIENCE = 60.0  # seconds until a job that does not do what it should is a failure
RETRY = 0.05  # seconds between two looks or tries
LOCK = "etrm.runtime.run_lock"
QUICK = {
    "etrm.runtime.disk_wait:RETRY_SECONDS": RETRY,
    f"{LOCK}:HEARTBEAT_SECONDS": RETRY,
    f"{LOCK}:POLL_SECONDS": RETRY,
}
SILENCE = 1.5  # seconds without a heartbeat, in tests that wait for the end of a lease
SILENT = {f"{LOCK}:SILENCE_SECONDS": SILENCE}  # for all processes of a run


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

    def command(self, experiment: str = "etrm", *more: str) -> list[str]:
        """The command, after `python -m`."""
        where = ["--configfile", str(self.config), "--device", "cpu"]
        return ["etrm", "run", experiment, "overfit", *where, *more]


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
    """A process that runs one command, and the file of what it says."""

    def __init__(self, pid: int, log: Path, wait: Callable[[], int]) -> None:
        self.pid, self.log = pid, log
        self.wait = functools.cache(wait)  # its exit code, negative for a signal

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A job that has ended already is left alone: it is reaped by `wait`, so its id is its."""
        os.kill(self.pid, number)

    def says(self, text: str) -> None:
        """Wait until it has said this."""
        wait_for(lambda: text in self.log.read_text(), f"{text!r} in {self.log}")

    def ended(self, code: int) -> str:
        """What it has said when it has ended with this code."""
        found, log = self.wait(), self.log.read_text()
        assert found == code, log
        return log

    def children(self) -> list[int]:
        """The processes that it has started and that live, in their order."""
        return children_of(self.pid)


def start(command: list[str], log: Path, **environment: str) -> Job:
    """Start a job in a Python of its own, as all that it starts."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **PYTHON, **environment},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Job(process.pid, log, lambda: process.wait(2 * PATIENCE))


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for found in threads for child in found.read_text().split())


def gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"


class Server:
    """A warm process that forks jobs."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **PYTHON},
        )
        self._folder, self._count = folder, 0

    def start(
        self, command: list[str], stall: Stall | None = None, patch: Patch = None, **env: str
    ) -> Job:
        """Start a job, for which `wait` must be called in the end.

        `patch`: values of `module:attribute`, for it and all that it starts; `env`: variables.
        """
        self._count += 1
        log = self._folder / f"job{self._count}.log"
        log.touch()
        stalling = None
        if stall is not None:
            stall.marker.unlink(missing_ok=True)
            stalling = [stall.function, stall.call, str(stall.marker)]
        asked = {"command": command, "stall": stalling, "patch": patch or {}, "env": env}
        pid = self._ask({**asked, "log": str(log)})
        return Job(pid, log, lambda: self._ask({"wait": pid}))

    def run(self, command: list[str], **env: str) -> str:
        """The log of a job that is left alone, and ends well."""
        return self.start(command, None, **env).ended(0)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def _ask(self, content: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@dataclass(frozen=True)
class Stall:
    """Where a job stops: just before a call of `module:attribute`, counted from one."""

    function: str
    call: int
    # Has the number of each process that has stopped there; these go on when it is removed.
    marker: Path


Place = tuple[str, int]
STEP = ("etrm.training.trainer:Trainer.step", 20)


@dataclass(frozen=True)
class Scene:
    """A study in which `other` has been run and `etrm` is disturbed, and an undisturbed one."""

    server: Server
    study: Study
    undisturbed: Study
    marker: Path  # is there while a job stands still

    @property
    def lease(self) -> Path:
        """The folder of the lease on the run."""
        return self.study.state / LEASES / NAME

    def start(self, at: Place | None = None, **patch: Any) -> Job:
        """A job with quick heartbeats; `at`: one that stands still there."""
        stall = None if at is None else Stall(*at, self.marker)
        job = self.server.start(self.study.command(), stall, {**QUICK, **patch})
        if at is not None:
            wait_for(self.marker.exists, f"{at}, {job.log}")
        return job

    def ranks(self, **patch: Any) -> Job:
        """The run on two ranks."""
        command = self.study.command("etrm", "--gpus", "2")
        return self.server.start(command, None, {**QUICK, **patch})

    def same(self) -> None:
        """Assert that the run has come to the same as an undisturbed one."""
        assert_same_run(self.study.out(), self.undisturbed.out())

    def resumes(self, step: object = None, **patch: Any) -> str:
        """The run, started again, resumes from a step and comes to the same; returns its log."""
        log = self.start(None, **patch).ended(0)
        assert step is None or f"resuming from step {step} " in log
        self.same()
        return log


def serve() -> None:
    """What the server does; it never trains itself, so that its children can.

    What every job would import and compute first is there already.
    """
    for module in (
        "etrm.cli",
        "etrm.training.run",
        "etrm.launch.torchrun",
        "etrm.models.encoders.standard",
        "torch._dynamo",
        "torch.distributed.run",
    ):
        importlib.import_module(module)
    code_digest(*train_code("standard"))
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _run(asked)
        print(answer, flush=True)


def _run(asked: dict[str, Any]) -> NoReturn:
    """The child: its output goes to the log."""
    file = os.open(asked["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    _take_streams(os.open(os.devnull, os.O_RDONLY), file, file)
    os.environ.update(asked["env"])
    for name, value in asked["patch"].items():
        setattr(*_place(name), value)
    if asked["stall"] is not None:
        _stall(*asked["stall"])
    subprocess.Popen._execute_child = _fork_child  # type: ignore[attr-defined]
    _be(*asked["command"])


def _be(module: str, *arguments: str) -> NoReturn:
    """Be `python -m module …`, and end as that does."""
    code = 1
    sys.argv = [module, *arguments]
    if "." in module:
        sys.modules.pop(module, None)  # it is imported as the program instead
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def _fork_child(process: subprocess.Popen[Any], *given: Any) -> None:
    """In the place of `Popen._execute_child`: fork Python programs of ours, `srun` among them."""
    asked = inspect.signature(_execute_child).bind(process, *given).arguments
    words = [str(word) for word in asked["args"] if word != "-u"]
    if words[0] != "srun" and words[:2] != [sys.executable, "-m"]:
        return _execute_child(process, *given)  # type: ignore[no-any-return]
    # A signal that arrives meanwhile is for the new program, which handles none yet.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, Interruption.signals)
    process.pid = os.fork()
    if process.pid == 0:
        for number in Interruption.signals:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        _take_streams(asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
        if asked["start_new_session"]:
            os.setsid()
        if asked["preexec_fn"]:
            asked["preexec_fn"]()
        if asked["env"] is not None:
            environment = dict(asked["env"])
            os.environ.clear()
            os.environ.update(environment)
        logging.getLogger().handlers.clear()
        _be(*(words if words[0] == "srun" else words[2:]))
    signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    process._child_created = True  # type: ignore[attr-defined]


def _take_streams(*files: int) -> None:
    """Have open files, but for -1, as the streams of this process, and no others."""
    for number, file in enumerate(files):
        if file != -1:
            os.dup2(file, number)
    os.closerange(3, 1024)


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
            with open(marker, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
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
