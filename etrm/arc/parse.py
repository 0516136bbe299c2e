"""Read one JSON file and one task in it, collecting what is wrong instead of stopping at it.

A fast check passes valid grids; only a grid that fails it is looked at cell by cell.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etrm.arc.grid import MAX_SIDE
from etrm.arc.task import Pair, Task
from etrm.config.text import printable

UNLABELLED = "set `labelled: false` if the source has no answers"


@dataclass(frozen=True)
class Problem:
    """Something wrong with a source: where it is, what is there, what should be, what to do."""

    where: str
    found: str
    expected: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{printable(self.where)}: found {printable(self.found)}, expected {self.expected}"
        return f"{line}; {self.fix}" if self.fix else line


def read_task(
    where: str, task_id: str, entry: Any, problems: list[Problem], labelled: bool = True
) -> Task | None:
    """The task in a JSON object `{"train": [...], "test": [...]}`; None after a problem.

    Its id goes into tables, figures and submissions, so it has to be printable text.
    """
    if not task_id or not task_id.isprintable():
        problems.append(Problem(where, f"the task id {task_id!a}", "printable characters"))
        return None
    if not isinstance(entry, dict):
        problems.append(Problem(where, describe(entry), "an object with train and test"))
        return None
    report_duplicates(where, "key", entry, problems)
    demos = _read_pairs(where, "train", entry, True, problems)
    queries = _read_pairs(where, "test", entry, labelled, problems)
    return Task(task_id, demos, queries) if demos and queries else None


def _read_pairs(
    where: str, key: str, entry: dict[str, Any], labelled: bool, problems: list[Problem]
) -> tuple[Pair, ...] | None:
    if key not in entry:
        problems.append(Problem(where, f'no "{key}"', f'a list of pairs under "{key}"'))
        return None
    pairs = entry[key]
    if not isinstance(pairs, list) or not pairs:
        found = "no pair" if pairs == [] else describe(pairs)
        problems.append(Problem(f"{where}, {key}", found, "a list of at least one pair"))
        return None
    fix = UNLABELLED if key == "test" else ""
    read = [
        _read_pair(f"{where}, {key}[{i}]", pair, labelled, fix, problems)
        for i, pair in enumerate(pairs)
    ]
    complete = [pair for pair in read if pair is not None]
    return tuple(complete) if len(complete) == len(read) else None


def _read_pair(
    where: str, pair: Any, labelled: bool, fix: str, problems: list[Problem]
) -> Pair | None:
    if not isinstance(pair, dict):
        problems.append(Problem(where, describe(pair), "an object with input and output"))
        return None
    report_duplicates(where, "key", pair, problems)
    grids: dict[str, np.ndarray | None] = {"input": None, "output": None}
    complete = True
    for key in grids:
        if key in pair:
            grids[key] = read_grid(f"{where}.{key}", pair[key], problems)
            complete &= grids[key] is not None
        elif key == "input" or labelled:
            remedy = fix if key == "output" else ""
            problems.append(Problem(where, f'no "{key}"', f'a grid under "{key}"', remedy))
            complete = False
    if not complete or grids["input"] is None:
        return None
    return Pair(grids["input"], grids["output"])


def read_grid(where: str, grid: Any, problems: list[Problem]) -> np.ndarray | None:
    """A read-only uint8 `[h, w]` array, or None after a problem."""
    if _is_grid(grid):
        cells = bytes(cell for row in grid for cell in row)
        return np.frombuffer(cells, dtype=np.uint8).reshape(len(grid), -1)
    problems += _grid_problems(where, grid)
    return None


def _is_grid(grid: Any) -> bool:
    if not isinstance(grid, list) or set(map(type, grid)) != {list}:
        return False
    cells = [cell for row in grid for cell in row]
    if set(map(type, cells)) != {int} or set(map(len, grid)) != {len(grid[0])}:
        return False
    sides_fit = len(grid) <= MAX_SIDE and len(grid[0]) <= MAX_SIDE
    return sides_fit and min(cells) >= 0 and max(cells) <= 9


def _grid_problems(where: str, grid: Any) -> list[Problem]:
    """What is wrong with a grid that is not valid: its shape, and the first bad cell."""
    expected = f"a list of 1-{MAX_SIDE} rows of 1-{MAX_SIDE} colours"
    if not isinstance(grid, list) or not grid:
        return [Problem(where, "an empty grid" if grid == [] else describe(grid), expected)]
    bad_row = next((i for i, row in enumerate(grid) if not isinstance(row, list)), None)
    if bad_row is not None:
        return [Problem(f"{where}[{bad_row}]", describe(grid[bad_row]), "a row, a list of colours")]
    problems = []
    ragged = next((row for row in grid if len(row) != len(grid[0])), None)
    if ragged is not None:
        found = f"a row of {count(ragged, 'cell')} after rows of {len(grid[0])}"
        problems.append(Problem(where, found, "a rectangle"))
    widest = max(grid, key=len)
    if len(grid) > MAX_SIDE or len(widest) > MAX_SIDE or not widest:
        found = f"{count(grid, 'row')} of {count(widest, 'cell')}"
        problems.append(Problem(where, found, expected))
    bad = [
        (f"{where}[{r}][{c}]", cell)
        for r, row in enumerate(grid)
        for c, cell in enumerate(row)
        if type(cell) is not int or not 0 <= cell <= 9
    ]
    if bad:
        more = f" (and {count(bad[1:], 'more bad cell')} in this grid)" if bad[1:] else ""
        problems.append(Problem(bad[0][0], describe(bad[0][1]) + more, "an integer in 0-9"))
    return problems


class _ObjectWithDuplicates(dict[str, Any]):
    """A JSON object that gave keys more than once; `duplicates` names them."""

    duplicates: list[str]


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    marked = _ObjectWithDuplicates(plain)
    marked.duplicates = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    return marked


def report_duplicates(where: str, noun: str, entry: Any, problems: list[Problem]) -> None:
    """Report each key that the JSON object `entry` (of `read_object`) gave more than once."""
    for key in getattr(entry, "duplicates", ()):
        problems.append(Problem(where, f"{noun} {key} more than once", "each once"))


def read_object(path: Path, hint: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The JSON object in a file, for `report_duplicates` to check; None after a problem."""
    expected = "a JSON file"
    try:
        text = _read_bytes(path).decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_make_object)
    except OSError as error:
        problems.append(file_problem(path, error, expected, hint))
        return None
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 (at byte {error.start})"
        problems.append(Problem(str(path), found, expected))
        return None
    except json.JSONDecodeError as error:
        problems.append(Problem(str(path), _json_error(error), expected))
        return None
    except (ValueError, RecursionError) as error:
        problems.append(Problem(str(path), f"JSON that cannot be read ({error})", expected))
        return None
    if not isinstance(content, dict):
        problems.append(Problem(str(path), describe(content), "a JSON object"))
        return None
    return content


