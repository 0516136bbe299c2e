"""Plan of a study: the jobs that would run, why, and their cost, before anything runs.

The jobs are Snakemake's (`jobs`), the reasons come from the records on disk (`entries`), and the
cost from measurements (`cost`, `sizes`). Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from etrm.config.load import read_study
from etrm.study.layout import Layout, Run
from etrm.study.plan.cost import Costs, measured
from etrm.study.plan.devices import HOW, Device, chosen, devices
from etrm.study.plan.entries import RESULTS, STAGES, STATES, Entry, entries_of
from etrm.study.plan.jobs import Jobs, PlanError, snakemake_jobs
from etrm.study.plan.sizes import Disk, disk_of, sizes_of
from etrm.study.stale import StudyStatus

__all__ = ["STAGES", "STATES", "Plan", "PlanError", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """The plan of a study; `stages` may be a selection, all else is of the whole study."""

    configfile: str  # as it was given
    layout: Layout
    jobs: Jobs  # of Snakemake's dry run
    stages: tuple[Entry, ...]  # in the order of the configuration
    device: Device  # whose hours are counted
    disk: Disk
    notes: tuple[str, ...]  # warnings and advice
    selected: bool = False  # whether `stages` is a selection
    gpus: int | None = None  # devices at once, for the wall time
    price: float | None = None  # of an hour of one device
    budget: float | None = None  # hours of one device that the study may take

    def select(
        self,
        experiments: Sequence[str] = (),
        groups: Sequence[str] = (),
        stages: Sequence[str] = (),
        states: Sequence[str] = (),
    ) -> Plan:
        """Return the plan of the stages that fit a glob of each kind that is given.

        Raises `PlanError` for a glob that fits no name of the study.
        """
        known = self.layout.study.experiments
        kinds = (
            ("experiment", experiments, list(known), lambda e: e.experiment),
            ("--group", groups, list(self.layout.groups()), lambda e: known[e.experiment].group),
            ("--stage", stages, STAGES, lambda e: e.stage),
            ("--state", states, STATES, lambda e: e.state),
        )
        kept = self.stages
        for kind, globs, names, name_of in kinds:
            for glob in globs:
                if not any(fnmatchcase(name, glob) for name in names):
                    listed = ", ".join(names) or "none"
                    raise PlanError(
                        f"{kind} {glob!r}: nothing has this name, expected a glob of {listed}"
                    )
            if globs:  # globs of one kind are alternatives
                kept = tuple(
                    e for e in kept if any(fnmatchcase(name_of(e) or "", glob) for glob in globs)
                )
        given = bool(experiments or groups or stages or states)
        return replace(self, stages=kept, selected=given)

    @property
    def wall_hours(self) -> float | None:
        """Return the least hours in which that many devices can compute the selected stages."""
        if self.gpus is None:
            return None
        path = longest_path(self.layout, self.stages, self.gpus)
        return max(path, hours(self.stages) / self.gpus)

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON.

        - `study`, `configfile`, `results`: the study and its folder.
        - `stages`: one for each experiment, stage (`pretrain`, `overfit`, `gate`, `full`,
          `validate`, `evaluate`, `refine`) and seed, as selected: `experiment`, `group`, `stage`,
          `seed`, `state` (`done`, `run`, `waits` for its gate or selection, `stopped` by them,
          `stale`: not up to date, but Snakemake keeps it), `why` (texts), `job` (Snakemake would
          run it), `gpus`,
          `kept` (restored from the cache), `step` (it resumes there), `hours` (of one device; null:
          nothing says how fast it is), `hours_least` (where it ends as early as it may), `measured`
          (the measurement or assumption), `pending` (it has no job before its selection is made; of
          those of one selection, as many have `hours` as may be chosen, and cost most),
          `if_chosen` (hours of a pending one; null for others).
        - `jobs`: every job of `snakemake -n`, of the whole study: `rule`, `experiment`, `seed`
          (null where the rule has none), `why`. `counts`: the jobs of each rule.
        - `totals` of the stages above: `jobs`, `hours`, `hours_least`, `unmeasured` (jobs without a
          number), `by_measurement` (hours), `wall_hours` on so many devices, and `price` of all
          hours (both null unless asked for). `budget`: hours that the study may take, and the
          experiments that do not fit (`cut`), in the order of the study; null without one.
        - `device`: whose hours are counted; `unit`: `GPU-hours`, or hours on a CPU.
        - `disk`: bytes to `write`, of the largest `state`, `used` and `free`.
        - `notes`: warnings and advice.
        """
        experiments, stages = self.layout.study.experiments, []
        for entry in self.stages:
            fields = {**asdict(entry), "group": experiments[entry.experiment].group}
            fields["kept"] = fields.pop("cached")
            stages.append({**fields, "why": list(entry.why)})
        jobs = [asdict(job) | {"why": list(job.why)} for job in self.jobs.jobs]
        cut = within_budget(self)[1]
        budget = None if self.budget is None else {"hours": self.budget, "cut": cut}
        return {
            "study": self.layout.study.study,
            "configfile": self.configfile,
            "results": str(self.layout.root),
            "stages": stages,
            "jobs": [{k: v for k, v in job.items() if k != "gpus"} for job in jobs],
            "counts": self.jobs.of_rules(),
            "totals": {
                "jobs": sum(entry.job for entry in self.stages),
                "hours": hours(self.stages),
                "hours_least": hours_least(self.stages),
                "unmeasured": sum(entry.hours is None for entry in self.stages),
                "by_measurement": by_measurement(self.stages),
                "wall_hours": self.wall_hours,
                "price": None if self.price is None else self.price * hours(self.stages),
            },
            "budget": budget,
            "device": self.device.name,
            "unit": self.device.unit,
            "disk": asdict(self.disk),
            "notes": list(self.notes),
        }


