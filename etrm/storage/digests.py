"""Provenance of a result: its key, the digests of code and values in it, and the commit."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from etrm.config.registry import (
    CONTEXT_SOURCES,
    SEARCH_STEP,
    outside_file,
    outside_packages,
)
from etrm.config.study import BESIDE_STEPS, RunConfig
from etrm.storage.code_digest import (
    Definition,
    ModuleCode,
    reachable,
    read_code,
    read_definitions,
)
from etrm.storage.source_cache import SourceCache, beside_bytecode

PACKAGE = Path(__file__).resolve().parents[1]

# Raise it by hand where the layout of results or states changes and code that reads them cannot
# tell: another column or key, another meaning of one. All results are stale then.
RESULT_FORMAT = 1

# Code that determines results: packages, and the modules elsewhere that change a number. All else
# stays out of keys: a configuration counts by its values, a file by its content.
COMPUTING = (
    *("etrm.worlds", "etrm.arc", "etrm.data", "etrm.models", "etrm.evaluation"),
    *("etrm.refinement", "etrm.training"),
    *("etrm.runtime.distributed", "etrm.storage.checkpoint", "etrm.storage.official"),
    "etrm.storage.digests",  # of `digest`, which chooses subsets of tasks
)
# The definitions from which all code that computes is reached, but for the run's context source.
TRAINING = ("etrm.training.build:build_trainer", "etrm.training.loop:train")
EVALUATION = (
    *("etrm.evaluation.run:Evaluation", "etrm.evaluation.run:choose_questions"),
    *("etrm.evaluation.run:decode_questions", "etrm.evaluation.run:score_run"),
    *("etrm.evaluation.run:score_shuffled", "etrm.evaluation.run:score_readout"),
    *("etrm.evaluation.pass_at_k:submission", "etrm.evaluation.shards:questions_of_shard"),
    "etrm.evaluation.shards:merge_shards",
)

REFINEMENT = (
    *("etrm.evaluation.run:Evaluation", "etrm.evaluation.run:choose_questions"),
    *("etrm.evaluation.run:prepare_model", "etrm.refinement.run:refine_questions"),
    "etrm.refinement.scores:score_methods",
)
VALIDATION = (
    *("etrm.evaluation.run:Evaluation", "etrm.evaluation.run:decode_questions"),
    *("etrm.evaluation.validation:validation_questions", "etrm.evaluation.validation:shares"),
)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(*roots: str, package: Path = PACKAGE) -> str:
    """Return one digest of the code of `roots` (see `code_digests`)."""
    return digest(code_digests(*roots, package=package))[:16]  # 64 bits


def code_digests(*roots: str, package: Path = PACKAGE) -> dict[str, str]:
    """Return the digest of each module that `roots` depend on, by its name.

    A root "module:name" is a definition; all definitions of `COMPUTING` that it reaches count,
    without text for people. A root "module" is a module of the report: it counts with the modules
    of the report that it imports, texts included, for these are drawn or written, and with the
    definitions that they compute with. Comments, docstrings, layout and the version of Python never
    count (`etrm.storage.code_digest`). Raises `LookupError` for an unknown root.
    """
    return dict(_code_digests(roots, package))


@cache
def _code_digests(roots: tuple[str, ...], package: Path) -> dict[str, str]:
    @cache  # for this call alone: files may change before the next
    def source(module: str) -> str | None:
        path = _file(module, package)
        return None if path is None else path.read_text(encoding="utf-8")

    known = _computing()

    @cache
    def computing(module: str) -> ModuleCode | None:
        text = source(module) if is_computing(module, known) else None
        return None if text is None else _definitions(text, known)

    definitions = {root for root in roots if ":" in root}
    drawn: dict[str, str] = {}  # modules of the report
    todo = [root for root in roots if ":" not in root]
    while todo:
        module = todo.pop()
        text = source(module)
        if text is None:
            raise LookupError(f"{module}: found no such module, expected one to take a digest of")
        drawn[module], imports = _sources().get(text, "code", read_code)
        for name in imports:
            parent, _, last = name.rpartition(".")
            if is_computing(name, known) and source(name) is None:  # a definition, no module
                definitions.add(f"{parent}:{last}")
            elif source(name) is not None and name.startswith("etrm.report.") and name not in drawn:
                todo.append(name)
    found = reachable(sorted(definitions), computing)
    _sources().save()
    modules = sorted({*found, *drawn})
    return {name: digest([found.get(name), drawn.get(name)])[:16] for name in modules}


def is_computing(name: str, known: Sequence[str] | None = None) -> bool:
    """Return whether a dotted name is in a package or module that determines results.

    `known`: those of `COMPUTING` and of encoders from outside, where they are at hand.
    """
    packages = _computing() if known is None else known
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def _computing() -> tuple[str, ...]:
    return (*COMPUTING, *sorted(outside_packages()))


@cache
def _sources() -> SourceCache:
    # The code that reads, and that puts into the cache what was read.
    readers = (Path(__file__).with_name("code_digest.py"), Path(__file__))
    reader = "".join(path.read_text(encoding="utf-8") for path in readers)
    return SourceCache(beside_bytecode(__file__, "code_digests.json"), reader)


def _definitions(text: str, known: Sequence[str]) -> ModuleCode:
    """Return a module in pieces (`read_definitions`), from the cache where it was read before."""

    def read(text: str) -> list[Any]:
        code = read_definitions(text, lambda name: is_computing(name, known))
        each = code.definitions.items()
        pieces = {n: [[d.digest, sorted(d.names)] for d in found] for n, found in each}
        return [pieces, dict(code.imports)]

    pieces, imports = _sources().get(text, f"definitions {known}", read)
    each = pieces.items()
    found = {n: tuple(Definition(d, frozenset(names)) for d, names in ds) for n, ds in each}
    return ModuleCode(found, imports)


def script_digest(path: Path) -> str:
    """Return the digest of a script of the workflow; modules that it imports do not count."""
    return str(_sources().get(path.read_text(encoding="utf-8"), "code", read_code)[0])[:16]


def source_file(module: str) -> str:
    """Return the path of a module of this package from the checkout, also of a removed one."""
    path = _file(module, PACKAGE)
    if path is None:
        return module.replace(".", "/") + ".py"
    return path.relative_to(PACKAGE.parent).as_posix()


def run_key(config: Any, tables: Sequence[str], parent: str | None, code: str) -> str:
    """Return the digest of all that determines a run, which resumes only from states of this key.

    `tables`: digests of tasks.parquet and augmentations.parquet; `parent`: of the initial weights.
    """
    return digest([RESULT_FORMAT, config, [*tables, *([] if parent is None else [parent])], code])


def trajectory_key(
    config: Mapping[str, Any], tables: Sequence[str], parent: str | None, code: str
) -> str:
    """Return the digest of all that determines the steps of a run, but not how many there are.

    A run may continue from the last state of a shorter one with the same. Arguments of `run_key`.
    """
    train = {key: v for key, v in config["train"].items() if key not in BESIDE_STEPS}
    steps = {key: v for key, v in config.items() if key not in ("experiment", "health")}
    return run_key({**steps, "train": train}, tables, parent, code)


def evaluation_key(
    config: Any,
    run_key: str,
    weights: str,
    tables: Sequence[str],
    code: str,
    stage: str = "evaluation",
) -> str:
    """Return the digest of all that determines a result (`stage`) of a run.

    `weights`: of model.safetensors.
    """
    return digest([RESULT_FORMAT, stage, config, run_key, [weights, *tables], code])


def train_code(source: str, searches: bool = False) -> tuple[str, ...]:
    """Return the definitions that determine a run with this context source.

    `searches`: it takes steps of latent search in training.
    """
    return (*TRAINING, CONTEXT_SOURCES[source], *((SEARCH_STEP,) if searches else ()))


def run_code(run: RunConfig) -> tuple[str, ...]:
    """Return the definitions that determine a run of this configuration."""
    return train_code(run.context.source, run.train.search_from is not None)


def score_code(source: str, stage: str = "evaluation") -> tuple[str, ...]:
    """Return the definitions that determine a result (`stage`) of such a run."""
    roots = {"evaluation": EVALUATION, "refinement": REFINEMENT, "validation": VALIDATION}
    return (*roots[stage], CONTEXT_SOURCES[source])


def _file(name: str, package: Path) -> Path | None:
    """Return the file of a module, None where there is none."""
    root, _, below = name.partition(".")
    if root in outside_packages():
        first = outside_file(root)
        if first is None or first.name != "__init__.py":  # a single module
            return None if below else first
        package = first.parent
    # Without an import, which would load torch: a plan stays quick.
    path = package.joinpath(*name.split(".")[1:])
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def commit() -> str | None:
    """Return the commit of the checkout, with `+` where it has changes; None outside one."""
    git = ["git", "-C", str(PACKAGE.parent)]
    commands = [[*git, "rev-parse", "HEAD"], [*git, "status", "--porcelain", "-uno"]]
    try:  # with a limit, for a checkout on a file system that hangs
        head, changed = (
            subprocess.run(command, capture_output=True, check=True, timeout=10).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no checkout, or no git
    return head.decode() + ("+" if changed else "")
