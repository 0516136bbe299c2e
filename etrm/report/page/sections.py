"""Tables that only the page of a study has: verdicts, health events, looks at test, costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from etrm.config.text import first_few
from etrm.report.experiment_record import held_out_text
from etrm.report.formats import NONE, number_of, percent
from etrm.report.run_view import RunView, by_name, distinct
from etrm.report.tables import outcome

SHOWN = 4  # names in a sentence


@dataclass(frozen=True)
class Rows:
    """A table of text: its columns, and its rows in Markdown."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Job:
    """The cost of a job."""

    stage: str
    device: str
    seconds: float  # of all ranks together
    steps: int = 0
    memory: int = 0  # bytes


def verdicts(views: Sequence[RunView]) -> Rows:
    """Return a row for each overfit run: its outcome, its number, the evidence; stopped first."""
    columns = ("Experiment", "Seed", "Verdict", "Exact match", "Gate", "Evidence")
    rows = []
    judged = [(v, v.verdict) for mine in by_name(views).values() for v in mine if v.verdict]
    for view, verdict in sorted(judged, key=lambda pair: bool(pair[1]["passed"])):
        found = (f"{f['severity']} `{f['finding']}`: {f['message']}" for f in verdict["diagnosis"])
        row = [f"`{view.experiment}`", str(view.seed), outcome(view).partition(":")[0]]
        row += [percent(verdict["exact_accuracy"]), f"≥ {percent(verdict['threshold'])}"]
        rows.append((*row, "\\\n".join(found) or "no rule of health was broken"))
    return Rows(columns, rows)


def health(views: Sequence[RunView]) -> Rows:
    """Return a row for each finding of health during training, in the order of the runs."""
    columns = ("Run", "Severity", "Finding", "First at step", "Evidence")
    rows = []
    for view in views:
        for event in view.run.get("health") or []:
            step = f"{event['step']:,} of {view.run.get('steps_done', 0):,}"
            found = (event["severity"], f"`{event['finding']}`", step, event["message"])
            run = f"`{view.experiment}`, {view.stage}, seed {view.seed}"
            rows.append((run, *map(str, found)))
    return Rows(columns, rows)


def looked_at_test(views: Sequence[RunView], finalists: Collection[str] | None) -> tuple[str, Rows]:
    """Return who has looked at the held-out tasks: in words, and a row for each of them."""
    every = by_name(view for view in views if not view.only_initialises)
    scored = by_name(view for view in views if view.score is not None)
    looked = (
        f"{len(scored)} of {number_of(len(every), 'experiment')} have a score on held-out tasks"
    )
    if finalists is None:
        chosen = "the study names no finalists, so that all that can be evaluated are"
    else:
        chosen = f"the study names as finalists {first_few(list(finalists), SHOWN)}"
    words = f"{looked}: {chosen}. The best of many on test is too good: select by validation."
    columns = ("Experiment", "Seeds", "Tasks", "Variants", "Held-out tasks seen in training")
    rows = []
    for name, mine in scored.items():
        scores = [view.score for view in mine if view.score is not None]
        tasks = (f"{score['tasks_evaluated']:,} of {score['tasks_asked']:,}" for score in scores)
        variants = (str(score.get("variants", NONE)) for score in scores)
        seen = (held_out_text(score["held_out"]) for score in scores)
        cells = (", ".join(distinct(each)) for each in (tasks, variants, seen))
        rows.append((f"`{name}`", str(len(scores)), *cells))
    return words, Rows(columns, rows)


def cost(views: Sequence[RunView]) -> tuple[str, Rows]:
    """Return the hours of all jobs by device in words, and a row for each experiment and stage.

    Hours are seconds of work times ranks, as `run.json`, `score.json` and `refinement.json` have
    them: of a CPU that several ranks share, more than have passed on the clock.
    """
    columns = ("Experiment", "Stage", "Jobs", "Steps", "Device", "Hours", "Peak memory")
    total: defaultdict[str, float] = defaultdict(float)  # seconds by device
    jobs: defaultdict[tuple[str, str], list[Job]] = defaultdict(list)
    for view in (view for mine in by_name(views).values() for view in mine):
        for job in _jobs(view):
            jobs[view.experiment, job.stage].append(job)
            total[job.device] += job.seconds
    rows = []
    for (name, stage), of in jobs.items():
        steps, memory = max(job.steps for job in of), max(job.memory for job in of)
        row = [f"`{name}`", stage, str(len(of)), f"{steps:,}" if steps else NONE]
        row += [", ".join(distinct(job.device for job in of)), _hours(sum(j.seconds for j in of))]
        rows.append([*row, f"{memory / 2**20:,.0f} MiB" if memory else NONE])
    spent = [f"**{_hours(seconds)} hours** on {device}" for device, seconds in total.items()]
    return f"In all: {', '.join(spent) or NONE}.", Rows(columns, rows)


def _jobs(view: RunView) -> Iterator[Job]:
    """Yield the jobs of a run whose time was measured."""
    if view.run.get("seconds") is not None:
        ranks, memory = view.run.get("ranks") or 1, view.run.get("peak_memory_bytes") or 0
        seconds, steps = view.run["seconds"] * ranks, view.run.get("steps_done") or 0
        yield Job(view.stage, str(view.run.get("device") or NONE), seconds, steps, memory)
    for stage, record in (("evaluation", view.score), ("refinement", view.refinement)):
        if record is not None and record.get("seconds") is not None:
            yield Job(stage, record["device"], record["seconds"])


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours < 1 else f"{hours:.1f}"
