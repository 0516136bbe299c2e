"""Read one JSON file and one task in it, collecting all problems instead of stopping at the first.

A problem of a task says so: its source may leave such tasks out. The side of grids is looked at
last, of a whole task: those that `data.max_side` leaves out may be of any size.

A fast check passes valid grids; only a grid that fails it is looked at cell by cell.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from etrm.arc.grid import visible_side
from etrm.arc.task import Pair, Task
from etrm.config.lanes import MAX_SIDE
from etrm.config.text import printable

DIGITS = frozenset("0123456789")
UNLABELLED = "set `labelled: false` if the source has no answers"
GRID = f"a list of 1-{MAX_SIDE} rows of 1-{MAX_SIDE} colours"


@dataclass(frozen=True)
class SourceProblem:
    """Something wrong with a source: place, finding, expectation and remedy."""

    where: str
    found: str
    expected: str
    fix: str = ""
    task: str | None = None  # id of the task that is unusable for it; None: it is of a file

    def __str__(self) -> str:
        line = f"{printable(self.where)}: found {printable(self.found)}, expected {self.expected}"
        return f"{line}; {self.fix}" if self.fix else line


class Problems(list[SourceProblem]):
    """The problems found so far, in all sources."""

    def add(self, where: str, found: str, expected: str, fix: str = "") -> Any:
        """Add a problem; return None, for a reader to return instead of a value."""
        self.append(SourceProblem(where, found, expected, fix))

    def add_of_task(self, task_id: str, own: Problems) -> None:
        """Add the problems of one task."""
        self.extend(replace(problem, task=task_id) for problem in own)

    def add_duplicates(self, where: str, noun: str, entry: Any) -> None:
        """Add each key that a JSON object (of `read_object`) gave more than once."""
        for key in getattr(entry, "duplicates", ()):
            self.add(where, f"{noun} {key} more than once", "each once")


@dataclass(frozen=True)
class Answers:
    """The test outputs of a task, where they have a file of their own."""

    where: str
    grids: Any  # as they are in the file; None: not there


def read_task(
    where: str,
    task_id: str,
    entry: Any,
    problems: Problems,
    *,
    labelled: bool = True,
    answers: Answers | None = None,
    max_side: int | None = None,
) -> Task | None:
    """Return the task in a JSON object `{"train": [...], "test": [...]}`; None after a problem.

    Sides over 30 cells are a problem, unless the task's visible grids are larger than `max_side`:
    it is for the caller to leave out, and is returned as it is.
    """
    own = Problems()
    task = _read_task(where, task_id, entry, labelled, answers, own)
    if task and not own and (max_side is None or visible_side(task) <= max_side):
        _add_large_grids(where, where if answers is None else answers.where, task, own)
    problems.add_of_task(task_id, own)
    return None if own else task


def _read_task(
    where: str, task_id: str, entry: Any, labelled: bool, answers: Answers | None, own: Problems
) -> Task | None:
    if not task_id or not task_id.isprintable():  # it goes into tables, figures and submissions
        return own.add(where, f"the task id {task_id!a}", "printable characters")
    if not isinstance(entry, dict):
        return own.add(where, describe(entry), "an object with train and test")
    own.add_duplicates(where, "key", entry)
    demos = _read_pairs(where, "train", entry, True, own)
    queries = _read_pairs(where, "test", entry, labelled, own)
    if answers is not None and isinstance(entry.get("test"), list):  # else reported already
        outputs = _read_answers(answers, entry["test"], own)
        if not own:
            queries = tuple(Pair(q.input, o) for q, o in zip(queries, outputs, strict=True))
    return None if own else Task(task_id, demos, queries)


def _read_answers(answers: Answers, tests: list[Any], problems: Problems) -> list[Any]:
    """Return the outputs of a task's tests; not all of them after a problem."""
    where, grids = answers.where, answers.grids
    expected = f"a list of {count(tests, 'grid')}, one for each test"
    if grids is None:
        return problems.add(where, "no solutions", expected, UNLABELLED) or []
    if not isinstance(grids, list) or len(grids) != len(tests):
        return problems.add(where, describe(grids), expected) or []
    return [read_grid(f"{where}, test[{i}].output", g, problems) for i, g in enumerate(grids)]


def _add_large_grids(where: str, where_answers: str, task: Task, problems: Problems) -> None:
    fix = "set `data.max_side` to leave larger tasks out"
    for role, pairs in (("train", task.demos), ("test", task.queries)):
        for i, pair in enumerate(pairs):
            for key, grid in (("input", pair.input), ("output", pair.output)):
                if grid is not None and max(grid.shape) > MAX_SIDE:
                    found = (
                        f"{count(range(len(grid)), 'row')} of {count(range(grid.shape[1]), 'cell')}"
                    )
                    file = where_answers if (role, key) == ("test", "output") else where
                    problems.add(f"{file}, {role}[{i}].{key}", found, GRID, fix)


def _read_pairs(
    where: str, key: str, entry: dict[str, Any], labelled: bool, problems: Problems
) -> tuple[Any, ...]:
    """Return the pairs under `key`; not all of them, or None for some, after a problem."""
    if key not in entry:
        problems.add(where, f'no "{key}"', f'a list of pairs under "{key}"')
        return ()
    pairs, where = entry[key], f"{where}, {key}"
    if not isinstance(pairs, list) or not pairs:
        found = "no pair" if pairs == [] else describe(pairs)
        problems.add(where, found, "a list of at least one pair")
        return ()
    fix = UNLABELLED if key == "test" else ""
    return tuple(
        _read_pair(f"{where}[{i}]", pair, labelled, fix, problems) for i, pair in enumerate(pairs)
    )


