"""Every stage of every experiment and seed: its state, and why it would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etrm.storage.records import read_verdict
from etrm.study.gate import describe
from etrm.study.layout import Layout, Run
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, Job, Jobs
from etrm.study.status import Status, StudyStatus

STAGES = ("pretrain", "overfit", "gate", "full", "evaluate")
# `waits`: for a verdict, and is counted on; `stale`: Snakemake keeps it, but it is not today's.
STATES = ("done", "run", "waits", "stopped", "stale")
NEVER_RUN, TAKEN_BACK = "never run", "finished before, is taken back"


@dataclass(frozen=True)
class Entry:
    """One stage of one experiment and seed."""

    experiment: str
    stage: str
    seed: int
    state: str
    why: tuple[str, ...] = ()
    job: bool = False  # among Snakemake's jobs
    gpus: int = 0
    kept: bool = False  # is taken back, not made again
    step: int = 0  # from which a run goes on

    @property
    def run(self) -> Run:
        """The run, if it is one of training; else its experiment and seed."""
        return Run(self.experiment, self.stage, self.seed)


def entries_of(layout: Layout, jobs: Jobs, status: StudyStatus) -> list[Entry]:
    """All stages in the order of the configuration."""
    of = _Entries(layout, jobs, status)
    found = []
    for name, config in layout.study.experiments.items():
        stages = ["pretrain"] if config.is_trm else ["overfit", "gate", "full"]
        stages += ["evaluate"] * (config.scored_stage is not None)
        for seed in config.seeds:
            found += [of.entry(name, stage, seed) for stage in stages]
    return found


class _Entries:
    def __init__(self, layout: Layout, jobs: Jobs, status: StudyStatus) -> None:
        self.layout, self.status = layout, status
        self.jobs = jobs.runs()
        self.data = any(job.rule in ("tasks", "augment") for job in jobs.jobs)

    def entry(self, experiment: str, stage: str, seed: int) -> Entry:
        job = self.jobs.get((experiment, stage, seed))
        if stage in ("full", "evaluate") and self._stopped(experiment, seed):
            verdict = self._verdict(experiment, seed)
            return Entry(experiment, stage, seed, "stopped", (verdict,), job is not None)
        if stage == "gate":
            return self._gate(experiment, seed, job)
        status = self._status(experiment, stage, seed)
        if job is None:
            why = tuple(self._stale(stage, status))
            return Entry(experiment, stage, seed, "stale" if why else "done", why)
        waits = stage in ("full", "evaluate") and self._undecided(experiment, seed)
        known = not self.data  # tables that are made again may be others
        return Entry(
            experiment,
            stage,
            seed,
            "waits" if waits else "run",
            tuple(self._why(experiment, stage, seed, status, job)),
            job=True,
            gpus=job.gpus,
            kept=known and status.kept,
            step=(known and status.step) or 0,
        )

    def _status(self, experiment: str, stage: str, seed: int) -> Status:
        if stage != "evaluate":
            return self.status.run(Run(experiment, stage, seed))
        return self.status.score(self._scored(experiment, seed))

    def _scored(self, experiment: str, seed: int) -> Run:
        stage = self.layout.study.experiments[experiment].scored_stage
        assert stage is not None  # only stages that there are have an entry
        return Run(experiment, stage, seed)

    def _stopped(self, experiment: str, seed: int) -> bool:
        """Has its gate stopped it, as far as is known? Snakemake plans by the same answer."""
        is_trm = self.layout.study.experiments[experiment].is_trm
        return not is_trm and not self.layout.projected(experiment, seed)

    def _undecided(self, experiment: str, seed: int) -> bool:
        if self.layout.study.experiments[experiment].is_trm:
            return False
        return any((experiment, stage, seed) in self.jobs for stage in ("overfit", "gate"))

    def _verdict(self, experiment: str, seed: int) -> str:
        path = self.layout.verdict(experiment, seed)
        verdict = read_verdict(path)
        gate = self.layout.study.experiments[experiment].gate
        return describe({**verdict, "threshold": gate.exact_accuracy, "passed": False})

    def _gate(self, experiment: str, seed: int, job: Job | None) -> Entry:
        if job is None:
            if self.layout.verdict(experiment, seed).is_file():
                return Entry(experiment, "gate", seed, "done")
            return Entry(experiment, "gate", seed, "stale", ("verdict.json is missing",))
        why = [NEVER_RUN] if NEVER_MADE in job.why else _own(job.why)
        if not why and (experiment, "overfit", seed) in self.jobs:
            why = ["its overfit run runs again"]
        return Entry(experiment, "gate", seed, "run", tuple(why or job.why), True, job.gpus)

    def _stale(self, stage: str, status: Status) -> list[str]:
        """What is wrong with a result that Snakemake would keep."""
        missing = [f"{name} is missing" for name in status.missing]
        if status.record is None and not missing:
            name = "score.json" if stage == "evaluate" else "run.json"
            missing = [f"{name} cannot be read: `etrm doctor` names it and what mends it"]
        return missing + status.differences()

    def _why(
        self, experiment: str, stage: str, seed: int, status: Status, job: Job
    ) -> Sequence[str]:
        """The nearest reason first; what Snakemake says only where nothing else is known."""
        if status.kept and not self.data:
            return [*status.differences(), TAKEN_BACK]
        if status.step is not None and not self.data:
            steps = self.layout.config_of(Run(experiment, stage, seed)).train.steps
            return [f"interrupted at step {status.step:,} of {steps:,}, goes on"]
        if not status.exists:
            return [NEVER_RUN]
        found = [f"{name} is missing" for name in status.missing] + status.differences()
        if self.data and not any(reason.startswith("new data") for reason in found):
            found.append("new data")
        found = found or self._upstream(experiment, stage, seed)
        return found or _own(job.why) or list(job.why)

    def _upstream(self, experiment: str, stage: str, seed: int) -> list[str]:
        """What it is made from, where that runs again."""
        if stage == "evaluate":
            run = self._scored(experiment, seed)
            again = (experiment, run.stage, seed) in self.jobs
            return ["its run runs again"] if again else []
        parent = self.layout.parent(Run(experiment, stage, seed))
        if parent is not None and (parent.experiment, parent.stage, parent.seed) in self.jobs:
            return [f"its parent {parent.experiment} runs again"]
        if stage == "full" and (experiment, "overfit", seed) in self.jobs:
            return ["its overfit run runs again"]
        return []


def _own(why: Sequence[str]) -> list[str]:
    """Reasons of a job's own, not those of jobs before it."""
    return [reason for reason in why if reason != AFTER_OTHERS]
