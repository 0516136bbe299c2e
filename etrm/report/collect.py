"""Run folders, verdicts and evaluations of a study as `RunView`s, from the files of a job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from etrm.report import RunView, load_run


def collect(files: Iterable[str | Path]) -> list[RunView]:
    """A view of every `run.json` among the files, in their order.

    A run's verdict is the `verdict.json` in its folder, its score and predictions are those whose
    `score.json` names its experiment, stage and seed; each only where it is among the files.
    """
    paths = [Path(f) for f in files]
    verdicts = {p.parent: p for p in paths if p.name == "verdict.json"}
    scores = {}
    for path in paths:
        if path.name == "score.json":
            content = json.loads(path.read_text(encoding="utf-8"))
            scores[content["experiment"], content["stage"], content["seed"]] = path
    views = []
    for path in paths:
        if path.name != "run.json":
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        score = scores.get((run["experiment"], run["stage"], run["seed"]))
        predictions = score.with_name("predictions.parquet") if score else None
        views.append(
            load_run(
                path.parent,
                verdict=verdicts.get(path.parent),
                score=score,
                predictions=predictions if predictions in paths else None,
            )
        )
    return views
