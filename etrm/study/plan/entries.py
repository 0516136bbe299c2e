"""Every stage of every experiment and seed: its state, and why it would run.

The jobs are those of Snakemake's dry run (`jobs`), the reasons those of `etrm.study.stale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from etrm.storage.records import read_verdict
from etrm.study.gate import describe
from etrm.study.layout import Layout, Run
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, Job, Jobs
from etrm.study.selection import choices_of, of_how_many
from etrm.study.stale import Status, StudyStatus

STAGES = ("pretrain", "overfit", "gate", "full", "validate", "evaluate", "refine")
RESULTS = {  # of a finished run
    "validate": "validation",
    "evaluate": "evaluation",
    "refine": "refinement",
}
# `waits` for its gate or its selection, `stopped` by them; `stale`: not up to date, but Snakemake
# keeps it.
STATES = ("done", "run", "waits", "stopped", "stale")
NEVER_RUN, RESTORABLE = "never run", "restorable from cache"


@dataclass(frozen=True)
class Entry:
    """One stage of one experiment and seed."""

    experiment: str
    stage: str  # one of STAGES
    seed: int
    state: str  # one of STATES
    why: tuple[str, ...] = ()  # the nearest reason first
    job: bool = False  # among Snakemake's jobs
    gpus: int = 0  # that its job asks for, on all nodes
    cached: bool = False  # restored from the cache, not computed
    step: int = 0  # where an interrupted run resumes
    hours: float | None = 0.0  # of one device; None: nothing says how fast it is
    hours_least: float | None = 0.0  # where it ends as early as it may
    measured: str | None = None  # the measurement or assumption that `hours` comes from
    pending: bool = False  # of a candidate that may be chosen: no job before the selection is made
    if_chosen: float | None = None  # hours of a pending one, where the sums have it at 0

    @property
    def costs(self) -> bool:
        """Return whether it takes time, now or if it is chosen."""
        return self.job or self.pending

    @property
    def run(self) -> Run:
        """The run of a training stage; for others, its experiment and seed with their stage."""
        return Run(self.experiment, self.stage, self.seed)


def entries_of(layout: Layout, jobs: Jobs, status: StudyStatus) -> list[Entry]:
    """Return all stages in the order of the configuration."""
    of, results = _Entries(layout, jobs, status), set(layout.results())
    return [
        of.entry(name, stage, seed)
        for name, config in layout.study.experiments.items()
        for seed in config.seeds
        for stage in STAGES
        if stage in config.stage_names
        or (stage == "gate" and "overfit" in config.stage_names)
        or (Run(name, str(config.scored_stage), seed), RESULTS.get(stage)) in results
    ]


class _Entries:
    def __init__(self, layout: Layout, jobs: Jobs, status: StudyStatus) -> None:
        self.layout, self.status = layout, status
        self.jobs = jobs.runs()
        self.choices = {name: choices_of(layout, name) for name in layout.study.selections}
        self.selects = any(job.rule == "select" for job in jobs.jobs)
        # New tables may differ from those that records, states and the cache were compared with.
        self.new_data = any(job.rule in ("tasks", "augment") for job in jobs.jobs)

    def entry(self, experiment: str, stage: str, seed: int) -> Entry:
        config = self.layout.study.experiments[experiment]
        job = self.jobs.get((experiment, stage, seed))
        entry = partial(Entry, experiment, stage, seed)
        if stage == "gate":
            return entry(*self._gate(experiment, seed, job))
        if config.after is not None:
            choices = self.choices[config.after]
            if choices is None:
                return entry(
                    "waits",
                    (f"{of_how_many(self.layout, config.after)}, by the selection {config.after}",),
                    pending=True,
                )
            if not any(c.chosen and c.experiment == config.candidate for c in choices):
                return entry("stopped", (f"not chosen by {config.after}",))
        behind = not config.is_trm and stage in ("full", *RESULTS)
        if behind and config.after is None and not self.status.expects_full(experiment, seed):
            verdict = read_verdict(self.layout.verdict(experiment, seed))
            now = {"threshold": config.gate.exact_accuracy, "passed": False}
            return entry("stopped", (describe({**verdict, **now}),), job is not None)
        if stage in RESULTS:
            run = Run(experiment, str(config.scored_stage), seed)  # whose weights are evaluated
            status = self.status.score(run, RESULTS[stage])
        else:
            run = Run(experiment, stage, seed)
            status = self.status.run(run)
        if job is None:
            why = tuple(status.reasons())
            return entry("stale" if why else "done", why)  # Snakemake keeps a stale one
        # Its verdict is still to be made, or to be made again.
        undecided = any((experiment, before, seed) in self.jobs for before in ("overfit", "gate"))
        undecided |= config.after is not None and self.selects
        state = "waits" if behind and undecided else "run"
        cached = status.cached and not self.new_data
        step = 0 if self.new_data else status.step or 0
        why = tuple(self._why(run, stage, status, job))
        return entry(state, why, True, job.gpus, cached, step)

    def _gate(self, experiment: str, seed: int, job: Job | None) -> tuple[Any, ...]:
        """Return the fields of the entry of a gate, from its state on."""
        if job is None:
            missing = not self.layout.verdict(experiment, seed).is_file()
            return ("stale", ("verdict.json is missing",)) if missing else ("done",)
        reasons = [NEVER_RUN] if NEVER_MADE in job.why else _own(job.why)
        if not reasons and (experiment, "overfit", seed) in self.jobs:  # Snakemake: after others
            reasons = ["its overfit run is rerun"]
        return "run", tuple(reasons or job.why), True, job.gpus

    def _why(self, run: Run, stage: str, status: Status, job: Job) -> Sequence[str]:
        """Return the nearest reasons first; Snakemake's own only where nothing else is known."""
        if status.cached and not self.new_data:
            return [*status.differences(), RESTORABLE]
        if status.step is not None and not self.new_data:
            steps = self.layout.config_of(run).train.steps
            return [f"interrupted at step {status.step:,} of {steps:,}, resumes there"]
        if not status.files:
            return [NEVER_RUN]
        found = status.reasons()
        if self.new_data and not status.data:
            found.append("new data")
        return found or self._upstream(run, stage) or _own(job.why) or list(job.why)

    def _upstream(self, run: Run, stage: str) -> list[str]:
        """Return which of its inputs is made by a run that is rerun."""
        parent = self.layout.parent(run)
        if stage in RESULTS:
            return ["its run is rerun"] if self._reruns(run) else []
        if parent is not None and self._reruns(parent):
            return [f"its parent {parent.experiment} is rerun"]
        overfit = Run(run.experiment, "overfit", run.seed)
        return ["its overfit run is rerun"] if stage == "full" and self._reruns(overfit) else []

    def _reruns(self, run: Run) -> bool:
        return (run.experiment, run.stage, run.seed) in self.jobs


def _own(why: Sequence[str]) -> list[str]:
    """Return the reasons of a job itself, without that jobs before it run."""
    return [reason for reason in why if reason != AFTER_OTHERS]
