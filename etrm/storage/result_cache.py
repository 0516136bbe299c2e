"""The cache of finished results, beside the declared outputs.

The workflow deletes the outputs of a job before it starts, so that a job that then fails would take
an earlier result with it. The files of a finished run, or of an evaluation, are therefore linked
(the same bytes, no copy) into a folder of their own: the last good result stays there if the next
one fails, and a job of the same key restores it from there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from etrm.storage.files import file_digest, write_json_atomic

RUN_FILES = ("model.safetensors", "metrics.parquet", "run.json")
SCORE_FILES = ("predictions.parquet", "score.json", "submission.json", "contexts.parquet")
REFINEMENT_FILES = ("refinement.parquet", "refinement.json")
VALIDATION_FILES = ("validation.json",)
RESULT_FILES = {  # of a finished run
    "evaluation": SCORE_FILES,
    "refinement": REFINEMENT_FILES,
    "validation": VALIDATION_FILES,
}
CONTINUED = "continued"  # among the states: the last ones of runs that longer ones continue from
MAX_CACHED = 2  # the current result, and the one before
LIST = "cached.json"  # the key of a cached result, and the SHA-256 of each of its files


def cache_result(out: Path, names: Sequence[str], store: Path, key: str) -> None:
    """Link a finished result into `store`, complete or not at all; drop all but the newest."""
    target, temporary = store / key[:16], store / f".{key[:16]}.tmp"
    for stale in store.glob(".*.tmp"):  # of a process that was killed here
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in names:
        _link(out / name, temporary / name)
    digests = {name: file_digest(temporary / name) for name in names}
    write_json_atomic(temporary / LIST, {"key": key, "sha256": digests})
    shutil.rmtree(target, ignore_errors=True)  # a folder is renamed only to a free name
    temporary.rename(target)
    os.utime(target)
    cached = [d for d in store.iterdir() if d.is_dir() and not d.name.startswith(".")]
    for old in sorted(cached, key=lambda d: d.stat().st_mtime_ns)[:-MAX_CACHED]:
        shutil.rmtree(old, ignore_errors=True)


def restore_result(out: Path, names: Sequence[str], store: Path, key: str) -> bool:
    """Link the cached result with this key into `out`, and return whether there is an intact one.

    The files get the current time, as outputs of a job that has just finished.
    """
    folder = store / key[:16]
    if not is_cached(names, store, key):
        return False
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        temporary = out / f".{name}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        _link(folder / name, temporary)
        os.replace(temporary, out / name)
        temporary.unlink(missing_ok=True)  # renaming one link to the other leaves both
        os.utime(out / name)
    os.utime(folder)  # the newest of the store: the last to be dropped
    return True


def is_cached(names: Sequence[str], store: Path, key: str) -> bool:
    """Return whether a result with this key is cached and every file has its digest."""
    folder, digests = store / key[:16], cached_digests(names, store, key)
    with suppress(OSError, KeyError):
        return digests is not None and all(file_digest(folder / n) == digests[n] for n in names)
    return False


def cached_digests(names: Sequence[str], store: Path, key: str) -> dict[str, str] | None:
    """Return the recorded digests of the files cached under a key; None unless all are there."""
    folder = store / key[:16]
    try:
        cached = json.loads((folder / LIST).read_text(encoding="utf-8"))
        there = cached["key"] == key and all((folder / name).is_file() for name in names)
        return dict(cached["sha256"]) if there else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or another one
        shutil.copy2(source, target)
