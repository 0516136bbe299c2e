"""Run folders, verdicts and evaluations of a study as `RunView`s, from the files of a job."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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
    scores = {}
    for path in paths:
        if path.name == "score.json":
            content = read_score(path)
            scores[content["experiment"], content["stage"], content["seed"]] = path
    refined = {}
    for path in paths:
        if path.name == "refinement.json":
            content = read_refinement(path)
            refined[content["experiment"], content["stage"], content["seed"]] = content
    choices = _choices(path for path in paths if path.parent.name == "selections")
    views = []
    for path in paths:
        if path.name != "run.json":
            continue
        run = read_run(path.parent, DESCRIBED)
        score = scores.get((run["experiment"], run["stage"], run["seed"]))
        beside = {kind: score.with_name(f"{kind}.parquet") for kind in BESIDE} if score else {}
        tables = {kind: table for kind, table in beside.items() if table in paths}
        verdict = verdicts.get(path.parent)
        view = load_run(path.parent, verdict=verdict, score=score, **tables)
        finalist = finalists is None or view.experiment in finalists
        key = view.experiment, view.stage, view.seed
        view = replace(view, finalist=finalist, refinement=refined.get(key))
        views.append(replace(view, choices=choices.get(view.experiment, ())))
    return views


def _choices(records: Iterable[Path]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Return the places of each experiment in selections, from the records of these."""
    found: dict[str, tuple[dict[str, Any], ...]] = {}
    for record in map(read_selection, records):
        for choice in record["choices"]:
            name = choice["experiment"]
            place = {**choice, "selection": record["selection"], "of": len(record["choices"])}
            found[name] = (*found.get(name, ()), place)
    return found