def make_plan(
    configfile: str,
    gpu: str | None = None,
    gpus: int | None = None,
    price: float | None = None,
    budget: float | None = None,
) -> Plan:
    """Return the plan of a study; `gpu`: the device whose hours count, or a part of its name.

    `gpus`: devices at once, for the wall time; `price`: of an hour of one; `budget`: hours that it
    may take, by default the study's.

    Raises `ConfigError`, or `PlanError` where it cannot be planned.
    """
    if gpus is not None and gpus < 1:
        raise PlanError(f"--gpus {gpus}: expected a number of devices, 1 at least")
    layout = Layout(read_study(configfile))
    status = StudyStatus(layout)
    found = list(measured(layout, status))  # before the dry run: an unknown GPU fails at once
    device = chosen(devices([each.device for each in found]), gpu)
    jobs = snakemake_jobs(configfile)
    sizes = sizes_of(layout, again=any(job.rule == "tasks" for job in jobs.jobs))
    costs = Costs(layout, sizes, device, found)
    entries = entries_of(layout, jobs, status)
    entries = [replace(entry, **vars(costs.of(entry))) for entry in entries]
    entries = bounded(layout, entries)
    notes = (*sizes.missing, *_notes(layout, jobs, entries))
    disk = disk_of(layout, entries, sizes)
    plan = Plan(configfile, layout, jobs, tuple(entries), device, disk, notes)
    budget = layout.study.budget if budget is None else budget
    return replace(plan, gpus=gpus, price=price, budget=budget)


def bounded(layout: Layout, stages: Sequence[Entry]) -> list[Entry]:
    """Return the stages with hours whose sums bound those of selections that are not made yet.

    Of the experiments after one, as many may be chosen as cost most: these keep their hours; at
    least so many as cost least: these keep their least. Others have none.
    """
    pending: dict[tuple[str, str | None], dict[str, list[Entry]]] = {}
    known = layout.study.experiments
    for entry in stages:
        if entry.pending:
            config = known[entry.experiment]
            template = (str(config.after), config.group)
            pending.setdefault(template, {}).setdefault(entry.experiment, []).append(entry)
    dear, cheap = set[str](), set[str]()
    for (name, _), experiments in pending.items():
        selection = layout.study.selections[name]
        order = sorted(experiments, key=lambda each: hours(experiments[each]))
        most = selection.most or len(order)
        dear |= set(order[-most:])
        cheap |= set(
            sorted(order, key=lambda each: hours_least(experiments[each]))[: selection.best]
        )
    return [
        replace(
            entry,
            hours=entry.hours if entry.experiment in dear else 0.0,
            hours_least=entry.hours_least if entry.experiment in cheap else 0.0,
            if_chosen=entry.hours,
        )
        if entry.pending
        else entry
        for entry in stages
    ]


