"""The tasks that have touched the weights of a run, by id and by content, as in its `run.json`.

`etrm.arc.overlap` defines when seen tasks touch a held-out one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etrm.arc.overlap import Overlap, SeenContent, TaskContent
from etrm.arc.task import Task
from etrm.config.parents import DECODER_SIZES
from etrm.storage.digests import digest
from etrm.storage.records import RUN, DamagedFileError, Keys, read_run

# The keys of a run's record that its children and its evaluation read.
KEYS: Keys = {
    **RUN,
    **{"tasks": list, "unproven": list, "recipes_digest": str, "config.context.source": str},
    **dict.fromkeys((f"config.model.{name}" for name in DECODER_SIZES), (int, float, str)),
    **{"seen_tasks.count": int, "seen_tasks.digest": str},
    **{"seen_tasks.ids": list, "seen_tasks.content": list},
}


def seen_tasks(tasks: Iterable[Task], parents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ids, content and digest of all tasks that touched the weights, those of parents too.

    So has the original of a generated task. `tasks` without the outputs that were hidden in
    training; `parents` are their `run.json`. `content` is in the order of `ids`, and holds the
    sorted keys of each task's pairs.
    """
    keys: dict[str, set[str]] = {}
    tasks = list(tasks)
    tasks += [task.original for task in tasks if task.original is not None]
    contents = TaskContent.of_all(tasks)
    found = [(name, frozenset(content.cells)) for name, content in contents.items()]
    for parent in parents:  # whose records hold those of their own parents already
        found += _keys_by_id(parent["seen_tasks"]).items()
    for name, own in found:
        keys.setdefault(name, set()).update(own)  # a task of one id may have several contents
    ids = sorted(keys)
    seen = {"ids": ids, "content": [sorted(keys[name]) for name in ids]}
    return {"count": len(ids), "digest": digest(seen), **seen}


def find_touched(seen: Mapping[str, Any], held_out: Iterable[Task]) -> dict[str, Overlap]:
    """Return those of the tasks `held_out` that `seen_tasks` touch: id → by which of these."""
    return SeenContent(_keys_by_id(seen)).find_touched(held_out)


def _keys_by_id(seen: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    return dict(zip(seen["ids"], map(frozenset, seen["content"]), strict=True))


def read_seen_run(folder: Path) -> dict[str, Any]:
    """Return the `run.json` of a run folder, with its `seen_tasks` verified.

    Raises `DamagedFileError` where it lacks one of `KEYS`, or where `seen_tasks` does not have the
    count and the digest that it gives; FileNotFoundError.
    """
    record = read_run(folder, KEYS)
    seen = record["seen_tasks"]
    ids, keys = seen["ids"], seen["content"]
    taken = digest({"ids": ids, "content": keys})  # as `seen_tasks` takes it
    if not all(isinstance(own, list) for own in keys):
        found = "one list of keys as seen_tasks.content, as older code wrote it"
        expected = "a list for each id"
    elif len(keys) != len(ids):
        found = f"seen_tasks.content of {len(keys)} tasks"
        expected = f"one for each of {len(ids)} ids"
    elif seen["count"] != len(ids):
        found = f"{len(ids)} seen_tasks.ids"
        expected = f"{seen['count']}, which is its seen_tasks.count"
    elif seen["digest"] != taken:
        found = f"seen_tasks of digest {taken[:16]}…"
        expected = f"its seen_tasks.digest {seen['digest'][:16]}…"
    else:
        return record
    raise DamagedFileError(folder / "run.json", found, expected)
