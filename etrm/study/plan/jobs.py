"""Jobs that would run: the answer of Snakemake's own dry run, in this process.

The plan adds words and costs to these jobs, and never a job of its own, so that it cannot disagree
with `snakemake -n`. As there, the settings of profiles count.
"""

from __future__ import annotations

import ast
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.config.compare import changes, summary
from etrm.config.files import located
from etrm.config.text import first_few
from etrm.errors import UserError
from etrm.launch.slurm import gpus_of

# Rules whose jobs belong to one run, and the stage that users know them by.
STAGE_OF_RULE = {
    **{"train_pretrain": "pretrain", "train_overfit": "overfit", "verdict": "gate"},
    **{"train_full": "full", "validate_run": "validate", "evaluate_run": "evaluate"},
    **{"evaluate_shard": "evaluate", "merge_shards": "evaluate", "refine_run": "refine"},
}
AFTER_OTHERS, NEVER_MADE = "after other jobs", "never made"
# Parameters of rules that the configuration has under another name, or not at all.
PARAMS = {"run": "", "style": "figures", "variants": "data.variants"}
NO_CONFIG = {
    **{"code": "code", "script": "the rule's script", "parent": "other first weights"},
    **{"origin": "other first weights", "targets": "targets", "state": "state", "wandb": "wandb"},
    "sources": "other content of the sources",
}


class PlanError(UserError):
    """The study cannot be planned; the message says why."""


@dataclass(frozen=True)
class Job:
    """A job that Snakemake would run."""

    rule: str
    experiment: str | None = None  # None for a job of no single run
    seed: int | None = None
    why: tuple[str, ...] = ()  # Snakemake's reasons in words
    gpus: int = 0


@dataclass(frozen=True)
class Jobs:
    """All jobs of a dry run."""

    jobs: tuple[Job, ...]
    locked: bool = False  # another Snakemake works in this folder, or was killed there

    def of_rules(self) -> dict[str, int]:
        """Return the number of jobs of each rule, as `snakemake -n` counts them."""
        return dict(sorted(Counter(job.rule for job in self.jobs).items()))

    def runs(self) -> dict[tuple[str, str, int], Job]:
        """Return the jobs that belong to one run, by experiment, stage and seed.

        Of the jobs that share an evaluation, one that decodes: the merge has no GPU.
        """
        return {
            (job.experiment, STAGE_OF_RULE[job.rule], job.seed): job
            for job in sorted(self.jobs, key=lambda job: job.gpus)
            if job.rule in STAGE_OF_RULE and job.experiment is not None and job.seed is not None
        }


def snakemake_jobs(configfile: str) -> Jobs:
    """Return the jobs of the Snakefile in the working directory, for a study.

    Raises `PlanError` where Snakemake is not installed, finds no Snakefile or cannot plan.
    """
    try:
        from snakemake import cli
        from snakemake.api import SnakemakeApi
        from snakemake.exceptions import ApiError, WorkflowError
        from snakemake.settings.enums import Quietness
        from snakemake.settings.types import OutputSettings
    except ImportError as error:
        raise PlanError(
            f"Snakemake is not installed here ({error}), and the plan is its dry run: install it,"
            " as `make setup` does, or use `etrm run` for a single stage"
        ) from None
    snakefile = located(Path("Snakefile"))
    if not snakefile.is_file():
        raise PlanError(
            f"{Path.cwd()}: found no Snakefile, expected the folder of the project: go there first"
        )
    said = io.StringIO()  # argparse explains its exit on stderr
    try:
        with redirect_stderr(said):
            _, args = cli.parse_args(
                ["--dryrun", "--snakefile", str(snakefile), "--configfile", configfile]
            )
    except SystemExit:
        words = said.getvalue().strip().splitlines() or ["it does not say why"]
        raise PlanError(f"Snakemake refuses a setting of a profile: {words[-1]}") from None
    # Rules and progress left out, Snakemake ends when its graph of jobs is complete.
    quiet = frozenset({Quietness.RULES, Quietness.PROGRESS})
    try:
        with SnakemakeApi(OutputSettings(dryrun=True, quiet=quiet)) as api:
            # Its log would end up between the lines of the plan.
            logger = api.logger_manager.logger
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
            logger.addHandler(logging.NullHandler())
            workflow = _dry_run(api, args)
    except Exception as error:
        known = isinstance(error, WorkflowError | ApiError) and str(error)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        raise PlanError(f"Snakemake cannot plan the study: {text}") from error
    return Jobs(tuple(map(_job, workflow.dag.needrun_jobs())), bool(workflow.persistence.locked))