def within_budget(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the experiments that fit into the budget, in the order of the study, and all others.

    Each counts with the most that it may take; one that is cut leaves its hours to those after it.
    """
    left, fit, cut = plan.budget or 0.0, list[str](), list[str]()
    for name in dict.fromkeys(entry.experiment for entry in plan.stages if entry.costs):
        cost = hours([entry for entry in plan.stages if entry.experiment == name])
        (fit if cost <= left else cut).append(name)
        left -= cost if cost <= left else 0.0
    return fit, cut


def hours(stages: Sequence[Entry]) -> float:
    """Return the sum of the hours that are known."""
    return sum(entry.hours or 0.0 for entry in stages)


def hours_least(stages: Sequence[Entry]) -> float:
    """Return that sum where each ends as early as it may."""
    return sum(entry.hours_least or 0.0 for entry in stages)


def longest_path(layout: Layout, stages: Sequence[Entry], gpus: int) -> float:
    """Return the hours of the longest chain of stages that wait for each other.

    A stage that has several devices, or an evaluation that is cut into jobs, is as much faster.
    """
    ends: dict[Run, float] = {}  # hours until each run is done
    longest = 0.0
    for entry in sorted(stages, key=lambda entry: STAGES.index(entry.stage)):
        experiment = layout.study.experiments[entry.experiment]
        cuts = experiment.evaluation.jobs if entry.stage == "evaluate" else 1
        at_once = max(1, min(gpus, entry.gpus * cuts))
        before = [Run(entry.experiment, stage, entry.seed) for stage in ("overfit", "full")]
        if entry.stage in RESULTS:
            before.append(Run(entry.experiment, str(experiment.scored_stage), entry.seed))
        elif entry.stage != "gate" and (parent := layout.parent(entry.run)) is not None:
            before.append(parent)
        start = max((ends.get(run, 0.0) for run in before), default=0.0)
        ends[entry.run] = start + (entry.hours or 0.0) / at_once
        longest = max(longest, ends[entry.run])
    return longest


def by_measurement(stages: Sequence[Entry]) -> dict[str, float]:
    """Return hours by the measurement that they come from, the largest first."""
    found: dict[str, float] = {}
    for entry in stages:
        if entry.measured is not None and entry.hours:
            found[entry.measured] = found.get(entry.measured, 0.0) + entry.hours
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _notes(layout: Layout, jobs: Jobs, stages: Sequence[Entry]) -> list[str]:
    notes = []
    if jobs.locked:
        notes.append(
            "another Snakemake works in this folder, or was killed there: its unfinished jobs are"
            " counted too; `snakemake --unlock` frees the folder of a killed one"
        )
    stale = [entry for entry in stages if entry.state == "stale"]
    if stale:
        first = stale[0]
        file = layout.run_files(first.run)[0]
        if first.stage == "gate":
            file = str(layout.verdict(first.experiment, first.seed))
        elif first.stage in RESULTS:
            file = layout.score_files(first.run, RESULTS[first.stage])[0]
        notes.append(
            f"{len(stale)} stale: made with another configuration, code or data, but Snakemake"
            " keeps them in this plan. If they are still stale after it has run, force them:"
            f" `snakemake --forcerun {file}{' …' if len(stale) > 1 else ''}`"
        )
    unmeasured = sum(entry.hours is None for entry in stages)
    if unmeasured:
        notes.append(
            f"{unmeasured} jobs have no hours (?): their tasks are not there yet, or nothing says"
            f" how fast the device is; a finished run measures it, and `{HOW}`"
        )
    return notes
