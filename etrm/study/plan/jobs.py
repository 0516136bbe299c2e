"""What would run: Snakemake's own answer, from its dry run in this process.

The plan adds words and costs to these jobs, and never a job of its own, so that it cannot disagree
with `snakemake -n`. As there, what profiles say counts.
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

from etrm.config.compare import changes, in_words
from etrm.errors import UserError
from etrm.launch.slurm import gpus_of

# Rules whose jobs are of one run, and the stage that a person calls them by.
STAGE_OF_RULE = {
    "train_pretrain": "pretrain",
    "train_overfit": "overfit",
    "verdict": "gate",
    "train_full": "full",
    "evaluate_shard": "evaluate",
    "evaluate_run": "evaluate",
    "merge_shards": "evaluate",
}
AFTER_OTHERS, NEVER_MADE = "after other jobs", "never made"
# Where in the configuration a parameter of a rule stands, if not under its own name.
PARAMS = {"run": "", "style": "figures", "variants": "data.variants"}
NO_CONFIG = {
    **{"code": "code", "script": "the rule's script", "parent": "other first weights"},
    **{"origin": "other first weights", "targets": "targets", "state": "state", "wandb": "wandb"},
    "sources": "other content of the sources",
}


class PlanError(UserError):
    """The study cannot be planned; says why."""


@dataclass(frozen=True)
class Job:
    """A job that Snakemake would run."""

    rule: str
    experiment: str | None = None
    seed: int | None = None
    why: tuple[str, ...] = ()  # Snakemake's reasons in words
    gpus: int = 0

    @property
    def stage(self) -> str | None:
        """`pretrain`, `overfit`, `gate`, `full` or `evaluate`; None for a job of no single run."""
        return STAGE_OF_RULE.get(self.rule)


@dataclass(frozen=True)
class Jobs:
    """All jobs of a dry run."""

    jobs: tuple[Job, ...]
    locked: bool = False  # another Snakemake is at work in this folder, or was killed there

    def of_rules(self) -> dict[str, int]:
        """How many of each rule, as `snakemake -n` counts them."""
        return dict(sorted(Counter(job.rule for job in self.jobs).items()))

    def runs(self) -> dict[tuple[str, str, int], Job]:
        """The jobs that are of one run, by experiment, stage and seed.

        Of the jobs that share an evaluation, one that decodes.
        """
        return {
            (job.experiment, job.stage, job.seed): job
            for job in sorted(self.jobs, key=lambda job: job.gpus)
            if job.stage and job.experiment is not None and job.seed is not None
        }


def snakemake_jobs(configfile: str) -> Jobs:
    """The jobs of the Snakefile in the working directory, for a study.

    Raises `PlanError` where Snakemake is not installed, finds no Snakefile or cannot plan.
    """
    try:
        from snakemake import cli
        from snakemake.api import SnakemakeApi
        from snakemake.settings.enums import Quietness
        from snakemake.settings.types import OutputSettings
    except ImportError as error:
        raise PlanError(
            f"Snakemake is not installed here ({error}), and the plan is its answer: install it, as"
            " `make setup` does, or use `etrm run` for a single stage"
        ) from None
    if not Path("Snakefile").is_file():
        raise PlanError(
            f"{Path.cwd()}: found no Snakefile, expected the folder of the project: go there first"
        )
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            _, args = cli.parse_args(["--dryrun", "--configfile", configfile])
    except SystemExit:
        words = said.getvalue().strip().splitlines() or ["it does not say why"]
        raise PlanError(f"Snakemake refuses what a profile sets: {words[-1]}") from None
    # Rules and progress left out, Snakemake ends when its graph of jobs is complete.
    quiet = frozenset({Quietness.RULES, Quietness.PROGRESS})
    try:
        with SnakemakeApi(OutputSettings(dryrun=True, quiet=quiet)) as api:
            logger = api.logger_manager.logger
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
            logger.addHandler(logging.NullHandler())
            workflow = _dry_run(api, args)
    except Exception as error:
        raise PlanError(f"Snakemake cannot plan the study: {_words(error)}") from error
    jobs = [_job(job, workflow.dag.reason(job)) for job in workflow.dag.needrun_jobs()]
    return Jobs(tuple(jobs), locked=bool(workflow.persistence.locked))


def _dry_run(api: Any, args: Any) -> Any:
    """The workflow after a dry run with the settings that `snakemake -n` would have."""
    from snakemake.cli import parse_config
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        DeploymentSettings,
        ExecutionSettings,
        ResourceSettings,
        WorkflowSettings,
    )

    workflow = api.workflow(
        resource_settings=ResourceSettings(
            cores=1,
            resources=args.resources,
            overwrite_threads=args.set_threads,
            overwrite_resources=args.set_resources,
            default_resources=args.default_resources,
        ),
        config_settings=ConfigSettings(
            config=parse_config(args.config), configfiles=args.configfile, config_args=args.config
        ),
        workflow_settings=WorkflowSettings(consider_ancient=args.consider_ancient),
        deployment_settings=DeploymentSettings(deployment_method=args.software_deployment_method),
        snakefile=args.snakefile,
    )
    dag = workflow.dag(
        DAGSettings(
            forcerun=args.forcerun,
            force_incomplete=args.rerun_incomplete,
            rerun_triggers=args.rerun_triggers,
            max_checksum_file_size=args.max_checksum_file_size,
        )
    )
    dag.execute_workflow(
        executor="dryrun",
        execution_settings=ExecutionSettings(ignore_incomplete=args.ignore_incomplete),
    )
    return workflow._workflow  # the interface has no other way to its jobs


def _words(error: Exception) -> str:
    from snakemake.exceptions import ApiError, WorkflowError

    known = isinstance(error, WorkflowError | ApiError)
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}"


def _job(job: Any, reason: Any) -> Job:
    wildcards = job.wildcards_dict or {}
    seed = wildcards.get("seed")
    return Job(
        rule=job.rule.name,
        experiment=wildcards.get("experiment"),
        seed=None if seed is None else int(seed),
        why=tuple(_reasons(job, reason)),
        gpus=gpus_of(job.resources) if {"gpu", "gres"} & set(job.resources.keys()) else 0,
    )


def _reasons(job: Any, reason: Any) -> Iterator[str]:
    """Why Snakemake runs a job; the names are those of its own class."""
    if reason.forced:
        yield "the study has changed" if job.rule.name == "resolved_config" else "forced"
    if reason.missing_output:
        missing = sorted(Path(file).name for file in reason.missing_output)
        none = len(missing) == len(job.output)
        yield NEVER_MADE if none else f"missing: {', '.join(missing)}"
    if reason.incomplete_output:
        yield "was interrupted"
    newer = sorted(reason.updated_input - reason.updated_input_run)
    if newer:
        more = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
        yield f"newer input: {newer[0]}{more}"
    if reason.updated_input_run:
        yield AFTER_OTHERS
    if reason.params_changed:
        change = reason.params_changed
        old, new = _literals(change.only_old), _literals(change.only_new)
        yield from changed_params(dict(job.params.items()), old, new)
    if reason.code_changed:
        yield "the rule has changed"
    if reason.input_changed:
        yield "other set of input files"
    if reason.software_stack_changed:
        yield "other software environment"


def _literals(texts: Iterable[str]) -> list[Any]:
    """Values of parameters, which are recorded as Python writes them."""
    found = []
    for text in sorted(texts):
        try:
            found.append(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            found.append(text)
    return found


def changed_params(params: Mapping[str, Any], old: Sequence[Any], new: Sequence[Any]) -> list[str]:
    """What has changed of a job's parameters: `gate.exact_accuracy 0.9 → 0.8`, or `code`.

    `params` by name as they are now, of which `new` are the values that were not recorded, and
    `old` those that were recorded and are not there any more.
    """
    left, found = list(old), []
    for name, value in params.items():
        if value not in new:
            continue
        before = _nearest(value, left)
        if before is None:
            found.append(NO_CONFIG.get(name, f"{PARAMS.get(name, name)} is new"))
            continue
        left.remove(before)
        if name in NO_CONFIG:
            found.append(NO_CONFIG[name])
            continue
        prefix = PARAMS.get(name, name)
        there, here = (v if isinstance(v, Mapping) else {"": v} for v in (before, value))
        for key, then, now in changes(here, there):
            dotted = ".".join(part for part in (prefix, key) if part)
            found.append(in_words((dotted, then, now)))
    return found or ["parameters"]


def _nearest(value: Any, candidates: Sequence[Any]) -> Any:
    """Of those of its type, the one with which a value has most in common."""
    same = [c for c in candidates if type(c) is type(value)]
    if not isinstance(value, Mapping):
        return same[0] if same else None
    common = [len(value.items()) - len(changes(value, candidate)) for candidate in same]
    return same[common.index(max(common))] if same else None