def _dry_run(api: Any, args: Any) -> Any:
    """Return the workflow after a dry run with the settings that `snakemake -n` would have."""
    from snakemake.cli import parse_config
    from snakemake.settings import types

    workflow = api.workflow(
        resource_settings=types.ResourceSettings(
            cores=1,  # any number: nothing runs
            resources=args.resources,
            overwrite_threads=args.set_threads,
            overwrite_resources=args.set_resources,
            default_resources=args.default_resources,
        ),
        config_settings=types.ConfigSettings(
            config=parse_config(args.config), configfiles=args.configfile, config_args=args.config
        ),
        workflow_settings=types.WorkflowSettings(consider_ancient=args.consider_ancient),
        deployment_settings=types.DeploymentSettings(
            deployment_method=args.software_deployment_method
        ),
        snakefile=args.snakefile,
    )
    dag = workflow.dag(
        types.DAGSettings(
            forcerun=args.forcerun,
            force_incomplete=args.rerun_incomplete,
            rerun_triggers=args.rerun_triggers,
            max_checksum_file_size=args.max_checksum_file_size,
        )
    )
    execution = types.ExecutionSettings(ignore_incomplete=args.ignore_incomplete)
    dag.execute_workflow(executor="dryrun", execution_settings=execution)
    return workflow._workflow  # the public API does not give access to its jobs


def _job(job: Any) -> Job:
    wildcards = job.wildcards_dict or {}
    seed = wildcards.get("seed")
    gpus = gpus_of(job.resources) if {"gpu", "gres"} & set(job.resources.keys()) else 0
    why = tuple(_reasons(job, job.dag.reason(job)))
    name, experiment = job.rule.name, wildcards.get("experiment")
    return Job(name, experiment, None if seed is None else int(seed), why, gpus)


def _reasons(job: Any, reason: Any) -> Iterator[str]:
    """Yield why Snakemake runs a job; `reason` is its `snakemake.dag.Reason`."""
    if reason.forced:
        yield "the study has changed" if job.rule.name == "resolved_config" else "forced"
    if reason.missing_output:
        missing = sorted(Path(file).name for file in reason.missing_output)
        none = len(missing) == len(job.output)  # not one of its outputs is there
        yield NEVER_MADE if none else f"missing: {', '.join(missing)}"
    if reason.incomplete_output:
        yield "was interrupted"
    newer = sorted(reason.updated_input - reason.updated_input_run)  # without those being made
    if newer:
        yield f"newer input: {', '.join(first_few(newer, 1))}"
    if reason.updated_input_run:
        yield AFTER_OTHERS
    if reason.params_changed:
        old, new = (
            list(map(_literal, sorted(side)))
            for side in (reason.params_changed.only_old, reason.params_changed.only_new)
        )
        yield from changed_params(dict(job.params.items()), old, new)
    if reason.code_changed:
        yield "the rule has changed"
    if reason.input_changed:
        yield "other set of input files"
    if reason.software_stack_changed:
        yield "other software environment"


def _literal(text: str) -> Any:
    """Return the value of a parameter, which Snakemake records as Python writes it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def changed_params(params: Mapping[str, Any], old: Sequence[Any], new: Sequence[Any]) -> list[str]:
    """Return the changes of a job's parameters: `gate.exact_accuracy 0.9 → 0.8`, or `code`.

    Snakemake records values without names. `params` are those of now by name, of which `new` are
    not in the record; `old` are values in the record that are gone.
    """
    left, found = list(old), list[str]()  # old values that no parameter has taken yet
    changed: list[tuple[str, Any, Any]] = []
    for name, value in params.items():
        if value not in new:
            continue  # unchanged
        before = _nearest(value, left)
        if before is not None:
            left.remove(before)
        if name in NO_CONFIG or before is None:
            found.append(NO_CONFIG.get(name, f"{PARAMS.get(name, name)} is new"))
            continue
        prefix = PARAMS.get(name, name)
        there, here = (v if isinstance(v, Mapping) else {"": v} for v in (before, value))
        for key, then, now in changes(here, there):
            changed.append((".".join(filter(None, (prefix, key))), then, now))
    return [*summary(changed), *found] or ["parameters"]


def _nearest(value: Any, candidates: Iterable[Any]) -> Any:
    """Return the candidate of its type that a value has most in common with."""
    same = [each for each in candidates if type(each) is type(value)]
    if not same or not isinstance(value, Mapping):
        return same[0] if same else None
    return min(same, key=lambda candidate: len(changes(value, candidate)))
