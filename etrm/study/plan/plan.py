"""The plan of a study: what would run and why, what it takes, before anything runs.

What runs is Snakemake's answer (`jobs`), why it runs is read from the records of what is on disk
(`entries`), and what it takes from measurements (`cost`, `disk`). Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from etrm.config.load import read_study
from etrm.study.layout import Layout
from etrm.study.plan.cost import Cost, Costs
from etrm.study.plan.disk import Disk, disk_of
from etrm.study.plan.entries import STAGES, STATES, Entry, entries_of
from etrm.study.plan.jobs import Jobs, PlanError, snakemake_jobs
from etrm.study.plan.measured import HOW, Device, chosen, devices, measured
from etrm.study.plan.sizes import sizes_of
from etrm.study.status import StudyStatus

__all__ = ["STAGES", "STATES", "Plan", "PlanError", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """All that is known; `stages` may be a selection, everything else is of the whole study."""

    configfile: str
    layout: Layout
    jobs: Jobs
    stages: tuple[tuple[Entry, Cost], ...]
    device: Device | None
    disk: Disk
    notes: tuple[str, ...]
    selected: bool = False

    def select(
        self,
        experiments: Sequence[str] = (),
        groups: Sequence[str] = (),
        stages: Sequence[str] = (),
        states: Sequence[str] = (),
    ) -> Plan:
        """Only what fits a glob of each kind that is given.

        Raises `PlanError` for one that fits none of the study's.
        """
        known = self.layout.study.experiments
        _refuse("experiment", experiments, list(known))
        _refuse("--group", groups, list(self.layout.groups()))
        _refuse("--stage", stages, STAGES)
        _refuse("--state", states, STATES)
        kept = tuple(
            (entry, cost)
            for entry, cost in self.stages
            if _fits(entry.experiment, experiments)
            and _fits(known[entry.experiment].group or "", groups)
            and _fits(entry.stage, stages)
            and _fits(entry.state, states)
        )
        given = bool(experiments or groups or stages or states)
        return replace(self, stages=kept, selected=given)

    def document(self) -> dict[str, Any]:
        """The plan as JSON has it.

        - `study`, `configfile`, `results`: which study, and its folder.
        - `stages`: one for each experiment, stage (`pretrain`, `overfit`, `gate`, `full`,
          `evaluate`) and seed, as selected: `experiment`, `group`, `stage`, `seed`, `state`
          (`done`, `run`, `waits`: for its gate, `stopped`: by its gate, `stale`: Snakemake keeps
          it, although it is not what would be made today), `why` (texts), `job` (Snakemake would
          run it), `gpus`, `kept` (finished before: it is taken back), `step` (it goes on from
          there), `hours` (of one device; null: not measured), `at_most`, `measured` (by what).
        - `jobs`: every job of `snakemake -n`, of the whole study: `rule`, `experiment`, `seed`
          (null where the rule has none), `why`. `counts`: how many of each rule.
        - `totals` of the stages above: `jobs`, `hours`, `unmeasured` (jobs without a number),
          `by_measurement` (hours by what was measured).
        - `device`: what the hours are of; `unit`: `GPU-hours`, or of which CPU.
        - `disk`: bytes to `write`, of the largest `state`, `used` and `free`.
        - `notes`: what else is to be known.
        """
        groups = {name: c.group for name, c in self.layout.study.experiments.items()}
        return {
            "study": self.layout.study.study,
            "configfile": self.configfile,
            "results": str(self.layout.root),
            "stages": [
                {
                    **asdict(entry),
                    "why": list(entry.why),
                    "group": groups[entry.experiment],
                    "hours": cost.hours,
                    "at_most": cost.at_most,
                    "measured": cost.basis,
                }
                for entry, cost in self.stages
            ],
            "jobs": [
                {"rule": j.rule, "experiment": j.experiment, "seed": j.seed, "why": list(j.why)}
                for j in self.jobs.jobs
            ],
            "counts": self.jobs.of_rules(),
            "totals": {
                "jobs": sum(entry.job for entry, _ in self.stages),
                "hours": hours(self.stages),
                "unmeasured": sum(cost.hours is None for _, cost in self.stages),
                "by_measurement": by_measurement(self.stages),
            },
            "device": self.device.name if self.device else None,
            "unit": self.device.unit if self.device else None,
            "disk": asdict(self.disk),
            "notes": list(self.notes),
        }


def make_plan(configfile: str, gpu: str | None = None) -> Plan:
    """The plan of a study; `gpu`: the device whose hours are counted, or a part of its name.

    Raises `ConfigError`, or `PlanError` where it cannot be planned.
    """
    layout = Layout(read_study(configfile))
    status = StudyStatus(layout)
    found = list(measured(layout, status))
    device = chosen(devices(found), gpu)
    jobs = snakemake_jobs(configfile)
    entries = entries_of(layout, jobs, status)
    sizes = sizes_of(layout, again=any(job.rule == "tasks" for job in jobs.jobs))
    costs = Costs(layout, sizes, device, found)
    stages = tuple((entry, costs.of(entry)) for entry in entries)
    notes = [*sizes.missing, *_notes(layout, jobs, stages)]
    disk = disk_of(layout, entries, sizes)
    return Plan(configfile, layout, jobs, stages, device, disk, tuple(notes))


def hours(stages: Sequence[tuple[Entry, Cost]]) -> float:
    """The hours that are known."""
    return sum(cost.hours or 0.0 for _, cost in stages)


def by_measurement(stages: Sequence[tuple[Entry, Cost]]) -> dict[str, float]:
    """Hours by what they are known from, the largest first."""
    found: dict[str, float] = {}
    for _, cost in stages:
        if cost.basis is not None and cost.hours:
            found[cost.basis] = found.get(cost.basis, 0.0) + cost.hours
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _notes(layout: Layout, jobs: Jobs, stages: Sequence[tuple[Entry, Cost]]) -> list[str]:
    notes = []
    if jobs.locked:
        notes.append(
            "another Snakemake is at work in this folder, or was killed there: what it is doing is"
            " counted as to be done; `snakemake --unlock` frees the folder of a killed one"
        )
    stale = [entry for entry, _ in stages if entry.state == "stale"]
    if stale:
        file = _files(layout, stale[0])[0]
        notes.append(
            f"{len(stale)} stale: not what today's configuration and code give, but Snakemake keeps"
            f" them in this plan. Should they still be stale when it has run, force them:"
            f" `snakemake --forcerun {file}{' …' if len(stale) > 1 else ''}`"
        )
    unmeasured = [entry for entry, cost in stages if cost.hours is None]
    if unmeasured:
        notes.append(
            f"{len(unmeasured)} jobs have no hours (?), because nothing of their size has been"
            f" measured: a finished run does that, and `{HOW}` at the paper's sizes"
        )
    return notes


def _files(layout: Layout, entry: Entry) -> list[str]:
    if entry.stage == "gate":
        return [str(layout.verdict(entry.experiment, entry.seed))]
    if entry.stage == "evaluate":
        return layout.score_files(entry.run)
    return layout.run_files(entry.run)


def _fits(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _refuse(what: str, globs: Sequence[str], known: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            names = ", ".join(known) or "none"
            raise PlanError(f"{what} {glob!r}: nothing has this name, expected a glob of {names}")
