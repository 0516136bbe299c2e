"""Keys of results: digests of code, files and values, and the commit.

A key covers everything that determines numbers, and nothing else. Its code part is a digest of
*definitions*: those functions, classes and constants of the packages that compute which a run, or
an evaluation, reaches by name from its roots (`train_code`, `score_code`), without their prose
(`etrm.storage.code_digest`). Configuration counts by its values, files by their content. So another
message, help text, log line, lock, launcher or figure leaves all keys as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.registry import CONTEXT_SOURCES
from etrm.storage.code_digest import Definitions, read_code, read_definitions

PACKAGE = Path(__file__).resolve().parents[1]
# The layout of checkpoints and results. Raise it when a file of an earlier version would be read
# wrongly: the code that reads and writes is no part of a key.
FORMAT = 1
COMPUTES = re.compile(r"etrm\.(arc|data|models|evaluation|training|storage|runtime\.distributed)\b")
# Modules of tables, figures and records count whole, their prose too, with all that they import
# but for these, whose prose is in no output.
UNSEEN = re.compile(r"etrm\.(config|errors|runtime|storage|tracking)\b.*")


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(*roots: str) -> str:
    """Return a digest of code: the same in every version of Python (`etrm.storage.code_digest`).

    A root `module:definition` stands for all definitions that it reaches in packages that compute,
    without prose; a root `module` for the whole module and those that it imports.
    """
    return digest(code_digests(*roots))[:16]


def code_digests(*roots: str) -> dict[str, str]:
    """Return the same by module, to tell which one has changed."""
    found = {name: _module(name)[0][:16] for name in _imported(r for r in roots if ":" not in r)}
    reached: dict[str, dict[str, str]] = {}
    todo = [tuple(root.split(":")) for root in roots if ":" in root]
    while todo:
        module, name = todo.pop()
        if name not in reached.setdefault(module, {}):
            definitions = _definitions(module)
            known = definitions.by_name.get(name)
            reached[module][name] = known.digest if known else ""
            todo += _uses(module, name, definitions)
    found |= {module: digest(names)[:16] for module, names in reached.items()}
    return dict(sorted(found.items()))


def script_digest(path: Path) -> str:
    """Return the digest of a script of the workflow, without comments, docstrings and imports."""
    return _source(path)[0][:16]


def source_file(module: str) -> str:
    """Return the path of a module of this package, present or past, from the checkout."""
    path = _file(module)
    if path is None:
        return module.replace(".", "/") + ".py"
    return path.relative_to(PACKAGE.parent).as_posix()


def run_key(config: Any, tables: Sequence[str], parent: str | None, code: str) -> str:
    """Return the digest of everything that determines a run: only its own states are resumed.

    `tables`: digests of tasks.parquet and augmentations.parquet; `parent`: of the first weights.
    """
    return digest([FORMAT, config, [*tables, *([] if parent is None else [parent])], code])


def evaluation_key(
    config: Any, run_key: str, weights: str, tables: Sequence[str], code: str
) -> str:
    """Return the digest of everything that determines an evaluation; `weights`: of the file."""
    return digest(["evaluation", FORMAT, config, run_key, [weights, *tables], code])


def train_code(source: str) -> tuple[str, ...]:
    """Return the roots of the code that determines a run with this context source."""
    trained = ("etrm.training.build:build_trainer", "etrm.training.loop:train")
    return (*trained, CONTEXT_SOURCES[source])


def score_code(source: str) -> tuple[str, ...]:
    """Return the roots of the code that determines the evaluation of such a run."""
    computed = ("choose_questions", "decode_questions", "score_run", "submission", "merge_shards")
    return (*(f"etrm.evaluation.run:{name}" for name in computed), CONTEXT_SOURCES[source])


def _uses(module: str, name: str, definitions: Definitions) -> Iterator[tuple[str, ...]]:
    """Yield (module, definition) of everything that a definition may use, at least."""
    known = definitions.by_name.get(name)
    if known is None:  # imported from elsewhere, or no definition at all
        if name in definitions.imports:
            yield from _targets(definitions.imports[name], {None})
        return
    if "" in definitions.by_name:  # statements that run when the module is imported
        yield module, ""
    names = known.bare | {base for base, _ in known.attributes}
    for used in names - {name}:
        if used in definitions.by_name:
            yield module, used
        elif used in definitions.imports:
            attributes = {a for base, a in known.attributes if base == used}
            whole = {None} if used in known.bare else set()
            yield from _targets(definitions.imports[used], attributes | whole)


def _targets(dotted: str, attributes: set[str | None]) -> Iterator[tuple[str, ...]]:
    """Yield the definitions of an imported name, or those of an imported module's attributes."""
    if not COMPUTES.match(dotted):
        return
    if _file(dotted) is None:
        yield tuple(dotted.rsplit(".", 1))
        return
    for attribute in attributes:
        names = _definitions(dotted).by_name if attribute is None else [attribute]
        yield from ((dotted, name) for name in names)


def _imported(modules: Iterator[str]) -> set[str]:
    """Return modules and all that they import, but for those whose prose is in no output."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += _module(name)[1]
    return seen


@cache
def _definitions(module: str) -> Definitions:
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"no module {module!r} to take the digest of")
    text = path.read_text(encoding="utf-8")
    return read_definitions(text, lambda name: name[:5] == "etrm." and not COMPUTES.match(name))


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a module's source, and the modules of this package that it imports."""
    path = _file(name)
    if path is None:
        raise ModuleNotFoundError(f"no module {name!r} to take the digest of")
    return _source(path)


def _source(path: Path) -> tuple[str, tuple[str, ...]]:
    taken, imports = read_code(path.read_text(encoding="utf-8"))
    ours = {i for i in imports if i.split(".")[0] == "etrm" and not UNSEEN.fullmatch(i)}
    return taken, tuple(sorted(i for i in ours if _file(i)))


def _file(name: str) -> Path | None:
    """Return the path of a module of this package; nothing is imported, so that plans are quick."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def commit() -> str | None:
    """Return the commit of the checkout, with `+` where it has changes; None outside one."""
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
