# The validated study, and the few functions that rules share. All paths come from LAYOUT.
import os
import re
import signal
from pathlib import Path

from snakemake.exceptions import WorkflowError

from etrm.launch.site import read_site
from etrm.config.schema import ConfigError
from etrm.config.files import check_files, with_types
from etrm.config.load import (
    load_study,
    plain,
    result_settings,
    to_yaml,
)
from etrm.config.merging import merge
from etrm.storage.result_cache import RUN_FILES
from etrm.storage.records import DamagedFileError
from etrm.report.registry import FIGURES, PAGE, TABLES, modules
from etrm.study.layout import SHARD_FILE, Layout, Run
from etrm.storage.first_weights import ParentError
from etrm.study.stale import StudyStatus, check_records
from etrm.storage.result_cache import REFINEMENT_FILES, SCORE_FILES, VALIDATION_FILES
from etrm.study.gate import GateError, judge, require_passed
from etrm.study.selection import is_chosen, of_how_many, require_chosen
from etrm.storage.digests import (
    code_digest,
    digest,
    run_code,
    score_code,
    script_digest,
)
from etrm.storage.files import file_digest

try:
    # Snakemake has read them already, and has kept the last of keys that stand twice.
    check_files(workflow.configfiles)
    changed = merge(config, with_types(workflow.config_settings.config))
    STUDY, SITE = load_study(changed), read_site()
except ConfigError as error:
    raise WorkflowError(str(error)) from None

LAYOUT = Layout(STUDY)
STATUS = StudyStatus(LAYOUT)
ROOT = LAYOUT.root
# Where metrics go beside metrics.parquet, and how runs are executed, changes no result, so they are
# no parameters of any rule.
config["tracking"] = plain(STUDY.tracking)
config["wandb"] = str(LAYOUT.wandb)
config["execution"] = plain(STUDY.execution)
# Named in the message of a refused run as what to start from: advice, no parameter either.
config["strict_parents"] = LAYOUT.strict_parents()
config["continued"] = LAYOUT.continued()  # whose last states are kept
config["generated"] = {path: plain(s) for path, s in LAYOUT.generated.items()}
config["resolved"] = resolved = to_yaml(STUDY)
config["answer"] = os.environ.get("ETRM_ANSWER", "")  # in the report

# SLURM warns all processes of a job before its time is over. It is for training to save then;
# Snakemake, which waits for it, would die of the signal.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def code_of_run(run):
    return code_digest(*run_code(LAYOUT.config_of(run)))


def opens(run):
    """The file that lets a full run start: the verdict on its overfit run, or a selection."""
    selection = STUDY.experiments[run.experiment].after
    if selection is not None:
        return LAYOUT.selection(selection)
    return LAYOUT.verdict(run.experiment, run.seed)


# As this process began: whether each gate was open (without a verdict, a pass is expected), and
# which full runs that had a verdict, or a selection, were up to date. Computed here, since Snakemake passes over
# errors of input functions where the output exists.
try:
    if workflow.is_main_process:
        check_records(LAYOUT)
    GATED = [(r.experiment, r.seed) for r in LAYOUT.runs("overfit")]
    EXPECTED = {run: STATUS.expects_full(*run) for run in GATED}
    UP_TO_DATE = {
        run
        for run in LAYOUT.runs("full")
        if opens(run).is_file() and STATUS.run(run).up_to_date
    }
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
    """Return whether its full run starts: by its verdict, or as expected while there is none.

    Input functions that ask depend on the verdict, which is a checkpoint, and are called again when
    it is made. So a study starts with the jobs of its plan, and continues by the verdicts.
    """
    verdict = STATUS.verdict(experiment, seed)
    if verdict is None:
        return EXPECTED[experiment, seed]
    return judge(verdict, STUDY.experiments[experiment].gate)


def starts(run):
    """Return whether a run starts: no gate has stopped it, and it is chosen where it follows a
    selection. Before that is made, nothing is: a plan has no runs of experiments not known yet.
    """
    if STUDY.experiments[run.experiment].after is not None:
        return is_chosen(LAYOUT, run.experiment)
    return run.stage != "full" or passed(run.experiment, run.seed)


