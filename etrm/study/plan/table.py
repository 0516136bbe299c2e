"""The plan on a screen: a line for each experiment; those that are done alike share one."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from etrm.config.compare import NONE
from etrm.config.text import first_few
from etrm.runtime.terminal import cut
from etrm.study.plan.entries import STATES, Entry
from etrm.study.plan.jobs import AFTER_OTHERS, NEVER_MADE, STAGE_OF_RULE
from etrm.study.plan.plan import (
    Plan,
    by_measurement,
    hours,
    hours_least,
    longest_path,
    within_budget,
)

# Columns, and the stages in them: an experiment has either `pretrain` or `overfit`.
COLUMNS = {
    "train": ("pretrain", "overfit"),
    **{stage: (stage,) for stage in ("gate", "full", "validate", "evaluate", "refine")},
}
DERIVED = "its "  # the beginning of reasons that follow from another job's
# Jobs of no single stage, by their rules.
OTHERS = {
    "data": ("tasks", "augment"),
    "selections": ("select",),
    **{name: (name,) for name in ("figures", "tables", "page", "paper")},
    "records": ("record",),
    "report": ("resolved_config", "report"),
}


GAP, HANGING = "  ", " " * 8
NARROWEST = 14  # of the last column: below it, reasons have lines of their own
MOST = 2  # lines of a reason beside its row
NAME = 24  # of the first column in a narrow terminal: names are cut in the middle

Row = tuple[str, ...]


def render(plan: Plan, width: int, every: bool = False) -> str:
    """Return the screen of a plan, no wider than `width`.

    `every`: a line for each experiment, also for those that have nothing to do.
    """
    unit = "GPU-hours" if plan.device.gpu else "hours"
    head = ("experiment", "seeds", *COLUMNS, "GPUs", unit, "why")
    rows: list[Row | str] = []  # a text is the heading of a group
    experiments = plan.layout.study.experiments
    groups = _by(plan.stages, lambda entry: experiments[entry.experiment].group or "")
    for group, stages in groups.items():
        if len(groups) > 1 or group:
            rows.append(_heading(group or "no group", stages, unit))
        rows += _rows(stages, every or plan.selected, "  " if len(groups) > 1 else "")
    study, root = plan.layout.study.study, plan.layout.root
    text = [f"Study {study} ({plan.configfile}), results in {root}", ""]
    if not any(entry.gpus > 1 for entry in plan.stages):  # one, or none: not worth a column
        at = head.index("GPUs")
        rows = [row if isinstance(row, str) else (*row[:at], *row[at + 1 :]) for row in rows]
        head = (*head[:at], *head[at + 1 :])
    text += aligned(head, rows, width) if rows else ["nothing is selected"]
    text += ["", *wrapped(_others(plan), width), *_totals(plan, width)]
    return "\n".join(line[: width - 1] + "…" if len(line) > width else line for line in text)


def _by(stages: Iterable[Entry], name: Callable[[Entry], str]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in stages:
        found.setdefault(name(entry), []).append(entry)
    return found


def _heading(name: str, stages: Sequence[Entry], unit: str) -> str:
    jobs = Counter(entry.stage for entry in stages if entry.job)
    counts = {
        "experiment": len({entry.experiment for entry in stages}),
        "run": sum(jobs[stage] for stage in ("pretrain", "overfit", "full")),
        "evaluation": jobs["evaluate"],
    } | ({"refinement": jobs["refine"]} if jobs["refine"] else {})
    parts = [f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items()]
    work = [*parts[1:], f"{_hours(stages)} {unit}"] if jobs.total() - jobs["gate"] else []
    return f"{name}: {', '.join([parts[0], *work])}"


def _rows(stages: Sequence[Entry], every: bool, indent: str) -> list[Row]:
    """Return the rows of experiments; those that are done alike share one, unless `every`."""
    folded: dict[tuple[str, ...], list[list[Entry]]] = {}
    for name, own in _by(stages, lambda entry: entry.experiment).items():
        gpus = sorted({entry.gpus for entry in own if entry.job and entry.gpus})
        alike = (
            str(len({entry.seed for entry in own})),
            *(_cell(own, names) or NONE for names in COLUMNS.values()),
            "–".join(map(str, dict.fromkeys((gpus[0], gpus[-1])))) if gpus else NONE,
            _why(own),
        )
        alone = every or any(entry.job for entry in own)
        if not every and any(entry.pending for entry in own):  # one row for all that may be chosen
            alike = (*alike[: len(COLUMNS) + 2], own[0].why[0])
        folded.setdefault((*alike, name) if alone else alike, []).append(own)
    rows = []
    for alike, same in folded.items():
        name = same[0][0].experiment if len(same) == 1 else f"{len(same)} experiments"
        all_of = [entry for own in same for entry in own]
        work = _hours(all_of) if any(entry.costs for entry in all_of) else ""
        *cells, why = alike[: len(COLUMNS) + 3]  # seeds, columns, GPUs, why; not the name
        rows.append((f"{indent}{name}", *cells, work, why))
    return rows


def _cell(entries: Sequence[Entry], stages: Sequence[str]) -> str:
    count = Counter(entry.state for entry in entries if entry.stage in stages)
    return ", ".join(f"{state} {count[state]}" for state in STATES if count[state])


def _why(entries: Sequence[Entry]) -> str:
    """Return each reason once, in the order of stages; of those that follow from others, one."""
    reasons = list(dict.fromkeys(reason for entry in entries for reason in entry.why))
    own = [reason for reason in reasons if not reason.startswith(DERIVED)]  # root causes
    return "; ".join(own or reasons[:1])


def _others(plan: Plan) -> str:
    """Return the jobs that belong to no single experiment, in one sentence."""
    parts = []
    for name, rules in OTHERS.items():
        jobs = [job for job in plan.jobs.jobs if job.rule in rules]
        if name == "selections" and not plan.layout.study.selections:
            continue
        every = dict.fromkeys(reason for job in jobs for reason in job.why)
        why = [reason for reason in every if reason not in (AFTER_OTHERS, NEVER_MADE)]
        some = "; ".join(first_few(why, 2))
        count = f" {len(jobs)}" if name in ("records", "selections") else ""
        shown = f" ({some})" if some else ""
        parts.append(f"{name} run{count}{shown}" if jobs else f"{name} done")
    return "Others: " + ", ".join(parts)


def _totals(plan: Plan, width: int) -> list[str]:
    shown, disk, counts = plan.stages, plan.disk, Counter[str]()
    for rule, count in plan.jobs.of_rules().items():  # of the whole study, selected or not
        counts[STAGE_OF_RULE.get(rule, "others")] += count
    order = [*dict.fromkeys(STAGE_OF_RULE.values()), "others"]
    split = ", ".join(f"{counts[n]} {n}" for n in order if counts[n] or n == "others")
    text = f", as `snakemake -n` counts them: {split}" if counts else ": there is nothing to do"
    texts = [f"Jobs:   {counts.total()}{text}"]
    if any(entry.costs for entry in shown):
        text = f"Hours:  {_hours(shown)} {plan.device.unit}"
        text += " of the selected stages" if plan.selected else ""
        waiting = [entry for entry in shown if entry.state == "waits" and entry.hours]
        behind = "gates and selections" if any(e.pending for e in shown) else "gates"
        text += f", of them {_hours(waiting)} behind {behind}" if waiting else ""
        found = [f"{_number(h)} by {basis}" for basis, h in by_measurement(shown).items()]
        texts.append(text + (f"; {', '.join(found)}" if found else ""))
        texts += [*_wall_and_price(plan), *_budget(plan)]
    text = f"Disk:   {_bytes(disk.write)} to write"
    text += f", states of a run up to {_bytes(disk.state)} while it trains" if disk.state else ""
    texts.append(f"{text}; {_bytes(disk.used)} used, {_bytes(disk.free)} free")
    texts += [f"Note:   {note}" for note in plan.notes]
    return [line for text in texts for line in wrapped(text, width)]


def _wall_and_price(plan: Plan) -> list[str]:
    texts = []
    if plan.wall_hours is not None and plan.gpus is not None:
        path = longest_path(plan.layout, plan.stages, plan.gpus)
        text = f"Wall:   {_number(plan.wall_hours)} hours at least on {plan.gpus} devices at once"
        texts.append(f"{text}; the longest chain of stages takes {_number(path)}")
    if plan.price is not None:
        ends = (plan.price * total(plan.stages) for total in (hours_least, hours))
        low, high = (f"{end:,.0f}" for end in ends)
        money = high if low == high else f"{low}-{high}"
        texts.append(f"Price:  {money}, at {plan.price:g} for an hour of one device")
    return texts


def _budget(plan: Plan) -> Iterator[str]:
    if plan.budget is None:
        return
    fit, cut = within_budget(plan)
    text = f"Budget: {_number(plan.budget)} {plan.device.unit}: "
    if not cut:
        yield f"{text}all experiments that have work to do fit"
        return
    names = ", ".join(first_few(cut, 4))
    yield f"{text}{len(fit)} experiments fit, in the study's order; {len(cut)} are cut: {names}"


def _hours(stages: Sequence[Entry]) -> str:
    """Return a sum and how far it is known: `1.2-3.4`, `12 + ?`, `?`."""
    jobs = [entry for entry in stages if entry.costs and entry.stage != "gate"]  # a gate is free
    if len({entry.experiment for entry in jobs if entry.pending}) == 1 and all(
        entry.pending for entry in jobs
    ):  # nothing, or all of it
        return f"0-{_number(sum(entry.if_chosen or 0.0 for entry in jobs))}"
    unknown = [entry for entry in jobs if entry.hours is None]
    if jobs and len(unknown) == len(jobs):
        return "?"
    low, high = _number(hours_least(jobs)), _number(hours(jobs))
    return (high if low == high else f"{low}-{high}") + (" + ?" if unknown else "")


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


def aligned(head: Row, rows: Sequence[Row | str], width: int) -> list[str]:
    """Return the lines of a table, if possible no wider than `width`; texts are headings.

    The first column has names, which are shortened first; the last has reasons, which move to lines
    of their own where that is not enough. Empty columns are left out.
    """
    cells, last = [row for row in rows if not isinstance(row, str)], len(head) - 1
    columns = [i for i in range(last) if any(row[i] not in ("", NONE) for row in cells)]
    sizes = [max(len(row[i]) for row in (head, *cells)) for i in columns]
    left = width - sum(sizes) - len(GAP) * len(sizes)  # for the reasons; below 0: too narrow
    spare = max(0, sizes[0] - NAME)
    wanted = min(NARROWEST, max(len(row[last]) for row in (head, *cells)))
    beside = left + spare >= wanted  # whether reasons fit into the last column
    given = max(0, wanted - left) if beside else min(spare, max(0, -left))
    sizes[0] -= given  # names give way to reasons
    lines = []
    for row in (head, *rows):
        if isinstance(row, str):
            lines += wrapped(row, width)
            continue
        fixed = (cut(row[i], size).ljust(size) for i, size in zip(columns, sizes, strict=True))
        line = GAP.join(fixed)
        if beside:
            why = textwrap.wrap(row[last], left + given, max_lines=MOST, placeholder=" …") or [""]
            lines.append(f"{line}{GAP}{why[0]}".rstrip())
            lines += [" " * (len(line) + len(GAP)) + more for more in why[1:]]
        else:
            lines.append(line.rstrip())
            lines += wrapped(row[last], width, "    ") if row is not head else []
    return lines


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of a text; without `indent`, all but the first hang."""
    later, width = indent or HANGING, max(width, NARROWEST)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=later)
