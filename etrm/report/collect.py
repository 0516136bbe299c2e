"""Run folders, verdicts and evaluations of a study as `RunView`s, from the files of a job."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from etrm.report.run_view import RunView, load_run
from etrm.storage.records import DESCRIBED, read_refinement, read_run, read_score, read_selection

BESIDE = ("predictions", "contexts")  # tables beside a score


def collect(files: Iterable[str | Path], finalists: Collection[str] | None = None) -> list[RunView]:
    """Return a view of every `run.json` among the files, in their order.

    A run's verdict is the `verdict.json` in its folder; its score, what is beside that, and its
    refinement are those whose JSON names its experiment, stage and seed: each only if it is among
    the files.
    The places of its experiment in selections are those in the records of these.
    `finalists`: experiments that are evaluated on held-out tasks (None: all).
    """
    paths = [Path(f) for f in files]
    verdicts = {p.parent: p for p in paths if p.name == "verdict.json"}
    scores = {_run(read_score(path)): path for path in paths if path.name == "score.json"}
    records = [read_refinement(path) for path in paths if path.name == "refinement.json"]
    refined = {_run(record): record for record in records}
    choices = _choices(path for path in paths if path.parent.name == "selections")
    views = []
    for folder in (path.parent for path in paths if path.name == "run.json"):
        key = _run(read_run(folder, DESCRIBED))
        score = scores.get(key)
        beside = {kind: score.with_name(f"{kind}.parquet") for kind in BESIDE} if score else {}
        tables = {kind: table for kind, table in beside.items() if table in paths}
        view = load_run(folder, verdict=verdicts.get(folder), score=score, **tables)
        finalist, places = finalists is None or key[0] in finalists, choices.get(key[0], ())
        refinement = refined.get(key)
        views.append(replace(view, finalist=finalist, refinement=refinement, choices=places))
    return views


def _run(record: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return the run that a record is of: its experiment, stage and seed."""
    return record["experiment"], record["stage"], record["seed"]


def _choices(records: Iterable[Path]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Return the places of each experiment in selections, from the records of these."""
    found: dict[str, tuple[dict[str, Any], ...]] = {}
    for record in map(read_selection, records):
        for choice in record["choices"]:
            name = choice["experiment"]
            place = {**choice, "selection": record["selection"], "of": len(record["choices"])}
            found[name] = (*found.get(name, ()), place)
    return found
