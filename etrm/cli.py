"""The command line: `etrm COMMAND`; each calls the API, or its own module."""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from etrm import api
from etrm.config.load import read_study
from etrm.config.registry import load_definition
from etrm.errors import UserError, is_explained
from etrm.runtime.terminal import use_stand_ins, width
from etrm.solve.command import add_solve_options
from etrm.solve.command import run as solve_tasks
from etrm.study.gate import outcome
from etrm.study.layout import Layout, Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a defect raises, with its traceback."""
    use_stand_ins()  # before anything is printed, help included
    given = _parser().parse_args(arguments)
    try:
        code: int = given.function(given) or 0
    except BrokenPipeError:  # the reader has seen enough, as in `etrm plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not is_explained(error):
            raise
        print(f"etrm: {error}", file=sys.stderr)
        return 1
    else:
        return code
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="etrm", description="Encoder-based Tiny Recursive Models on ARC-AGI."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Namespace], int | None], text: str, study: bool = True
    ) -> ArgumentParser:
        found = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        found.set_defaults(function=function)
        if study:  # others need no study file
            found.add_argument(
                "--configfile", default="config/config.yaml", help="the study (%(default)s)"
            )
        return found

    _plan_options(command("plan", _plan, "list the jobs that would run, why, and their cost"))
    command("summary", _summary, "show the results table, verdicts and files of a study")
    doctor = command(
        "doctor", _doctor, "list leftovers of crashes, and the command that mends each"
    )
    doctor.add_argument("--json", action="store_true", help="everything, for programs")
    doctor.add_argument("--verify", action="store_true", help="read weights and tables whole")
    command("prepare", _prepare, "write the tables of tasks and augmentations, without Snakemake")
    run = command("run", _run, "train one stage, or all stages in turn, without Snakemake")
    gate = command("gate", _gate, "judge a finished overfit run, and write its verdict")
    evaluate = command("evaluate", _answer, "evaluate a finished run on the held-out tasks")
    refine = command("refine", _answer, "refine the answers of a finished run by the demos")
    for each in (run, gate, evaluate, refine):
        each.add_argument("experiment", help="its name in the study")
    stages = "pretrain, overfit or full; without it: overfit, gate and full, or pretrain of a TRM"
    run.add_argument("stage", nargs="?", choices=("pretrain", "overfit", "full"), help=stages)
    for each in (run, gate, evaluate, refine):
        each.add_argument("--seed", type=int, default=0, help="%(default)s by default")
    for each in (run, evaluate, refine):
        each.add_argument("--device", help="cpu, cuda, cuda:1, …; default: a GPU if there is one")
    run.add_argument("--gpus", type=int, help="ranks on each node; default: execution.gpus")
    run.add_argument("--nodes", type=int, help="within a SLURM job; default: execution.nodes")
    solve = command("solve", solve_tasks, "answer tasks of your own by a finished run", False)
    add_solve_options(solve)
    export = command(
        "export", _export, "write a run's weights in the format of official TRM", False
    )
    export.add_argument("run", help="the run folder")
    export.add_argument("out", help="the file to write, .pt or .safetensors")
    export.add_argument("--weights", choices=("raw", "ema"), default="raw")
    command("sync", _sync, "send the offline runs of W&B, and save the dashboard there")
    _add_result_commands(command)
    return parser


def _plan_options(parser: ArgumentParser) -> None:
    """Add the filters of a plan; several of a kind are alternatives."""
    add = parser.add_argument
    add("experiments", nargs="*", metavar="GLOB", help="only these experiments, one line each")
    for name, words in (
        ("group", "only this group"),
        ("stage", "only this stage: pretrain, overfit, gate, full, evaluate, refine"),
        ("state", "only these: done, run, waits, stopped, stale"),
    ):
        add(f"--{name}", action="append", default=[], metavar="GLOB", help=words)
    words = (
        "count hours of this device: one that has been measured, or h100, h200, a100, l40s, 4090"
    )
    add("--gpu", metavar="NAME", help=words)
    add("--gpus", metavar="N", type=int, help="the wall time on so many devices at once")
    budget = (
        "hours of one device that it may take, which decide the cut (default: the study's budget)"
    )
    add("--budget", metavar="H", type=float, help=budget)
    add("--price", metavar="P", type=float, help="the cost, where an hour of a device is P")
    add("--all", action="store_true", help="a line for every experiment, also where all are done")
    add("--json", action="store_true", help="everything, by experiment, stage and seed")


def _add_result_commands(command: Callable[..., ArgumentParser]) -> None:
    """Add the commands that look at results, and change none."""
    compare = command("compare", _compare, "show two runs or experiments side by side")
    words = "run folder, folder of an evaluation, or experiment of the study"
    compare.add_argument("a", metavar="A", help=words)
    compare.add_argument("b", metavar="B", help="another, compared with A")
    show = command("show", _show, "show a run's settings, course and scores at a glance")
    show.add_argument("run", metavar="RUN", help=words)
    figures = command("figures", _figures, "draw figures of a study again, all or by name")
    figures.add_argument("names", nargs="*", metavar="NAME", help="as in figures/NAME.png")
    score = command(
        "score",
        _late("etrm.evaluation.submissions:run"),
        "score any submission in Kaggle's form",
        False,
    )
    score.add_argument("submission", help="a JSON file in Kaggle's form")
    places = "task file, folder, Kaggle challenges file, or public set, as in arcagi or arcagi2"
    score.add_argument("--tasks", nargs="+", required=True, metavar="PLACE", help=places)
    votes = command(
        "vote",
        _late("etrm.evaluation.accumulate:run"),
        "accumulate the votes of several evaluations",
        False,
    )
    votes.add_argument("evaluations", nargs="+", metavar="FOLDER", help="of the same tasks")
    votes.add_argument("--out", metavar="FILE", help="write the submission of all votes")
    for each in (compare, score, votes):
        each.add_argument("--json", action="store_true", help="everything, for programs")


def _plan(given: Namespace) -> None:
    print(plan_text(given), flush=True)  # here, where a closed pipe is caught


def plan_text(given: Namespace) -> str:
    """Return the plan that the options ask for, as a screen or as JSON."""
    from etrm.study.plan.table import render

    plan = api.plan(given.configfile, given.gpu, given.gpus, given.price, given.budget)
    plan = plan.select(given.experiments, given.group, given.stage, given.state)
    if given.json:
        return json.dumps(plan.document(), indent=2)
    return render(plan, _width(), given.all)


def _summary(given: Namespace) -> None:
    """Print the results of a study, its verdicts, and the pages to open next."""
    from etrm.study.summary import summary

    print(summary(read_study(given.configfile)))


def _doctor(given: Namespace) -> int:
    """Print the leftovers in a study with their remedies; return 1 where there are any."""
    from etrm.study.doctor.diagnose import diagnose

    diagnosis = diagnose(given.configfile, given.verify)
    document = json.dumps(diagnosis.document(), indent=2)
    print(document if given.json else diagnosis.text())
    return diagnosis.code


def _prepare(given: Namespace) -> None:
    print("\n".join(api.prepare(read_study(given.configfile))))


def _run(given: Namespace) -> None:
    rank = os.environ.get("RANK", "0")  # under torchrun; rank 0 alone reports progress
    level = logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    study = read_study(given.configfile)
    options = {"device": given.device, "gpus": given.gpus, "nodes": given.nodes}
    if given.stage is not None:
        api.train(study, given.experiment, given.stage, given.seed, **options)
        return
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            f"run {given.experiment}: found no stage, expected one under torchrun, which starts"
            " every rank anew for each: name it, or start the ranks by --gpus"
        )
    verdict = api.train_all(study, given.experiment, given.seed, **options)
    if verdict is not None:
        print(outcome(verdict))
        if not verdict["passed"]:
            path = Layout(study).verdict(given.experiment, given.seed)
            print(f"The full run has not been started; the reasons are in {path}")


def _gate(given: Namespace) -> None:
    study = read_study(given.configfile)
    print(outcome(api.gate(study, given.experiment, given.seed)))
    print(Layout(study).verdict(given.experiment, given.seed))


def _answer(given: Namespace) -> None:
    """Evaluate a run, or refine its answers, and print the files of the result."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study, run = read_study(given.configfile), Run(given.experiment, "full", given.seed)
    call, result = {
        "evaluate": (api.evaluate, "evaluation"),
        "refine": (api.refine, "refinement"),
    }[given.command]
    call(study, given.experiment, given.seed, device=given.device)
    print("\n".join(Layout(study).score_files(run, result)))


