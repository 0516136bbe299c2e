"""The plan on one screen: a line for each experiment, or for those of a group that are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etrm.config.compare import NONE
from etrm.config.text import first_few
from etrm.study.plan.columns import aligned, wrapped
from etrm.study.plan.cost import Cost
from etrm.study.plan.entries import STATES, Entry
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, STAGE_OF_RULE
from etrm.study.plan.plan import Plan, by_measurement, hours

Stages = Sequence[tuple[Entry, Cost]]

TRAINED = "train"  # the column of `pretrain` and `overfit`: an experiment has one of them
COLUMNS = (TRAINED, "gate", "full", "evaluate")
NOTHING = ": there is nothing to be done"
DERIVED = "its "  # how a reason begins that follows from another job's
# What is no stage of an experiment, by the rules that make it.
OTHERS = {
    "data": ("tasks", "augment"),
    "figures": ("figures",),
    "tables": ("tables",),
    "records": ("record",),
    "report": ("resolved_config", "report"),
}


@dataclass(frozen=True)
class Line:
    """One experiment, before it is folded with others."""

    name: str
    seeds: str
    cells: tuple[str, ...]
    gpus: str
    why: tuple[str, ...]
    stages: Stages

    @property
    def alike(self) -> tuple[object, ...]:
        """What folded experiments share."""
        return self.seeds, self.cells, self.gpus, self.why


def render(plan: Plan, width: int, every: bool = False) -> str:
    """The screen of a plan, no line of it wider than `width`; `every`: fold no experiments."""
    unit = "GPU-hours" if plan.device and plan.device.gpu else "hours"
    head = ("experiment", "seeds", *COLUMNS, "GPUs", unit, "why")
    rows: list[tuple[str, ...] | str] = []
    groups = _groups(plan)
    for group, stages in groups.items():
        if len(groups) > 1 or group:
            rows.append(_heading(group or "no group", stages, unit))
        lines = _lines(stages)
        folded = [[line] for line in lines] if every or plan.selected else _folded(lines)
        rows += [_row(same, indented=len(groups) > 1) for same in folded]
    text = [
        f"Study {plan.pipeline.study.study} ({plan.configfile}), results in {plan.pipeline.root}"
    ]
    text += ["", *aligned(head, rows, width)] if rows else ["", "nothing is selected"]
    text += ["", *wrapped(_others(plan), width), *_totals(plan, width)]
    return "\n".join(line[: width - 1] + "…" if len(line) > width else line for line in text)


def _groups(plan: Plan) -> dict[str, list[tuple[Entry, Cost]]]:
    experiments = plan.pipeline.study.experiments
    found: dict[str, list[tuple[Entry, Cost]]] = {}
    for entry, cost in plan.stages:
        found.setdefault(experiments[entry.experiment].group or "", []).append((entry, cost))
    return found


def _heading(name: str, stages: Stages, unit: str) -> str:
    experiments = len({entry.experiment for entry, _ in stages})
    jobs = Counter(entry.stage for entry, _ in stages if entry.job)
    runs = sum(jobs[stage] for stage in ("pretrain", "overfit", "full"))
    parts = [_count(experiments, "experiment"), _count(runs, "run")]
    parts += [_count(jobs["evaluate"], "evaluation"), f"{_hours(stages)} {unit}"]
    return f"{name}: {', '.join(parts)}" if runs + jobs["evaluate"] else f"{name}: {parts[0]}"


def _lines(stages: Stages) -> list[Line]:
    experiments: dict[str, list[tuple[Entry, Cost]]] = {}
    for entry, cost in stages:
        experiments.setdefault(entry.experiment, []).append((entry, cost))
    return [_line(name, own) for name, own in experiments.items()]


def _line(name: str, stages: Stages) -> Line:
    entries = [entry for entry, _ in stages]
    gpus = sorted({entry.gpus for entry in entries if entry.job and entry.gpus})
    return Line(
        name=name,
        seeds=str(len({entry.seed for entry in entries})),
        cells=tuple(_cell(entries, column) for column in COLUMNS),
        gpus="–".join(map(str, dict.fromkeys((gpus[0], gpus[-1])))) if gpus else NONE,
        why=_why(entries),
        stages=stages,
    )


def _cell(entries: Sequence[Entry], column: str) -> str:
    names = ("pretrain", "overfit") if column == TRAINED else (column,)
    count = Counter(entry.state for entry in entries if entry.stage in names)
    return ", ".join(f"{state} {count[state]}" for state in STATES if count[state])


def _why(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Each reason once, in the order of stages; of those that follow from others, one at most."""
    reasons = list(dict.fromkeys(reason for entry in entries for reason in entry.why))
    own = [reason for reason in reasons if not reason.startswith(DERIVED)]
    return tuple(own or reasons[:1])


