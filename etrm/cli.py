"""The command line: `etrm plan | summary | doctor | run | evaluate | export`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from etrm.config.load import read_study
from etrm.config.study import StudyConfig
from etrm.runtime.terminal import use_stand_ins
from etrm.storage.records import read_verdict
from etrm.study.gate import describe
from etrm.study.layout import Pipeline, Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    use_stand_ins()
    parser = argparse.ArgumentParser(
        prog="etrm", description="Encoder-based Tiny Recursive Models on ARC-AGI."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser(
        "plan", help="what would run and why, what it takes, what is done; runs nothing"
    )
    _plan_options(plan)
    summary = commands.add_parser("summary", help="results table, verdicts and paths of a study")
    training = commands.add_parser(
        "run", help="one training run without Snakemake, on a machine that has only PyTorch"
    )
    doctor = commands.add_parser(
        "doctor", help="what is locked, orphaned, damaged or stale, and what mends it"
    )
    doctor.add_argument("--json", action="store_true", help="all of it, for programs")
    doctor.add_argument(
        "--verify", action="store_true", help="read weights and tables whole, for damage"
    )
    scoring = commands.add_parser(
        "evaluate", help="one finished run on the held-out tasks, in this process, likewise"
    )
    for command in (plan, summary, doctor, training, scoring):
        command.add_argument("--configfile", default="config/config.yaml", help="the study")
    for command in (training, scoring):
        command.add_argument("experiment", help="name of the experiment in the study")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--device", help="cpu, cuda, cuda:1, …; default: a GPU if there is one"
        )
    training.add_argument("stage", choices=("pretrain", "overfit", "full"))
    training.add_argument("--gpus", type=int, help="ranks on each node; default: execution.gpus")
    training.add_argument("--nodes", type=int, help="within a SLURM job; default: execution.nodes")
    export = commands.add_parser(
        "export", help="a run's weights in official TRM's format, an encoder's beside"
    )
    export.add_argument("run", help="the run folder")
    export.add_argument("out", help="the file to write, .pt or .safetensors")
    export.add_argument("--weights", choices=("raw", "ema"), default="raw")
    given = parser.parse_args(arguments)
    try:
        if given.command == "export":
            return export_run(given.run, given.out, given.weights)
        if given.command == "doctor":
            return examine(given.configfile, given.verify, given.json)
        if given.command == "plan":
            print(plan_text(given), flush=True)
            return 0
        study = read_study(given.configfile)
        if given.command == "summary":
            print(summary_text(study))
        elif given.command == "evaluate":
            evaluate(study, given.experiment, given.seed, given.device)
        else:
            run = Run(given.experiment, given.stage, given.seed)
            gpus = given.gpus or study.execution.gpus
            run_stage(study, run, given.device, gpus, given.nodes or study.execution.nodes)
    except BrokenPipeError:  # who reads it has seen enough, as in `etrm plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, RuntimeError, OSError) as error:
        print(f"etrm: {error}", file=sys.stderr)
        return 1
    return 0


def _plan_options(parser: argparse.ArgumentParser) -> None:
    """What is shown of a plan; several of a kind are alternatives."""
    add = parser.add_argument
    add("experiments", nargs="*", metavar="GLOB", help="only these experiments, one line each")
    for name, words in (
        ("group", "only this group"),
        ("stage", "only this stage: pretrain, overfit, gate, full, evaluate"),
        ("state", "only what is done, run, waits, stopped, stale"),
    ):
        add(f"--{name}", action="append", default=[], metavar="GLOB", help=words)
    add("--gpu", metavar="NAME", help="count hours of this device, one that has been measured")
    add("--all", action="store_true", help="a line for every experiment, also where they are alike")
    add("--json", action="store_true", help="everything, by experiment, stage and seed")


def plan_text(given: argparse.Namespace) -> str:
    """The plan that the options ask for, as a screen or as JSON."""
    from etrm.study.plan.plan import make_plan
    from etrm.study.plan.table import render

    plan = make_plan(given.configfile, given.gpu)
    plan = plan.select(given.experiments, given.group, given.stage, given.state)
    if given.json:
        return json.dumps(plan.document(), indent=2)
    width = shutil.get_terminal_size(fallback=(120, 40)).columns
    return render(plan, width, given.all)


def summary_text(study: StudyConfig) -> str:
    """What a finished study found, and where its files are."""
    from etrm.report.collect import collect
    from etrm.report.tables import results_table, to_text

    pipeline = Pipeline(study)
    verdicts = [pipeline.verdict(r.experiment, r.seed) for r in pipeline.runs("overfit")]
    known = [path for path in verdicts if path.is_file()]
    passed = {path.parent for path in known if read_verdict(path)["passed"]}
    runs = [
        run
        for run in pipeline.runs()
        if run.stage != "full" or pipeline.verdict(run.experiment, run.seed).parent in passed
    ]
    files = [f for run in runs for f in pipeline.run_files(run)]
    files += [f for run in pipeline.scored() if run in runs for f in pipeline.score_files(run)]
    views = collect(f for f in [*files, *map(str, known)] if Path(f).is_file())
    if not views:
        return f"{pipeline.root}: no run has finished yet; `snakemake --cores 2` runs the study"
    lines = [f"Study {study.study}", "", to_text(results_table(views)), "Gates"]
    for path in known:
        content = read_verdict(path)
        word = "passed " if content["passed"] else "stopped"
        name = f"{content['experiment']}, seed {content['seed']}"
        lines.append(f"  {word}  {name}: {describe(content)}")
    shown = ("png" in study.figures.formats and "png") or study.figures.formats[0]
    figures = [f for f in pipeline.figure_files() if f.endswith(shown)]
    lines += ["", "Files"]
    for name in (*figures, pipeline.table_files()[1], str(pipeline.report)):
        missing = "" if Path(name).is_file() else "  (not made yet)"
        lines.append(f"  {name}{missing}")
    return "\n".join(lines)


def examine(configfile: str, verify: bool, as_json: bool) -> int:
    """Say what is to be mended in a study; 1 where there is something."""
    from etrm.study.doctor.diagnose import diagnose

    diagnosis = diagnose(configfile, verify)
    document = json.dumps(diagnosis.document(), indent=2)
    print(document if as_json else diagnosis.text())
    return diagnosis.code


def export_run(run: str, out: str, weights: str) -> int:
    """Write a run's weights as an official checkpoint, and say which file holds what."""
    from etrm.training.export import export

    (main, names), *beside = export(Path(run), Path(out), weights).items()
    whose = f"the decoder of {run}" if beside else run
    print(f"{main}: {len(names)} tensors, {weights} weights of {whose}, in official TRM's format")
    for path, names in beside:
        print(
            f"{path}: {len(names)} tensors, {weights} weights of its encoder, under their names in"
            " ETRM's model; official TRM reads the first file only"
        )
    return 0