def _sync(given: Namespace) -> None:
    from etrm.tracking.sync import dashboard, sync

    study = read_study(given.configfile)
    project = study.tracking.project
    print(sync(Layout(study).wandb, project, os.environ), dashboard(project), sep="\n")


def _compare(given: Namespace) -> None:
    from etrm.report.side_by_side import Side, side_by_side, to_json, to_text
    from etrm.study.views import find_views

    sides = (Side(n, list(find_views(n, given.configfile).values())) for n in (given.a, given.b))
    found = side_by_side(*sides)
    print(to_json(found) if given.json else to_text(found, _width()))


def _show(given: Namespace) -> None:
    from etrm.report.at_a_glance import to_text
    from etrm.study.views import find_views

    views = find_views(given.run, given.configfile)
    print("\n\n".join(to_text(folder, view, _width()) for folder, view in views.items()))


def _figures(given: Namespace) -> None:
    for path in api.figures(read_study(given.configfile), given.names):
        print(path)


def _late(place: str) -> Callable[[Namespace], None]:
    """Return the function "module:name" as a command, imported when it is called."""
    return lambda given: load_definition(place)(given)


def _width() -> int:
    return width(otherwise=120)


def _export(given: Namespace) -> None:
    """Write a run's weights as an official checkpoint, and print which file holds which."""
    from etrm.training.export import export

    (main, names), *beside = export(Path(given.run), Path(given.out), given.weights).items()
    whose = f"the decoder of {given.run}" if beside else given.run
    kind = f"{given.weights} weights of"
    print(f"{main}: {len(names)} tensors, {kind} {whose}, in official TRM's format")
    for path, names in beside:
        print(
            f"{path}: {len(names)} tensors, {kind} its encoder, under their names in ETRM's model;"
            " official TRM reads the first file only"
        )


if __name__ == "__main__":
    sys.exit(main())
