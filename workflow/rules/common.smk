# The validated study, and the few functions that rules share. All paths come from PIPELINE.
import json

from snakemake.exceptions import WorkflowError

from etrm.config import ConfigError, load_study, plain
from etrm.pipeline import (
    FIGURES,
    RUN_FILES,
    SCORE_FILES,
    TABLE_FORMATS,
    GateError,
    Pipeline,
    Run,
    projected,
    require_passed,
)
from etrm.provenance import code_digest, train_code

try:
    STUDY = load_study(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

PIPELINE = Pipeline(STUDY)
ROOT = PIPELINE.root
ENVIRONMENT = "../../envs/etrm.yaml"
# Where metrics go beside metrics.parquet changes no result, so it is no parameter of any rule.
config["tracking"] = plain(STUDY.tracking)


wildcard_constraints:
    experiment="|".join(STUDY.experiments),
    stage="pretrain|overfit|full",
    seed=r"\d+",


def run_of(wildcards, stage=None):
    return Run(wildcards.experiment, stage or wildcards.stage, int(wildcards.seed))


def passed(experiment, seed):
    """Did it pass the gate? A plan goes by the verdicts so far, and counts on the missing ones."""
    if workflow.dryrun:
        gate = STUDY.experiments[experiment].gate
        return projected(PIPELINE.verdict(experiment, seed), gate)
    checked = checkpoints.verdict.get(experiment=experiment, seed=seed)
    with open(checked.output[0]) as file:
        return json.load(file)["passed"]


def going(runs):
    """The runs that no gate has stopped."""
    return [r for r in runs if r.stage != "full" or passed(r.experiment, r.seed)]


def verdicts(wildcards=None):
    return [str(PIPELINE.verdict(r.experiment, r.seed)) for r in PIPELINE.runs("overfit")]


def files_of(runs):
    return [path for run in runs for path in PIPELINE.run_files(run)]


def scores_of(runs):
    return [path for run in runs for path in PIPELINE.score_files(run)]
