"""Runs by name: a run folder, the folder of an evaluation, or an experiment of a study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from etrm.config.load import read_study
from etrm.config.study import StudyConfig
from etrm.config.text import first_few, nearest
from etrm.errors import MissingFileError, UserError
from etrm.report.collect import collect
from etrm.report.run_view import RunView, load_run
from etrm.storage.records import read_score
from etrm.study.gate import verdicts_of
from etrm.study.layout import Layout, Run
from etrm.study.selection import is_chosen

_OF_RUN = ("experiment", "stage", "seed", "kind", "split")  # the run's keys in score.json


def find_views(name: str, configfile: str) -> dict[Path, RunView]:
    """Return the finished runs that a name stands for, by their folders.

    A folder with `run.json` or `score.json`, or an experiment of the study, whose seeds are taken
    at the last stage that any of them has finished; `EXPERIMENT/STAGE` and `EXPERIMENT/STAGE/seedN`
    are these alone. Scores are those of the very weights. Raises `UserError` where nothing is.
    """
    folder = Path(name).expanduser()
    if (folder / "run.json").is_file():
        return {folder: _of_run(folder)}
    if (folder / "score.json").is_file():
        return {folder: _of_evaluation(folder)}
    if folder.is_dir():
        raise MissingFileError(
            f"{folder}: found neither run.json nor score.json, expected the folder of a finished"
            " run, or of an evaluation"
        )
    return _of_study(name, configfile)


def study_views(study: StudyConfig) -> list[RunView]:
    """Return the finished runs of a study with their verdicts, evaluations and refinements.

    Without full runs behind a gate that has since closed, or after a selection of others.
    """
    layout = Layout(study)
    verdicts = verdicts_of(layout)
    passed = {(run.experiment, run.seed) for run, found in verdicts.items() if found["passed"]}
    runs = [
        run
        for run in layout.runs()
        if run.stage != "full"
        or (run.experiment, run.seed) in passed
        or (study.experiments[run.experiment].after and is_chosen(layout, run.experiment))
    ]
    files = [str(layout.verdict(run.experiment, run.seed)) for run in verdicts]
    files += map(str, map(layout.selection, study.selections))
    files += [file for run in runs for file in layout.run_files(run)]
    scored = [(run, stage) for run, stage in layout.results() if run in runs]
    files += [file for run, stage in scored for file in layout.score_files(run, stage)]
    return collect([file for file in files if Path(file).is_file()], layout.finalists)


def _of_run(folder: Path) -> RunView:
    """Return a run with its verdict, and with its score where the study's folders have it."""
    files = [folder / name for name in ("run.json", "verdict.json") if (folder / name).is_file()]
    (view,) = collect(files)
    # The folder is <study>/runs/<experiment>/<stage>/<seed>, unless it was copied elsewhere.
    study = folder.resolve() / "../../../.."
    place = study / "evaluation" / view.experiment / f"seed{view.seed}" / "score.json"
    if not place.is_file() or read_score(place)["run_key"] != view.run.get("key"):
        return view
    return collect([*files, place])[0]


def _of_evaluation(folder: Path) -> RunView:
    """Return an evaluation with its run, or with the keys of a run in its own record."""
    score = read_score(folder / "score.json")
    seed = f"seed{score['seed']}"
    study = folder.resolve() / "../../.."  # the folder is <study>/evaluation/<experiment>/<seed>
    run = study / "runs" / score["experiment"] / score["stage"] / seed
    if (run / "run.json").is_file():
        view = load_run(run, score=folder / "score.json")
        if view.run.get("key") == score["run_key"]:
            return view
    known = {key: score[key] for key in _OF_RUN if key in score}
    return RunView({**known, "key": score["run_key"]}, pd.DataFrame({"step": []}), score=score)


def _of_study(name: str, configfile: str) -> dict[Path, RunView]:
    study = read_study(configfile)
    layout = Layout(study)
    experiment, *rest = name.strip("/").split("/")
    if experiment not in study.experiments:
        hint = nearest(experiment, study.experiments)
        known = hint or f"it has {', '.join(first_few(study.experiments, 8))}"
        raise UserError(
            f"{name}: found no such folder and no such experiment in {configfile}, expected a run"
            f" folder, the folder of an evaluation, or an experiment; {known}"
        )
    asked = [
        run for run in layout.runs(None, experiment) if str(run).split("/")[1:][: len(rest)] == rest
    ]
    finished = [run for run in asked if _is_finished(layout, run)]
    if not finished:
        raise MissingFileError(
            f"{name}: found no finished run of it in {layout.root}, expected one; `etrm run"
            f" {experiment}` trains it"
        )
    last = finished[-1].stage  # in the order of stages
    folders = [layout.folder(run) for run in finished if run.stage == last]
    return {folder: _of_run(folder) for folder in folders}


def _is_finished(layout: Layout, run: Run) -> bool:
    return all(Path(file).is_file() for file in layout.run_files(run))
