# The validated study, and the few functions that rules share. All paths come from PIPELINE.
import signal
from pathlib import Path

from snakemake.exceptions import WorkflowError

from etrm.launch.site import read_site
from etrm.config.schema import ConfigError
from etrm.config.files import check_files
from etrm.config.load import evaluation_settings, load_study, plain, to_yaml
from etrm.storage.finished import RUN_FILES
from etrm.storage.records import DamagedFileError
from etrm.report.registry import FIGURES, TABLES, modules
from etrm.study.layout import SHARD_FILE, ParentError, Pipeline, Run
from etrm.storage.finished import SCORE_FILES
from etrm.study.gate import GateError, judge, require_passed
from etrm.storage.digests import code_digest, score_code, script_digest, train_code

try:
    # Snakemake has read them already, and has kept the last of keys that stand twice.
    check_files(workflow.configfiles)
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
config["resolved"] = resolved = to_yaml(STUDY)

# SLURM warns all processes of a job before its time is over. It is for training to save then;
# Snakemake, which waits for it, would die of the signal.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def run_code(run):
    return code_digest(*train_code(STUDY.experiments[run.experiment].context.source))


# What the verdicts said of each full run as this process began (missing ones are counted on), whose
# verdicts there were, and which full runs were what they would be today. Here, for what an input
# function raises, Snakemake passes over where the output is there.
try:
    if workflow.is_main_process:
        PIPELINE.check_files()
    GATED = [(r.experiment, r.seed) for r in PIPELINE.runs("overfit")]
    PROJECTED = {run: PIPELINE.projected(*run) for run in GATED}
    JUDGED = {run for run in GATED if PIPELINE.verdict(*run).is_file()}
    CURRENT = {r for r in PIPELINE.runs("full") if PIPELINE.current(r, run_code(r))}
except (DamagedFileError, ParentError) as error:
    raise WorkflowError(str(error)) from None


def names(experiments):
    """A pattern of their names, which matches nothing where there are none."""
    return "|".join(sorted(experiments)) or "(?!)"


wildcard_constraints:
    experiment=names(STUDY.experiments),
    stage="pretrain|overfit|full",
    seed=r"\d+",
    shard=r"\d+",
    shards=r"\d+",


def run_of(wildcards, stage=None):
    return Run(wildcards.experiment, stage or wildcards.stage, int(wildcards.seed))


def passed(experiment, seed):
    """Does its full run start? By its verdict, or, while it is made, as was known before.

    Whoever asks depends on the verdict as well, which is a checkpoint, and asks again when it is
    made. So a run begins with the jobs of its plan, and goes on by what it finds.
    """
    verdict = PIPELINE.known_verdict(experiment, seed)
    if verdict is None:
        return PROJECTED[experiment, seed]
    return judge(verdict, STUDY.experiments[experiment].gate)


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


def code_of_script(name):
    """Digest of a script's code. Its time says nothing: a fresh checkout is not another script."""
    return script_digest(CHECKOUT / "workflow/scripts" / f"{name}.py")


def config_of(stage):
    return lambda wildcards: plain(PIPELINE.config_of(run_of(wildcards, stage)))


def code_of(wildcards):
    return run_code(run_of(wildcards, "full"))


def code_of_evaluation(wildcards):
    source = STUDY.experiments[wildcards.experiment].context.source
    return code_digest(*score_code(source))


def parent_of(stage):
    """First weights; those from outside the study count by content, see `origin_of`."""

    def files(wildcards):
        run = run_of(wildcards, stage)
        found = PIPELINE.parent_files(run)
        return found if PIPELINE.parent(run) else ancient(found)

    return files


def parent_path_of(stage):
    return lambda wildcards: str(PIPELINE.parent_path(run_of(wildcards, stage)) or "")


def gate_of(wildcards):
    """The verdict that a full run needs. One that was known to have failed before anything ran
    stops it here: then somebody asks for its files by name.

    `ancient` where the full run is what it would be today: a verdict that is made again, say for
    a moved threshold, does not retrain. Not always: Snakemake does not look at the parameters of
    a job below one that runs, so a changed run would be passed over behind an ancient verdict. Nor
    for a verdict that is missing, which a plan cannot tell from one that may be another.
    """
    experiment, seed = wildcards.experiment, int(wildcards.seed)
    path = PIPELINE.verdict(experiment, seed)
    if not PROJECTED[experiment, seed] and not passed(experiment, seed):
        try:
            require_passed(path, STUDY.experiments[experiment].gate)
        except GateError as error:
            raise WorkflowError(str(error)) from None
    same = run_of(wildcards, "full") in CURRENT
    return ancient(path) if same and (experiment, seed) in JUDGED else path


def origin_of(stage):
    return lambda wildcards: PIPELINE.origin(run_of(wildcards, stage)) or ""


def written_config(wildcards):
    """No input; but a resolved configuration that is another study's, say that of a folder that
    was copied and renamed, is written anew whatever Snakemake has recorded of it."""
    path = Path(PIPELINE.config)
    if path.is_file() and path.read_bytes() != resolved.encode():
        workflow.dag.forcefiles.add(str(path))
    return []


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


def absent(files, shown):
    """Of files, those that are missing although what shows them is there, and the verdicts.

    Snakemake misses no file of a finished job while nothing that is to be made needs it. Where
    `shown` is missing it asks for all of them by itself.
    """
    files = list(files)
    missing = {path for path in files if not Path(path).exists()}
    if not missing or not Path(shown).exists():
        return []
    return [path for path in files if path in missing or path.endswith("verdict.json")]


def everything_absent(wildcards):
    files = [PIPELINE.config, PIPELINE.tasks, PIPELINE.augmentations, *records()]
    files += [*PIPELINE.figure_files(), *PIPELINE.table_files(), *finished(wildcards)]
    return absent(map(str, files), PIPELINE.table_files()[0])


def records(members=STUDY.experiments):
    return [str(ROOT / "records" / f"{name}.md") for name in members]


def of_group(members):
    """Records of the experiments of a group, and what is missing of what they are made from."""
    pairs = zip(members, records(members))
    below = [
        path for m, record in pairs for path in absent(files_of_experiment(m), record)
    ]
    return [*records(members), *below]


def of_experiment(wildcards):
    """Files of one experiment's runs, and of the baseline that its record compares with."""
    return files_of_experiment(wildcards.experiment)


def files_of_experiment(mine):
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


def table(name):
    """One table in all formats; the page goes into the report."""
    paths = [path for path in PIPELINE.table_files() if Path(path).stem == name]
    *rest, page = sorted(paths, key=lambda path: path.endswith(".html"))
    shown = report(
        page,
        caption=f"../report/{name}_table.rst",
        category="1 Results",
        labels={"table": name.replace("_", " ")},
    )
    return [shown, *rest]
