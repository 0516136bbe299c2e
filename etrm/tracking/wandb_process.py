"""W&B in a process of its own: `python wandb_process.py`, started by `etrm.tracking.tracker`.

It reads JSON lines: the description of the W&B run, rows of metrics, tables, a summary; the end of
the input ends it. It answers with JSON lines: `folder` (where W&B keeps the run), or `problem`.
W&B's own process may be lost on the way (a scheduler that ends a job signals every process of it):
then this one begins again, a few times, with all that it has been given.
W&B can wait for a server for minutes, in calls that cannot be bounded and in hooks at the exit of
the interpreter; here nothing waits for it, and it is killed when it takes too long.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

ATTEMPTS = 3  # to begin again
CELL = 12  # pixels of a cell of a grid
AGAIN = "ETRM_MIRROR_AGAIN"  # a file: the run, when it begins again, and its lines so far


def main() -> None:
    """Mirror one run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # they are for the run, which then closes the input
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # W&B prints; the answers have this channel for themselves
    given = _given_before() or [_line()]
    if given[0]:
        _mirror(json.loads(given[0]), given[1:], answers)


def _line() -> str:
    """Read a line of the input, unbuffered: a restarted process has to read the rest."""
    with open(0, "rb", buffering=0, closefd=False) as raw:
        return raw.readline().decode()


def _mirror(asked: dict[str, Any], given: list[str], answers: TextIO) -> None:
    """Mirror the run; `given` are lines of it that have been read already."""
    again = asked.get("again", 0)
    try:
        run = _start(asked)
    except Exception as error:
        problem = f"not started ({_text(error)})"
        if asked["mode"] == "online":
            _begin_again({**asked, "mode": "offline", "problem": problem}, given, answers)
        elif again < ATTEMPTS and not isinstance(error, ImportError):
            _begin_again({**asked, "again": again + 1}, given, answers)
        _answer(answers, problem=problem)
        return
    _answer(answers, folder=str(run.settings.sync_dir), problem=asked.get("problem"))
    if url := getattr(run, "url", None):  # of one that is online: the record of the run links to it
        path = os.path.join(asked["folder"], f"{asked['run']['id']}.url")
        with open(path, "w", encoding="utf-8") as file:
            file.write(url)
    try:
        for line in given:
            _send(run, line)
        while line := _line():
            given.append(line)
            _send(run, line)
        threading.Thread(
            target=_give_up, args=(asked["finish_seconds"], answers), daemon=True
        ).start()
        run.finish()
    except Exception as error:
        if again < ATTEMPTS:
            if asked["mode"] == "offline":  # all of it will be in another one
                shutil.rmtree(run.settings.sync_dir, ignore_errors=True)
            _begin_again({**asked, "again": again + 1}, given, answers)
        _answer(answers, problem=f"gave up ({_text(error)})")
    os._exit(0)


def _send(run: Any, line: str) -> None:
    row = json.loads(line)
    if "summary" in row:
        run.summary.update(row["summary"])
    elif "table" in row:
        run.log({row["table"]: _table(row)}, step=row["step"])
    else:
        run.log(row["values"], step=row["step"])


def _table(row: dict[str, Any]) -> Any:
    import wandb

    def cell(content: Any) -> Any:
        return _picture(content, row["colours"]) if isinstance(content, list) else content

    rows = [[cell(content) for content in cells] for cells in row["rows"]]
    return wandb.Table(columns=row["columns"], data=rows)


def _picture(grid: list[list[int]], colours: list[str]) -> Any:
    """Return a grid in `colours`, enlarged."""
    import numpy as np
    import wandb

    palette = np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)
    picture = palette[np.array(grid)]  # [height, width, RGB]
    return wandb.Image(picture.repeat(CELL, axis=0).repeat(CELL, axis=1))


def _start(asked: dict[str, Any]) -> Any:
    os.makedirs(asked["folder"], exist_ok=True)
    # Pictures of tables wait there to be sent; by default W&B puts them into the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", os.path.join(asked["folder"], "data"))
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=asked["init_seconds"])
    place = {"mode": asked["mode"], "dir": asked["folder"]}
    return wandb.init(**asked["run"], **place, resume="allow", settings=settings)


def _begin_again(asked: dict[str, Any], given: list[str], answers: TextIO) -> None:
    """Restart this process, which keeps the input: W&B holds on to the id of a run that failed."""
    os.environ.pop("WANDB_SERVICE", None)
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl", delete=False) as file:
        file.write("".join([json.dumps(asked) + "\n", *given]).encode())
    os.environ[AGAIN] = file.name
    os.dup2(answers.fileno(), 1)
    os.execv(sys.executable, [sys.executable, "-P", __file__])


def _given_before() -> list[str]:
    """Return the lines of the process that this one restarts; none if it is the first."""
    path = os.environ.pop(AGAIN, None)
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    os.unlink(path)
    return lines


def _give_up(seconds: float, answers: TextIO) -> None:
    time.sleep(seconds)
    _answer(answers, problem=f"the server did not take everything in {seconds:.0f} s")
    os._exit(1)


def _answer(answers: TextIO, **content: str | None) -> None:
    with suppress(OSError):  # nobody may be there to read it
        answers.write(json.dumps(content) + "\n")


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


if __name__ == "__main__":
    main()
