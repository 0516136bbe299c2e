"""The calls of the command line, for notebooks and scripts too; `import etrm` has them all.

A study is read from its file; every result goes into, and comes from, its folder
`results/<study>/`, where Snakemake puts them as well: both ways can be mixed. Errors that a user
can mend are `etrm.errors.UserError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etrm.config.load import read_study as read_study
from etrm.config.registry import register_encoder as register_encoder
from etrm.config.study import StudyConfig
from etrm.errors import MissingFileError, UserError
from etrm.runtime.logs import say
from etrm.solve.tasks import make_task as make_task
from etrm.solve.tasks import read_tasks as read_tasks
from etrm.storage.files import file_digest
from etrm.study.layout import Layout, Run

if TYPE_CHECKING:
    import pandas as pd

    from etrm.arc.task import Task
    from etrm.models.act import Model
    from etrm.solve.solver import Solver
    from etrm.study.plan.plan import Plan


def plan(
    configfile: str,
    gpu: str | None = None,
    gpus: int | None = None,
    price: float | None = None,
    budget: float | None = None,
) -> Plan:
    """Return the jobs that Snakemake would run for a study, why, and their cost; run nothing.

    `gpu` names the device whose hours are counted, `gpus` how many work at once (for the wall
    time), `price` is of an hour of one, `budget` the hours that the study may take. Raises
    `PlanError` where Snakemake is not installed or cannot plan the study.
    """
    from etrm.study.plan.plan import make_plan  # late: a GPU node may lack Snakemake

    return make_plan(configfile, gpu, gpus, price, budget)


def prepare(study: StudyConfig) -> tuple[str, str]:
    """Write `tasks.parquet` and `augmentations.parquet` of a study; return a summary of each.

    Equal tables are left as they are, with their times, so that Snakemake reruns nothing. Pairs of
    generated sources are generated first, where they are not there yet.
    """
    from etrm.data.generate import PROCESSES, generate
    from etrm.data.prepare import prepare_augmentations, prepare_tasks

    layout, data = Layout(study), study.data
    for source in layout.generated.values():
        say(generate(source, PROCESSES))
    tasks = _replace(layout.tasks, lambda path: prepare_tasks(data, path))
    variants = _replace(
        layout.augmentations,
        lambda path: prepare_augmentations(layout.tasks, path, data.variants, data.seed),
    )
    return tasks, variants


def train(
    study: StudyConfig,
    experiment: str,
    stage: str,
    seed: int = 0,
    *,
    device: str | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
) -> Path:
    """Train one stage of an experiment, or resume it; return its run folder.

    `stage` is pretrain, overfit or full; `gpus` counts the ranks on each of `nodes` machines, by
    default those of `execution`. A finished run of the same configuration, data and code is
    restored from the cache. Raises `GateError` for a full run whose overfit run has not passed, and
    exits with code 75 where a signal has asked it to stop and its state is saved.
    """
    from etrm.launch.job import Job
    from etrm.launch.torchrun import train as launch
    from etrm.study.stale import require_gate
    from etrm.training.run import RunPaths

    layout, run = Layout(study), Run(experiment, stage, seed)  # every path is the layout's
    if run not in layout.runs():
        known = ", ".join(f"{r.experiment} {r.stage} --seed {r.seed}" for r in layout.runs())
        raise UserError(f"the study has no run {experiment} {stage} --seed {seed}, but {known}")
    _require_tables(layout)
    if stage == "full":
        require_gate(layout, run)  # as the workflow does
    paths = RunPaths(
        tasks=layout.tasks,
        augmentations=layout.augmentations,
        parent=layout.parent_path(run),
        out=layout.folder(run),
        state=layout.state,
        wandb=layout.wandb,
        strict_parents=tuple(layout.strict_parents()),
        keep_state=stage == "full" and experiment in layout.continued(),
    )
    job = Job(layout.config_of(run), paths, study.tracking, study.execution, device)
    nodes = nodes or study.execution.nodes
    launch(job, (gpus or study.execution.gpus) * nodes, nodes)  # ranks in all
    return layout.folder(run)


def train_all(
    study: StudyConfig, experiment: str, seed: int = 0, **options: Any
) -> dict[str, Any] | None:
    """Train all stages of an experiment in turn, with the gate between overfit and full.

    `options` are those of `train`. Return the verdict: where it did not pass, the full run has not
    been started. None for TRM, which is pretrained, and after a selection: they have no gate.
    """
    if experiment not in study.experiments:
        known = ", ".join(study.experiments)
        raise UserError(f"the study has no experiment {experiment!r}, but {known}")
    verdict = None
    config = study.experiments[experiment]
    for stage in config.stage_names:
        if stage == "full" and config.after is None:
            verdict = gate(study, experiment, seed)
            if not verdict["passed"]:
                break  # a result, no error
        train(study, experiment, stage, seed, **options)
    return verdict


def gate(study: StudyConfig, experiment: str, seed: int = 0) -> dict[str, Any]:
    """Judge a finished overfit run, write its `verdict.json`, and return the verdict.

    Raises `MissingFileError` where the run is not finished, and `GateError` where it is stale.
    """
    from etrm.study.stale import require_up_to_date
    from etrm.training.health import write_verdict

    layout, run = Layout(study), Run(experiment, "overfit", seed)
    if run not in layout.runs("overfit"):
        known = ", ".join(f"{r.experiment} --seed {r.seed}" for r in layout.runs("overfit"))
        raise UserError(
            f"the study has no overfit run of {experiment} with seed {seed}, but {known or 'none'}"
        )
    _require_finished(layout, run)
    require_up_to_date(layout, run, "it is not judged")
    config = study.experiments[experiment]
    path = layout.verdict(experiment, seed)
    return write_verdict(layout.folder(run), path, config.health, config.gate)


def evaluate(
    study: StudyConfig, experiment: str, seed: int = 0, *, device: str | None = None
) -> dict[str, Any]:
    """Evaluate a finished run on the held-out tasks; write its files, and return `score.json`.

    Raises `MissingFileError` where the run is not finished, and `UserError` for an experiment that
    is not among the `finalists` of the study.
    """
    from etrm.evaluation.mirror import mirror_score
    from etrm.evaluation.run import evaluate_run

    layout, run = Layout(study), _scored_run(study, experiment, seed)
    folder, out = layout.folder(run), layout.score(run).parent
    score = evaluate_run(
        run_folder=folder,
        tasks_path=layout.tasks,
        augmentations_path=layout.augmentations,
        config=study.experiments[experiment].evaluation,
        out=out,
        device=device,
        state=layout.state,
        compile=study.execution.compile,
    )
    mirror_score(study.tracking, layout.wandb, folder, out, layout.tasks)
    return score


def refine(
    study: StudyConfig, experiment: str, seed: int = 0, *, device: str | None = None
) -> dict[str, Any]:
    """Refine the answers of a finished run to the held-out tasks; return `refinement.json`.

    As the block `refinement` of the experiment says. Raises as `evaluate` does, and `UserError`
    where the experiment names no steps.
    """
    from etrm.refinement.run import refine_run

    layout, run = Layout(study), _scored_run(study, experiment, seed)
    config = study.experiments[experiment].refinement
    if not config.steps:
        raise UserError(
            f"experiments.{experiment}.refinement.steps: found none, expected the numbers of steps"
            " after which answers are read: add `refinement: {steps: [0, 10, 50]}`"
        )
    return refine_run(
        run_folder=layout.folder(run),
        tasks_path=layout.tasks,
        augmentations_path=layout.augmentations,
        config=config,
        out=layout.score(run, "refinement").parent,
        device=device,
        state=layout.state,
    )


def _scored_run(study: StudyConfig, experiment: str, seed: int) -> Run:
    """Return the finished run whose weights answer held-out tasks; raises as `evaluate` does."""
    layout = Layout(study)
    scored = {(run.experiment, run.seed): run for run in layout.scored()}
    run = scored.get((experiment, seed))
    if run is None and any(r.seed == seed for r in layout.scorable(experiment)):
        raise UserError(
            f"{experiment} is not among the finalists of the study, which alone are evaluated on"
            f" held-out tasks ({', '.join({r.experiment: 0 for r in layout.scored()}) or 'none'}):"
            f" choose by validation, as in {layout.root / 'tables/selection.md'}, and add its name"
            " to `finalists`"
        )
    if run is None:
        known = ", ".join(f"{name} --seed {number}" for name, number in scored) or "no other"
        raise UserError(f"the study evaluates no run of {experiment} with seed {seed}, but {known}")
    _require_finished(layout, run)
    _require_tables(layout)
    return run


def figures(study: StudyConfig, names: Sequence[str] = ()) -> list[Path]:
    """Draw figures of a study by name (all without any), from its finished runs; return the files.

    As Snakemake draws them, and in their place, but without its checks for stale results. Raises
    `UserError` for a name that no figure has.
    """
    from etrm.report.registry import FIGURES
    from etrm.report.write_figures import write_figures
    from etrm.study.views import study_views

    if unknown := [name for name in names if name not in FIGURES]:
        known = ", ".join(FIGURES)
        raise UserError(f"{', '.join(unknown)}: found no such figure, expected of {known}")
    layout = Layout(study)
    if not Path(layout.tasks).is_file():
        raise MissingFileError(f"{layout.tasks}: found no tasks; `snakemake` prepares and trains")
    health = next(iter(study.experiments.values())).health
    where, drawn = layout.root / "figures", list(names) or list(FIGURES)
    return write_figures(
        study_views(study), Path(layout.tasks), where, study.figures, health, drawn
    )


def score(
    submission: str | Path | Mapping[str, Any], tasks: Sequence[str] | Sequence[Task]
) -> dict[str, Any]:
    """Score a submission in Kaggle's form, a file or its content, by both credit rules.

    `tasks` alone are the denominator: tasks, or the places where they are (task files, folders,
    Kaggle's files, names of public sets). See `etrm.evaluation.submissions.score_submission`.
    """
    from etrm.arc.places import load_places
    from etrm.evaluation.submissions import read_submission, score_submission

    places = [each for each in tasks if isinstance(each, str)]
    asked = [each for each in tasks if not isinstance(each, str)]
    content = submission if isinstance(submission, Mapping) else read_submission(Path(submission))
    return score_submission(content, [*asked, *load_places(places)])


def load_model(folder: str | Path, weights: str = "ema", device: str = "cpu") -> Model:
    """Return the model of a run folder, in evaluation mode.

    `weights` is `raw` or `ema` (their moving average). Raises `DamagedFileError` where the weights
    are not those of the run's record.
    """
    from etrm.config.schema import parse
    from etrm.config.study import RunConfig
    from etrm.models import build
    from etrm.storage.records import check_weights, read_run

    record = read_run(Path(folder))
    check_weights(Path(folder), record)
    run: RunConfig = parse(RunConfig, record["config"])
    return build.load_model(Path(folder), run, weights).to(device)


def load(folder: str | Path, weights: str = "ema", device: str | None = None) -> Solver:
    """Return the solver of a run folder: it answers tasks, encodes demos and gives logits.

    The folder is all that is needed, without its study. `weights` are `ema` or `raw`; `device` is
    by default a GPU if there is one. Raises `UserError` where there is no finished run, where its
    weights are not those of its record, and for a TRM that knows its training tasks alone.
    """
    from etrm.solve.solver import load

    return load(folder, weights, device)


def predictions(path: str | Path) -> pd.DataFrame:
    """Return the predictions of an evaluation, from its folder or its `predictions.parquet`.

    A row for each task, test input and variant; `grid` holds arrays, uint8 [height, width].
    """
    from etrm.evaluation.voting import with_arrays
    from etrm.storage.records import read_predictions

    file = Path(path) / "predictions.parquet" if Path(path).is_dir() else Path(path)
    return with_arrays(read_predictions(file).to_pandas())


def metrics(folder: str | Path) -> pd.DataFrame:
    """Return the metrics of a run folder: a row for each logged step, a column for each metric."""
    from etrm.storage.records import read_metrics

    return read_metrics(Path(folder)).to_pandas()


def _replace(path: Path, write: Callable[[Path], str]) -> str:
    """Write a table beside its place, and move it there where it differs."""
    new = path.with_suffix(".new.parquet")  # in the same folder, so that it can be renamed
    try:
        summary = write(new)
        if not path.is_file() or file_digest(path) != file_digest(new):
            new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return summary


def _require_tables(layout: Layout) -> None:
    for path in (layout.tasks, layout.augmentations):
        if not path.is_file():
            raise MissingFileError(
                f"{path}: no such file, expected the tables of the study: `etrm prepare` writes"
                " them, or `snakemake augment`"
            )


def _require_finished(layout: Layout, run: Run) -> None:
    missing = [path for path in layout.run_files(run) if not Path(path).is_file()]
    if missing:
        raise MissingFileError(
            f"{missing[0]}: no such file, expected a finished run: `etrm run {run.experiment}"
            f" {run.stage} --seed {run.seed}` trains it"
        )