def _read_pair(where: str, pair: Any, labelled: bool, fix: str, problems: Problems) -> Pair | None:
    if not isinstance(pair, dict):
        return problems.add(where, describe(pair), "an object with input and output")
    problems.add_duplicates(where, "key", pair)
    grids: dict[str, Any] = {"input": None, "output": None}
    for key in grids:
        if key in pair:
            grids[key] = read_grid(f"{where}.{key}", pair[key], problems)
        elif key == "input" or labelled:
            remedy = fix if key == "output" else ""
            problems.add(where, f'no "{key}"', f'a grid under "{key}"', remedy)
    return Pair(**grids)


def read_grid(where: str, grid: Any, problems: Problems) -> np.ndarray | None:
    """Return a read-only uint8 `[h, w]` array, of any size, or None after a problem."""
    rows = grid if isinstance(grid, list) and set(map(type, grid)) == {list} else []
    cells = [cell for row in rows for cell in row]
    if (
        set(map(type, cells)) == {int}  # a bool is none
        and set(map(len, rows)) == {len(rows[0])}
        and 0 <= min(cells) <= max(cells) <= 9
    ):
        return np.frombuffer(bytes(cells), dtype=np.uint8).reshape(len(rows), -1)
    return _report_grid(where, grid, problems)


def _report_grid(where: str, grid: Any, problems: Problems) -> Any:
    """Add the problems of a grid that is not valid: its shape, and its first bad cell."""
    if not isinstance(grid, list) or not grid:
        return problems.add(where, "an empty grid" if grid == [] else describe(grid), GRID)
    bad_row = next((i for i, row in enumerate(grid) if not isinstance(row, list)), None)
    if bad_row is not None:
        found = describe(grid[bad_row])
        return problems.add(f"{where}[{bad_row}]", found, "a row, a list of colours")
    ragged = next((row for row in grid if len(row) != len(grid[0])), None)
    if ragged is not None:
        found = f"a row of {count(ragged, 'cell')} after rows of {len(grid[0])}"
        problems.add(where, found, "a rectangle")
    widest = max(grid, key=len)  # rows may differ in length here
    if not widest:
        problems.add(where, f"{count(grid, 'row')} of 0 cells", GRID)
    bad = [
        (f"{where}[{r}][{c}]", cell)
        for r, row in enumerate(grid)
        for c, cell in enumerate(row)
        if type(cell) is not int or not 0 <= cell <= 9  # true and 1.0 equal an int
    ]
    if bad:
        more = f" (and {count(bad[1:], 'more bad cell')} in this grid)" if bad[1:] else ""
        problems.add(bad[0][0], describe(bad[0][1]) + more, "an integer in 0-9")
    return None


def with_numbers(value: Any) -> Any:
    """Return a JSON value with the texts "0" to "9" as numbers, and null in a list as 0.

    Objects are changed in place: they know the keys that their text gave more than once.
    """
    if isinstance(value, list):
        return [0 if each is None else with_numbers(each) for each in value]
    if isinstance(value, dict):
        value.update({key: with_numbers(each) for key, each in value.items()})
    return int(value) if isinstance(value, str) and value in DIGITS else value


class _Object(dict[str, Any]):
    """A JSON object; `duplicates` names the keys that its text gave more than once."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        times = Counter(key for key, _ in pairs) if len(self) < len(pairs) else {}
        self.duplicates = [key for key, n in times.items() if n > 1]


def read_object(path: Path, hint: str, problems: Problems) -> dict[str, Any] | None:
    """Return the JSON object in a file, for `add_duplicates` to check; None after a problem."""
    content = read_json(path, hint, problems)
    if content is None or isinstance(content, dict):
        return content
    return problems.add(str(path), describe(content), "a JSON object")


def read_json(path: Path, hint: str, problems: Problems) -> Any:
    """Return the JSON value in a file; None after a problem, of which null is one."""
    try:
        # A pipe is not opened: that waits for its writer, perhaps for ever.
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError(errno.ENXIO, "a pipe, a socket or a device")
        content = path.read_bytes()
    except OSError as error:
        return add_file_problem(path, error, "a JSON file", hint, problems)
    return parse_json(str(path), content, problems)


def parse_json(where: str, content: bytes, problems: Problems) -> Any:
    """Return the JSON value of a file's content; None after a problem, of which null is one."""
    try:
        text = content.decode("utf-8-sig")  # some editors write a byte order mark
        value = json.loads(text, object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 (at byte {error.start})"
    except json.JSONDecodeError as error:
        found = _json_error(error)
    except (ValueError, RecursionError) as error:  # an endless number, lists nested too deep
        found = f"JSON that cannot be read ({error})"
    else:
        if value is not None:
            return value
        found = "null"
    return problems.add(where, found, "a JSON file")


def _json_error(error: json.JSONDecodeError) -> str:
    text = error.doc.rstrip()  # a cut file ends where its last character does
    if not text:
        return "an empty file"
    place = f"line {error.lineno}, column {error.colno}: {error.msg}"
    if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
        return f"truncated JSON ({place})"
    return f"text that is not JSON ({place})"


def add_file_problem(
    path: Path, error: OSError, expected: str, hint: str, problems: Problems
) -> Any:
    """Add the reason why `path` could not be opened, with the `hint` where nothing is there."""
    found, fix = f"an unreadable file ({error.strerror or error})", ""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        found, fix = f"a link to {os.readlink(path)}, where nothing is", hint
    elif isinstance(error, FileNotFoundError | NotADirectoryError) and not path.exists():
        found, fix = "no such file or folder", hint
    return problems.add(str(path), found, expected, fix)


def describe(value: Any) -> str:
    """Return a JSON value in few words."""
    if isinstance(value, list):
        return f"a list of {count(value, 'item')}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def count(items: Sized, noun: str) -> str:
    """Return the number of `items`, with the noun in its number."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
