"""Which tasks have touched the weights of a run, by id and by content, as its `run.json` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etrm.arc.canonical import Seen, Touch, content
from etrm.arc.task import Task
from etrm.config.parents import DECODER_SIZES
from etrm.storage.digests import digest
from etrm.storage.records import RUN, DamagedFileError, Keys, read_run

# What the children and the evaluation of a run read in its record.
KEYS: Keys = {
    **RUN,
    **{"tasks": list, "unproven": list, "recipes_digest": str, "config.context.source": str},
    **dict.fromkeys((f"config.model.{name}" for name in DECODER_SIZES), (int, float, str)),
    **{"seen_tasks.count": int, "seen_tasks.digest": str},
    **{"seen_tasks.ids": list, "seen_tasks.content": list},
}


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


def read_seen_run(folder: Path) -> dict[str, Any]:
    """Return the `run.json` of a run folder, with which tasks it has seen verified.

    Raises `DamagedFileError` where it lacks one of `KEYS`, or where `seen_tasks` is not what its
    count and digest were taken of; FileNotFoundError.
    """
    record = read_run(folder, KEYS)
    problems = list(_problems(record["seen_tasks"]))
    if problems:
        found, expected = problems[0]
        raise DamagedFileError(folder / "run.json", found, expected)
    return record


def _problems(seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of `seen_tasks` is not as `seen_tasks` makes it: what was found, and expected."""
    ids, keys = seen["ids"], seen["content"]
    if not all(isinstance(own, list) for own in keys):
        yield "one list of keys as seen_tasks.content, as older code wrote it", "a list for each id"
        return
    if len(keys) != len(ids):
        yield f"seen_tasks.content of {len(keys)} tasks", f"one for each of {len(ids)} ids"
    if seen["count"] != len(ids):
        yield f"{len(ids)} seen_tasks.ids", f"{seen['count']}, which is its seen_tasks.count"
    taken = digest({"ids": ids, "content": keys})
    if seen["digest"] != taken:
        yield f"seen_tasks of digest {taken[:16]}…", f"its seen_tasks.digest {seen['digest'][:16]}…"