def going(runs):
    """The runs that no gate has stopped, and that are chosen."""
    return [run for run in runs if starts(run)]


def shown(experiments=STUDY.experiments):
    """The experiments that have runs: all but those after a selection that are not chosen."""
    all_of = STUDY.experiments
    return [n for n in experiments if all_of[n].after is None or is_chosen(LAYOUT, n)]


def verdicts(wildcards=None):
    """Verdicts and selections: checkpoints, by which others are asked for, or are not."""
    found = [str(LAYOUT.verdict(r.experiment, r.seed)) for r in LAYOUT.runs("overfit")]
    return [*found, *(str(LAYOUT.selection(name)) for name in STUDY.selections)]


def verdicts_of(experiments):
    """Of these experiments: the checkpoints that decide which of their runs there are."""
    runs = [run for name in experiments for run in LAYOUT.runs("overfit", name)]
    after = {STUDY.experiments[name].after for name in experiments} - {None}
    found = [str(LAYOUT.verdict(r.experiment, r.seed)) for r in runs]
    return [*found, *(str(LAYOUT.selection(name)) for name in sorted(after))]


def validations_of(selection):
    """The validations of the candidates that no gate has stopped."""
    runs = [r for name in STUDY.candidates(selection) for r in LAYOUT.validated(name)]
    return scores_of(going(runs), "validation")


def files_of(runs):
    return [path for run in runs for path in LAYOUT.run_files(run)]


def scores_of(runs, stage="evaluation"):
    return [path for run in runs for path in LAYOUT.score_files(run, stage)]


def code_of_script(name):
    """Digest of a script's code. Its time says nothing: a fresh checkout is not another script."""
    return script_digest(CHECKOUT / "workflow/scripts" / f"{name}.py")


def look_of_captions(*files):
    """Digest of all captions, and of other files that are shown with them."""
    captions = sorted((CHECKOUT / "workflow/report").glob("*.rst"))
    return digest([file_digest(path) for path in (*files, *captions)])[:16]


def config_of(stage):
    return lambda wildcards: plain(LAYOUT.config_of(run_of(wildcards, stage)))


def code_of(wildcards):
    return code_of_run(run_of(wildcards, "full"))


def code_of_result(stage):
    """The code of an `evaluation`, a `refinement` or a `validation`."""

    def code(wildcards):
        source = STUDY.experiments[wildcards.experiment].context.source
        return code_digest(*score_code(source, stage))

    return code


def parent_of(stage):
    """First weights; those from outside the study count by content, see `origin_of`."""

    def files(wildcards):
        run = run_of(wildcards, stage)
        found = LAYOUT.parent_files(run)
        return found if LAYOUT.parent(run) else ancient(found)

    return files


def parent_path_of(stage):
    return lambda wildcards: str(LAYOUT.parent_path(run_of(wildcards, stage)) or "")


def gate_of(wildcards):
    """Return the verdict that a full run needs; raise where it was known to have failed before
    anything ran, which happens only where its files are asked for by name.

    `ancient` where the full run is up to date: a verdict that is made again, say for a moved
    threshold, does not retrain. Not for a stale one: Snakemake does not look at the parameters of
    a job below one that runs, so it would be passed over behind an ancient verdict. Nor where the
    verdict is missing, since the new one may differ. None after a selection, see `selection_of`.
    """
    run = run_of(wildcards, "full")
    if STUDY.experiments[run.experiment].after is not None:
        return []
    path, gate = opens(run), STUDY.experiments[run.experiment].gate
    if not EXPECTED[run.experiment, run.seed] and not passed(run.experiment, run.seed):
        known(lambda: require_passed(path, gate))
    return ancient(path) if run in UP_TO_DATE else path


