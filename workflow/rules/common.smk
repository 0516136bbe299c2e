# The validated study, and the few functions that rules share. All paths come from PIPELINE.
import json
import signal
from pathlib import Path

from snakemake.exceptions import WorkflowError

from etrm.cluster import read_site
from etrm.config import ConfigError, evaluation_settings, load_study, plain
from etrm.keep import RUN_FILES
from etrm.pipeline import (
    FIGURES,
    PART_FILE,
    SCORE_FILES,
    TABLE_FORMATS,
    GateError,
    Pipeline,
    Run,
    require_passed,
)
from etrm.provenance import code_digest, train_code

try:
    STUDY, SITE = load_study(config), read_site()
except ConfigError as error:
    raise WorkflowError(str(error)) from None

PIPELINE = Pipeline(STUDY)
ROOT = PIPELINE.root
# Where metrics go beside metrics.parquet, and how runs are executed, changes no result, so they are
# no parameters of any rule.
config["tracking"] = plain(STUDY.tracking)
config["execution"] = plain(STUDY.execution)
# What a refused run is told to start from: an advice, no parameter either.
config["strict_parents"] = PIPELINE.strict_parents()

# SLURM warns all processes of a job before its time is over. It is for training to save then;
# Snakemake, which waits for it, would die of the signal.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def names(experiments):
    """A pattern of their names, which matches nothing where there are none."""
    return "|".join(sorted(experiments)) or "(?!)"


wildcard_constraints:
    experiment=names(STUDY.experiments),
    stage="pretrain|overfit|full",
    seed=r"\d+",
    part=r"\d+",
    parts=r"\d+",


def run_of(wildcards, stage=None):
    return Run(wildcards.experiment, stage or wildcards.stage, int(wildcards.seed))


def passed(experiment, seed):
    """Did it pass the gate? A plan goes by the verdicts so far, and counts on the missing ones."""
    if workflow.dryrun:
        return PIPELINE.projected(experiment, seed)
    checked = checkpoints.verdict.get(experiment=experiment, seed=seed)
    with open(checked.output[0], encoding="utf-8") as file:
        return json.load(file)["passed"]


def going(runs):
    """The runs that no gate has stopped."""
    return [r for r in runs if r.stage != "full" or passed(r.experiment, r.seed)]


def verdicts(wildcards=None):
    return [
        str(PIPELINE.verdict(r.experiment, r.seed)) for r in PIPELINE.runs("overfit")
    ]


def files_of(runs):
    return [path for run in runs for path in PIPELINE.run_files(run)]


def scores_of(runs):
    return [path for run in runs for path in PIPELINE.score_files(run)]


def config_of(stage):
    return lambda wildcards: plain(PIPELINE.config_of(run_of(wildcards, stage)))


def code_of(wildcards):
    source = STUDY.experiments[wildcards.experiment].context.source
    return code_digest(*train_code(source))


def parent_of(stage):
    return lambda wildcards: PIPELINE.parent_files(run_of(wildcards, stage))


def parent_path_of(stage):
    return lambda wildcards: str(PIPELINE.parent_path(run_of(wildcards, stage)) or "")


def gate_of(wildcards):
    """The verdict that a full run needs; one that is known to have failed stops it here.

    `ancient` where the full run is what it would be today: a verdict that is made again, say for
    a moved threshold, does not retrain. Not always: Snakemake does not look at the parameters of
    a job below one that runs, so a changed run would be passed over behind an ancient verdict.
    """
    experiment, seed = wildcards.experiment, int(wildcards.seed)
    path = PIPELINE.verdict(experiment, seed)
    if not PIPELINE.projected(experiment, seed):
        try:
            require_passed(path)
        except GateError as error:
            raise WorkflowError(str(error)) from None
    run = run_of(wildcards, "full")
    return ancient(path) if PIPELINE.current(run, code_of(wildcards)) else path


def scored_run(wildcards):
    return run_of(wildcards, STUDY.experiments[wildcards.experiment].scored_stage)


def evaluation_of(wildcards):
    return evaluation_settings(STUDY.experiments[wildcards.experiment].evaluation)


def finished(wildcards):
    """Files of every run that no gate has stopped, with verdicts and evaluations."""
    return [
        *files_of(going(PIPELINE.runs())),
        *verdicts(),
        *scores_of(going(PIPELINE.scored())),
    ]


def of_group(members):
    """Records of the experiments of a group, and with them all that they are made from."""
    return [str(ROOT / "records" / f"{name}.md") for name in members]


def of_experiment(wildcards):
    """Files of one experiment's runs, and of the baseline that its record compares with."""
    mine = wildcards.experiment
    baseline = [str(PIPELINE.folder(r) / "run.json") for r in PIPELINE.baseline(mine)]
    metrics = [str(Path(path).with_name("metrics.parquet")) for path in baseline]
    own = [
        *files_of(going(PIPELINE.runs(experiment=mine))),
        *(
            str(PIPELINE.verdict(r.experiment, r.seed))
            for r in PIPELINE.runs("overfit", mine)
        ),
        *scores_of(going(PIPELINE.scored(mine))),
    ]
    return list(dict.fromkeys([*own, *baseline, *metrics]))


def figure(name):
    """One figure in all formats; the first goes into the report."""
    first, *rest = [path for path in PIPELINE.figure_files() if Path(path).stem == name]
    shown = report(
        first,
        caption=f"../report/{name}.rst",
        category="2 Figures",
        labels={"figure": name.replace("_", " ")},
    )
    return [shown, *rest]