def run_stage(study: StudyConfig, run: Run, device: str | None, gpus: int, nodes: int) -> None:
    """Train one run from the tables and parents that the study's folder holds."""
    from etrm.launch.job import Job
    from etrm.launch.torchrun import train
    from etrm.study.status import require_gate
    from etrm.training.run import RunPaths

    pipeline = Pipeline(study)
    if run not in pipeline.runs():
        known = ", ".join(f"{r.experiment} {r.stage} --seed {r.seed}" for r in pipeline.runs())
        raise ValueError(
            f"the study has no run {run.experiment} {run.stage} seed {run.seed}, but {known}"
        )
    if run.stage == "full":
        require_gate(pipeline, run)
    main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    paths = RunPaths(
        tasks=pipeline.tasks,
        augmentations=pipeline.augmentations,
        parent=pipeline.parent_path(run),
        out=pipeline.folder(run),
        state=pipeline.state,
        wandb=pipeline.wandb,
        strict_parents=tuple(pipeline.strict_parents()),
    )
    config = pipeline.config_of(run)
    train(Job(config, paths, study.tracking, study.execution, device), gpus * nodes, nodes)


def evaluate(study: StudyConfig, experiment: str, seed: int, device: str | None) -> None:
    """Evaluate one finished run from the tables and weights that the study's folder holds."""
    from etrm.evaluation.run import evaluate_run

    pipeline = Pipeline(study)
    scored = {(run.experiment, run.seed): run for run in pipeline.scored()}
    run = scored.get((experiment, seed))
    if run is None:
        known = ", ".join(f"{name} --seed {number}" for name, number in scored) or "no other"
        raise ValueError(
            f"the study evaluates no run of {experiment} with seed {seed}, but {known}"
        )
    missing = [path for path in pipeline.run_files(run) if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: not there, expected a finished run: `etrm run {experiment} {run.stage}"
            f" --seed {seed}` trains it"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = pipeline.score_files(run)
    evaluate_run(
        run_folder=pipeline.folder(run),
        tasks_path=pipeline.tasks,
        augmentations_path=pipeline.augmentations,
        config=study.experiments[experiment].evaluation,
        out=Path(files[0]).parent,
        device=device,
        state=pipeline.state,
        compile=study.execution.compile,
    )
    print("\n".join(files))


if __name__ == "__main__":
    sys.exit(main())
