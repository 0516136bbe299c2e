"""Selections of a study: their record, and their choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from etrm.config.load import plain
from etrm.config.schema import parse
from etrm.config.selection import SelectionConfig
from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.evaluation.selection import Choice, choose
from etrm.storage.files import read_once, write_json_atomic
from etrm.storage.records import DamagedFileError, read_selection, read_validation
from etrm.study.gate import GateError
from etrm.study.layout import Layout, Run


def write_selection(
    name: str,
    rule: SelectionConfig,
    candidates: Iterable[str],
    validations: Iterable[Path],
    out: Path,
) -> dict[str, Any]:
    """Choose among the candidates by their `validation.json`, write the record, and return it.

    `runs`: the validation of every run; `choices`: by rank; `stopped`: candidates without a run
    that was validated, and why. Raises `UserError` where runs were asked about other tasks.
    """
    found = [read_validation(path) for path in validations]
    tasks = {tuple(each["tasks"]) for each in found}
    if len(tasks) > 1:
        raise UserError(
            f"selection {name}: found candidates that were asked about other validation tasks"
            f" ({first_few(sorted({each['experiment'] for each in found}), 4)}), expected one set:"
            " candidates have the same `sources`"
        )
    keys = ("experiment", "seed", "run_key", "weights_sha256", "exact", "seen", "tasks")
    runs = [{key: each[key] for key in keys} for each in found]
    stopped = dict.fromkeys(candidates, "no run of it has passed its gate")
    for run in runs:
        stopped.pop(run["experiment"], None)
        if run["seen"]:
            stopped[run["experiment"]] = f"its weights have seen {len(run['seen'])} of the tasks"
    choices = choose(_shares(runs), rule)
    record = {
        "selection": name,
        "rule": plain(rule),
        "tasks": len(next(iter(tasks), ())),
        "runs": runs,
        "choices": [asdict(each) for each in choices],
        "stopped": stopped,
        "chosen": [each.experiment for each in choices if each.chosen],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out, record)
    return record


def choices_of(layout: Layout, name: str) -> list[Choice] | None:
    """Return the choices of a selection, by its record and the rule of today.

    So a rule that moves is known at once. None where the record is missing, or is of other
    candidates or of earlier runs of theirs. Raises `DamagedFileError`.
    """
    path = layout.selection(name)
    if not path.is_file():
        return None
    record = read_once(path, read_selection)
    known = {run["experiment"] for run in record["runs"]} | set(record["stopped"])
    if known != set(layout.study.candidates(name)):
        return None
    for run in record["runs"]:
        of = Run(run["experiment"], "full", run["seed"])
        now = _key_of(layout.score(of, "validation"))
        if now not in (None, run["run_key"]):
            return None
    return choose(_shares(record["runs"]), layout.study.selections[name])


def of_how_many(layout: Layout, name: str) -> str:
    """Return how many a selection chooses, as `best 2 to 3 of 8`."""
    selection, count = layout.study.selections[name], len(layout.study.candidates(name))
    least = min(count, selection.best)
    most = min(count, selection.most or count)
    return f"best {least if least == most else f'{least} to {most}'} of {count}"


def chosen_in_words(layout: Layout, name: str) -> str:
    """Return the choices of a selection as text, or the number that it is to make."""
    choices = choices_of(layout, name)
    if choices is None:
        return f"{of_how_many(layout, name)}, not made yet"
    chosen = [each.experiment for each in choices if each.chosen]
    return f"{len(chosen)} of {len(choices)}: {', '.join(chosen) or 'none'}"


def is_chosen(layout: Layout, experiment: str) -> bool:
    """Return whether an experiment `after` a selection is trained: its candidate is chosen."""
    config = layout.study.experiments[experiment]
    choices = choices_of(layout, str(config.after)) or ()
    return any(each.experiment == config.candidate and each.chosen for each in choices)


def require_chosen(layout: Layout, experiment: str) -> None:
    """Raise `GateError` unless the candidate of an experiment is chosen."""
    config = layout.study.experiments[experiment]
    name, path = str(config.after), layout.selection(str(config.after))
    choices = choices_of(layout, name)
    if choices is None:
        raise GateError(
            f"{experiment}: it is not trained before the selection {name} is made of the current"
            f" runs ({path}): `snakemake {path}` makes it"
        )
    if not is_chosen(layout, experiment):
        chosen = [each.experiment for each in choices if each.chosen]
        raise GateError(
            f"{experiment}: it is not trained, because the selection {name} has not chosen"
            f" {config.candidate}, but {', '.join(chosen) or 'none'} ({path})"
        )


def rule_of(document: Mapping[str, Any]) -> SelectionConfig:
    """Return the rule in a record, or in the parameters of a job."""
    return parse(SelectionConfig, document, "selections")


def _shares(runs: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the shares of every candidate that may be chosen, [S, T]."""
    of: dict[str, list[list[float]]] = {}
    for run in runs:
        if not run["seen"]:
            of.setdefault(run["experiment"], []).append(list(run["tasks"].values()))
    return {name: np.array(rows) for name, rows in of.items()}


def _key_of(path: Path) -> str | None:
    try:
        return str(read_once(path, read_validation)["run_key"])
    except (OSError, DamagedFileError):
        return None
