"""Where a result comes from: digests of code, files and values, and the commit."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.registry import CONTEXT_SOURCES
from etrm.storage.code_digest import read_code

PACKAGE = Path(__file__).resolve().parents[1]
# What changes a stage only through values that are params of their own: reading a config, and the
# registry of context sources (the source that a run uses is digested by its name). Or not at all:
# what is said in a log, of the environment, which process it is that trains, and how long it waits
# for room on a disk.
NOT_CODE = re.compile(r"etrm\.config(\..*)?|etrm\.runtime\.(logs|environment|run_lock|disk_wait)")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(*modules: str) -> str:
    """Digest of modules of this package and all that they import from it.

    Comments, docstrings and formatting do not count, nor does the version of Python that takes it
    (`etrm.storage.code_digest`).
    """
    return digest(code_digests(*modules))[:16]


def code_digests(*modules: str) -> dict[str, str]:
    """The same by module, so that it can be said which one has changed."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _module(name)[1]
    return {name: _module(name)[0][:16] for name in sorted(seen)}


def script_digest(path: Path) -> str:
    """Digest of a script of the workflow, likewise without its comments and docstrings.

    Not of what it imports: that is digested by name, as far as it determines results.
    """
    return _source(path)[0][:16]


def source_file(module: str) -> str:
    """Where a module of this package is, or was, from the folder of the package."""
    path = _file(module)
    if path is None:
        return module.replace(".", "/") + ".py"
    return path.relative_to(PACKAGE.parent).as_posix()


def run_key(config: Any, tables: Sequence[str], parent: str | None, code: str) -> str:
    """Digest of everything that determines a run: a state of another one is never resumed.

    `tables`: digests of tasks.parquet and augmentations.parquet; `parent`: of the first weights.
    """
    return digest([config, [*tables, *([] if parent is None else [parent])], code])


def evaluation_key(
    config: Any, run_key: str, weights: str, tables: Sequence[str], code: str
) -> str:
    """Digest of everything that determines an evaluation; `weights`: of model.safetensors."""
    return digest(["evaluation", config, run_key, [weights, *tables], code])


def train_code(source: str) -> tuple[str, ...]:
    """The modules whose code determines a run with this context source."""
    return ("etrm.training.run", CONTEXT_SOURCES[source].partition(":")[0])


def score_code(source: str) -> tuple[str, ...]:
    """The modules whose code determines the evaluation of such a run."""
    return ("etrm.evaluation.run", *train_code(source)[1:])


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Digest of one module's source, and the modules of this package that it imports."""
    path = _file(name)
    if path is None:
        raise ModuleNotFoundError(f"no module {name!r} to take the digest of")
    return _source(path)


def _source(path: Path) -> tuple[str, tuple[str, ...]]:
    taken, imports = read_code(path.read_text(encoding="utf-8"))
    ours = {i for i in imports if i.split(".")[0] == "etrm" and not NOT_CODE.fullmatch(i)}
    return taken, tuple(sorted(i for i in ours if _file(i)))


def _file(name: str) -> Path | None:
    """Where a module of this package is; it is not imported, so that a plan stays quick."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def commit() -> str | None:
    """The commit of the checkout, with `+` where it has changes; None outside one."""
    here = PACKAGE.parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *command: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(folder), *command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=10,
    )
    return run.stdout.strip()