def selection_of(wildcards):
    """Return the selection that a full run follows, if any: as `gate_of`, by the same rules."""
    run = run_of(wildcards, "full")
    if STUDY.experiments[run.experiment].after is None:
        return []
    path = opens(run)
    if path.is_file():  # else it is made first
        known(lambda: require_chosen(LAYOUT, run.experiment))
    return ancient(path) if run in UP_TO_DATE else path


def known(check):
    try:
        check()
    except GateError as error:
        raise WorkflowError(str(error)) from None


def origin_of(stage):
    return lambda wildcards: STATUS.outside_weights(run_of(wildcards, stage)) or ""


def written_config(wildcards):
    """No input; but a resolved configuration that is another study's, say that of a folder that
    was copied and renamed, is written anew whatever Snakemake has recorded of it."""
    path = Path(LAYOUT.config)
    if path.is_file() and path.read_bytes() != resolved.encode():
        workflow.dag.forcefiles.add(str(path))
    return []


def scored_run(wildcards):
    return run_of(wildcards, STUDY.experiments[wildcards.experiment].scored_stage)


def settings_of(stage):
    return lambda wildcards: result_settings(
        STUDY.experiments[wildcards.experiment], stage
    )


def finished(wildcards):
    """Files of every run that no gate has stopped, with verdicts and evaluations."""
    return [
        *files_of(going(LAYOUT.runs())),
        *verdicts(),
        *scores_of(going(LAYOUT.scored())),
        *scores_of(going(LAYOUT.refined()), "refinement"),
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
    files = [LAYOUT.config, LAYOUT.tasks, LAYOUT.augmentations, *records()]
    files += [*LAYOUT.figure_files(), *LAYOUT.table_files(), *finished(wildcards)]
    return absent(map(str, files), LAYOUT.table_files()[0])


def records(wildcards=None, members=STUDY.experiments):
    return [str(ROOT / "records" / f"{name}.md") for name in shown(members)]


def of_group(members):
    """Records of the experiments of a group, their validations, the selections that they follow,
    and what is missing of what the records are made from."""
    pairs = zip(shown(members), records(members=members))
    below = [
        path for m, record in pairs for path in absent(files_of_experiment(m), record)
    ]
    after = dict.fromkeys(STUDY.experiments[name].after for name in members)
    asked = [str(LAYOUT.selection(name)) for name in after if name]
    runs = going([run for name in members for run in LAYOUT.validated(name)])
    asked += scores_of(runs, "validation")
    return [*records(members=members), *asked, *below]


def of_experiment(wildcards):
    """Files of one experiment's runs, and of the baseline that its record compares with."""
    return files_of_experiment(wildcards.experiment)


def files_of_experiment(mine):
    baseline = [
        str(LAYOUT.folder(r) / "run.json") for r in going(LAYOUT.baseline(mine))
    ]
    metrics = [str(Path(path).with_name("metrics.parquet")) for path in baseline]
    own = [
        *files_of(going(LAYOUT.runs(experiment=mine))),
        *(
            str(LAYOUT.verdict(r.experiment, r.seed))
            for r in LAYOUT.runs("overfit", mine)
        ),
        *scores_of(going(LAYOUT.scored(mine))),
        *scores_of(going(LAYOUT.refined(mine)), "refinement"),
    ]
    return list(dict.fromkeys([*own, *baseline, *metrics]))


def figure(name):
    """One figure in all formats; the first goes into the report."""
    first, *rest = [path for path in LAYOUT.figure_files() if Path(path).stem == name]
    shown = report(
        first,
        caption=f"../report/{name}.rst",
        category="2 Figures",
        labels={"figure": name.replace("_", " ")},
    )
    return [shown, *rest]


def table(name):
    """One table in all formats; the page goes into the report."""
    paths = [path for path in LAYOUT.table_files() if Path(path).stem == name]
    *rest, page = sorted(paths, key=lambda path: path.endswith(".html"))
    shown = report(
        page,
        caption=f"../report/{name}_table.rst",
        category="1 Results",
        labels={"table": name.replace("_", " ")},
    )
    return [shown, *rest]
