"""`run.json`, the record of a finished run: verified, and asked which tasks touched the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etrm.arc.canonical import Seen, Touch, content
from etrm.arc.task import Task
from etrm.config import DECODER_SIZES
from etrm.provenance import digest

TYPES: dict[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
# What the children and the evaluation of a run read in its record, and of which type that is.
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("experiment", "stage", "kind", "split", "key", "weights_sha256"), (str,)),
    **dict.fromkeys(("config.context.source", "recipes_digest", "seen_tasks.digest"), (str,)),
    **dict.fromkeys(("seed", "seen_tasks.count"), (int,)),
    **dict.fromkeys(("tasks", "unproven", "seen_tasks.ids", "seen_tasks.content"), (list,)),
    **dict.fromkeys((f"config.model.{name}" for name in DECODER_SIZES), (int, float, str)),
}
TEXTS = ("tasks", "unproven", "seen_tasks.ids")  # the lists that hold nothing but text
_MISSING = object()


class RecordError(ValueError):
    """A `run.json` that is no whole record of a run: says what was found, and what to do."""


def seen_tasks(tasks: Iterable[Task], parents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Ids, content and digest of all tasks that touched the weights, those of parents included.

    `tasks` without the outputs that were hidden in training; `parents` are their `run.json`.
    `content` is in the order of `ids`, and holds the sorted keys of each task's pairs.
    """
    keys: dict[str, set[str]] = {}
    found = [(task.id, frozenset(content(task).cells)) for task in tasks]
    for parent in parents:
        found += _keys_by_id(parent["seen_tasks"]).items()
    for name, own in found:
        keys.setdefault(name, set()).update(own)
    ids = sorted(keys)
    seen = {"ids": ids, "content": [sorted(keys[name]) for name in ids]}
    return {"count": len(ids), "digest": digest(seen), **seen}


def touching(seen: Mapping[str, Any], held_out: Iterable[Task]) -> dict[str, Touch]:
    """Those of the tasks `held_out` that `seen_tasks` touch: id → by which of these."""
    return Seen(_keys_by_id(seen)).touching(held_out)


def _keys_by_id(seen: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    return dict(zip(seen["ids"], map(frozenset, seen["content"]), strict=True))


def read_record(path: Path) -> dict[str, Any]:
    """Read the `run.json` of a finished run, and verify it.

    Raises `RecordError` where it is no JSON object, lacks one of `KEYS` or has it of another type,
    or where `seen_tasks` is not what its count and digest were taken of; FileNotFoundError.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RecordError(
            f"{path}: found no record of a run, expected that of a finished one; run its stage"
            " again"
        )
    problems = list(_problems(record)) or list(_seen_problems(record["seen_tasks"]))
    if problems:
        raise RecordError(
            f"{path}: found {'; '.join(problems)}: a run that has not finished, older code or a"
            " changed file; run its stage again"
        )
    return record


def _problems(record: Mapping[str, Any]) -> Iterator[str]:
    """Keys of a record that are missing or of another type, in words."""
    values = {name: _at(record, name) for name in KEYS}
    missing = [name for name, value in values.items() if value is _MISSING]
    if missing:
        yield f"no {', '.join(missing)}, expected them in the record of a run"
    for name, value in values.items():
        if value is _MISSING:
            continue
        if type(value) not in KEYS[name]:
            expected = " or ".join(TYPES[kind] for kind in KEYS[name])
            yield f"{name} as {TYPES[type(value)]}, expected {expected}"
        elif name in TEXTS and not all(isinstance(item, str) for item in value):
            yield f"{name} with something else than text in it, expected a list of text"


def _seen_problems(seen: Mapping[str, Any]) -> Iterator[str]:
    """What of `seen_tasks` is not as `seen_tasks` makes it, in words."""
    ids, keys = seen["ids"], seen["content"]
    if not all(isinstance(own, list) for own in keys):
        yield "seen_tasks.content as one list of keys, expected a list for each id"
        return
    if len(keys) != len(ids):
        yield f"seen_tasks.content of {len(keys)} tasks, expected one for each of {len(ids)} ids"
    if seen["count"] != len(ids):
        yield f"{len(ids)} seen_tasks.ids, expected seen_tasks.count = {seen['count']}"
    taken = digest({"ids": ids, "content": keys})
    if seen["digest"] != taken:
        there, own = seen["digest"][:16], taken[:16]
        yield f"seen_tasks with digest {own}…, expected seen_tasks.digest = {there}…"


def _at(record: Any, name: str) -> Any:
    """The value of a dotted key; `_MISSING` where there is none."""
    for part in name.split("."):
        if not isinstance(record, dict) or part not in record:
            return _MISSING
        record = record[part]
    return record
