"""The command `etrm solve`: print the answers to tasks, and write them to a folder."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.storage.files import write_json_atomic

OUT = "solved"
RECORD = "solve.json"  # in the folder of answers: the questions; it marks the folder as ours
SUBMISSION = "submission.json"
NO_MATPLOTLIB = "matplotlib is not installed, etrm[pipeline] brings it"


def add_solve_options(parser: ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    forms = "task file, folder of them, Kaggle challenges file, public set, or - for standard input"
    add("tasks", nargs="+", metavar="TASK", help=f"{forms}; test outputs may be missing")
    add("--run", required=True, metavar="FOLDER", help="a run folder, as …/full/seed0")
    few = "augmented puzzles that vote; default: 32, or 1 of a run that was trained without"
    add("--variants", type=_at_least(1), metavar="N", help=few)
    searched = "steps of latent search for contexts by which the demos are likely; default: none"
    add("--search", type=_at_least(0), default=0, metavar="K", help=searched)
    add("--device", help="cpu, cuda, cuda:1, …; default: a GPU if there is one")
    add("--weights", choices=("ema", "raw"), default="ema", help="%(default)s by default")
    add("--out", default=OUT, metavar="FOLDER", help="of submission.json and pictures: %(default)s")
    add("--skip", action="store_true", help="leave out tasks that are too large for the run")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"found {text}, expected a whole number from {least}")
        return int(text)

    return number


def run(given: Namespace) -> int:
    """Answer the tasks; return 1 where some were left out."""
    from etrm.solve.tasks import MAX_LISTED, TaskError, read_tasks

    tasks = read_tasks(given.tasks)  # before torch is loaded: a bad task is told at once
    out = Path(given.out).expanduser()
    pictures = {task.id: out / f"{quote(task.id, safe=' ')}.png" for task in tasks}
    _refuse_others(out, [out / SUBMISSION, *pictures.values()])
    from etrm.solve.solution import empty_submission
    from etrm.solve.solver import load

    began = time.perf_counter()
    solver = load(given.run, given.weights, given.device)
    reasons = {task.id: solver.too_large(task) for task in tasks}
    left_out = [reason for reason in reasons.values() if reason is not None]
    asked = [task for task in tasks if reasons[task.id] is None]
    if left_out and not (given.skip and asked):
        raise TaskError(left_out)
    for reason in first_few(left_out, MAX_LISTED):
        print(f"etrm: left out: {reason}", file=sys.stderr)
    record = {"run": str(solver.folder), "run_key": solver.record["key"], "weights": given.weights}
    record |= {"variants": given.variants or solver.variants, "search": given.search}
    record |= {"tasks": [task.id for task in asked]}
    write_json_atomic(out / RECORD, record)  # first: the files beside it are ours
    answers, right = empty_submission(tasks), []
    draws = find_spec("matplotlib") is not None
    for solution in solver.stream(asked, variants=given.variants, search=given.search):
        solution.show()
        answers |= solution.submission()
        right += [each for each in solution.correct if each is not None]
        if draws:
            solution.picture(pictures[solution.task.id])
    write_json_atomic(out / SUBMISSION, answers)
    write_json_atomic(out / RECORD, record | {"seconds": round(time.perf_counter() - began, 3)})
    if right:
        print(f"{sum(right)} of {len(right)} known test outputs are right")
    beside = "a picture of each task beside it" if draws else f"no picture: {NO_MATPLOTLIB}"
    print(f"{out / SUBMISSION}; {beside}")
    return 1 if left_out else 0


def _refuse_others(out: Path, files: Sequence[Path]) -> None:
    """Raise `UserError` where a file would be replaced that this command has not written."""
    record = out / RECORD
    there = [file for file in (record, *files) if file.exists()]
    if there and not (record.is_file() and b'"run_key"' in record.read_bytes()):
        raise UserError(
            f"{there[0]}: found a file that `etrm solve` has not written (no {RECORD} of its own is"
            " there), expected none: name another folder by --out"
        )
