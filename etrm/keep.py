"""Finished runs, kept beside the declared outputs.

The workflow deletes the outputs of a job before it starts, so that a job that then fails would take
an earlier result with it. A finished run is therefore linked (the same bytes, no copy) into a
folder of its own: the last good run stays there whatever becomes of the next, and a job that is
asked for the same run again, by the digest of all that determines it, takes it back from there.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from etrm.provenance import file_digest

RUN_FILES = ("model.safetensors", "metrics.parquet", "run.json")
KEPT_RUNS = 2  # the current one, and the one before


def keep(out: Path, store: Path, key: str) -> None:
    """Link a finished run into `store`, complete or not at all; drop all but the newest runs."""
    target, temporary = store / key[:16], store / f".{key[:16]}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in RUN_FILES:
        _link(out / name, temporary / name)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    os.utime(target)
    kept = sorted((d for d in store.iterdir() if d.is_dir()), key=lambda d: d.stat().st_mtime_ns)
    for old in kept[:-KEPT_RUNS]:
        shutil.rmtree(old)


def take_back(out: Path, store: Path, key: str) -> dict[str, Any] | None:
    """Put a kept run with this key back to `out` and return its record; None if there is none.

    One whose weights are not those that its record names is damaged, and is not used.
    """
    folder = store / key[:16]
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        whole = record["key"] == key and all((folder / name).is_file() for name in RUN_FILES)
        whole = whole and file_digest(folder / "model.safetensors") == record["weights_sha256"]
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    out.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        temporary = out / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        _link(folder / name, temporary)
        os.replace(temporary, out / name)
        os.utime(out / name)
    os.utime(folder)
    return record


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or another one
        shutil.copy2(source, target)