def _folded(lines: Iterable[Line]) -> list[list[Line]]:
    alike: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        alike.setdefault(line.alike, []).append(line)
    return list(alike.values())


def _row(lines: Sequence[Line], indented: bool) -> tuple[str, ...]:
    first = lines[0]
    name = first.name if len(lines) == 1 else f"{len(lines)} experiments"
    stages = [stage for line in lines for stage in line.stages]
    work = _hours(stages) if any(entry.job for entry, _ in stages) else ""
    cells = [cell or NONE for cell in first.cells]
    name = f"  {name}" if indented else name
    return (name, first.seeds, *cells, first.gpus, work, "; ".join(first.why))


def _others(plan: Plan) -> str:
    """The stages that are of no single experiment, in one sentence."""
    parts = []
    for name, rules in OTHERS.items():
        jobs = [job for job in plan.jobs.jobs if job.rule in rules]
        own = dict.fromkeys(r for job in jobs for r in job.why if r != AFTER_OTHERS)
        reasons = [reason for reason in own if reason != NEVER_MADE]
        count = f" {len(jobs)}" if name == "records" and jobs else ""
        shown = f" ({'; '.join(first_few(reasons, 2))})" if reasons else ""
        parts.append(f"{name} run{count}{shown}" if jobs else f"{name} done")
    return "Others: " + ", ".join(parts)


def _totals(plan: Plan, width: int) -> list[str]:
    counts = plan.jobs.of_rules()
    of_stages = dict.fromkeys(STAGE_OF_RULE.values(), 0)
    for rule, stage in STAGE_OF_RULE.items():
        of_stages[stage] += counts.get(rule, 0)
    split = ", ".join(f"{count} {stage}" for stage, count in of_stages.items() if count)
    total = sum(counts.values())
    others = total - sum(of_stages.values())
    text = f"Jobs:   {total}" + (", as `snakemake -n` counts them: " if total else "")
    text += ", ".join(part for part in (split, f"{others} others") if part) if total else NOTHING
    lines = wrapped(text, width)
    shown = plan.stages
    waiting = [(e, c) for e, c in shown if e.state == "waits" and c.hours]
    if any(entry.job for entry, _ in shown):
        unit = plan.device.unit if plan.device else "hours"
        text = f"Hours:  {_hours(shown)} {unit}"
        text += " of what is selected" if plan.selected else ""
        if waiting:
            text += f", of them {_hours(waiting)} behind gates"
        found = [f"{_number(h)} by {basis}" for basis, h in by_measurement(shown).items()]
        lines += wrapped(text + (f"; {', '.join(found)}" if found else ""), width)
    disk = plan.disk
    text = f"Disk:   {_bytes(disk.write)} to write"
    text += f", states of a run up to {_bytes(disk.state)} while it trains" if disk.state else ""
    lines += wrapped(f"{text}; {_bytes(disk.used)} used, {_bytes(disk.free)} free", width)
    for note in plan.notes:
        lines += wrapped(f"Note:   {note}", width)
    return lines


def _hours(stages: Stages) -> str:
    """A sum with what is known of it: `≤ 12`, `12 + ?`, `?`."""
    jobs = [(entry, cost) for entry, cost in stages if entry.job and entry.stage != "gate"]
    unknown = [cost for _, cost in jobs if cost.hours is None]
    if jobs and len(unknown) == len(jobs):
        return "?"
    text = "≤ " if any(cost.at_most for _, cost in jobs) else ""
    return text + _number(hours(jobs)) + (" + ?" if unknown else "")


def _number(value: float) -> str:
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 or not value else f"{value:.3g}"


def _bytes(value: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")