def _read_bytes(path: Path) -> bytes:
    """The content of a file or, so that nobody waits for the writer of a pipe, an `OSError`."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.ENXIO, "a pipe, a socket or a device")
    return path.read_bytes()


def _json_error(error: json.JSONDecodeError) -> str:
    text = error.doc.rstrip()
    if not text:
        return "an empty file"
    place = f"line {error.lineno}, column {error.colno}: {error.msg}"
    if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
        return f"truncated JSON ({place})"
    return f"text that is not JSON ({place})"


def file_problem(path: Path, error: OSError, expected: str, hint: str) -> Problem:
    """Why `path` could not be opened."""
    if error.errno == errno.ELOOP:
        return Problem(str(path), "links that lead in a circle", expected)
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        found = f"a link to {os.readlink(path)}, where nothing is"
        return Problem(str(path), found, expected, hint)
    if isinstance(error, NotADirectoryError) and path.is_file():
        return Problem(str(path), "a file", expected)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Problem(str(path), "no such file or folder", expected, hint)
    if isinstance(error, IsADirectoryError):
        return Problem(str(path), "a directory", expected)
    return Problem(str(path), f"an unreadable file ({error.strerror or error})", expected)


def describe(value: Any) -> str:
    """A JSON value in few words."""
    if isinstance(value, list):
        return f"a list of {count(value, 'item')}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def count(items: Sequence[Any], noun: str) -> str:
    """How many `items` there are, with the noun in its number."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
