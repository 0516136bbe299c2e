"""Experiment records: the experiment guide's tracking template, filled from the numbers.

What follows from numbers is written anew each time. The analysis is a person's: all text below
`YOURS` stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etrm.config.compare import changes, flat
from etrm.config.text import first_few
from etrm.evaluation.pass_at_k import CREDIT_RULES, RULES_IN_WORDS
from etrm.report.estimates import VALIDATION
from etrm.report.formats import NONE, markdown_table, percent
from etrm.report.published import VARIANCE
from etrm.report.run_view import RunView, distinct
from etrm.report.tables import ATTEMPTS, outcome
from etrm.storage.files import atomic_write

# The guide's criterion 2: exact match on unseen tasks, of predictions one by one (its
# `all.exact_accuracy`); it asks for 5 to 10 %. pass@k is told beside it, and decides nothing.
PASSING_TEST = 0.05
_SHOWN = 5  # packages that differ from the locked ones; run.json has all
YOURS = "<!-- Yours: all text below this line is kept when the record is written anew. -->"
ANALYSIS = "".join(
    f"\n### {part}\n\n" for part in ("Key observations", "Why it worked or failed", "Next steps")
)
_RULES = dict(zip(CREDIT_RULES, RULES_IN_WORDS, strict=True))
_TITLES = {
    "pretrain": "Pretraining results",
    "overfit": "Phase 1 results (overfit)",
    "full": "Phase 2 results (full dataset)",
}


@dataclass(frozen=True)
class Baseline:
    """The baseline that a study names, and a run of it in the first stage of the experiment."""

    name: str
    run: RunView | None = None


def write_record(
    path: Path,
    views: Sequence[RunView],
    *,
    goal: str = "",
    baseline: Baseline | None = None,
    wandb: Path | None = None,
) -> Path:
    """Write the record of one experiment, from the runs given (one seed's or all).

    The analysis in a record that is there already is kept.
    """
    analysis = analysis_in(path.read_text(encoding="utf-8")) if path.is_file() else ANALYSIS
    text = record(views, goal=goal, baseline=baseline, wandb=wandb)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n## Analysis\n\n{YOURS}\n{analysis}", encoding="utf-8")
    return path


def analysis_in(text: str) -> str:
    """Return the analysis in a record: all that is below the line `YOURS`."""
    _, line, analysis = text.partition(f"{YOURS}\n")
    return analysis if line else ANALYSIS


def record(
    views: Sequence[RunView],
    *,
    goal: str = "",
    baseline: Baseline | None = None,
    wandb: Path | None = None,
) -> str:
    """Return the record as Markdown, without its analysis.

    `goal` is the experiment's question; `baseline` that of the study, against whose configuration
    the changes are listed; `wandb` the folder of W&B's logs. Raises `ValueError` unless `views` are
    runs of one experiment.
    """
    names = distinct(view.experiment for view in views)
    if len(names) != 1:
        raise ValueError(f"a record is of one experiment, the runs given are of {names or 'none'}")
    days = sorted(str(view.run["started"])[:10] for view in views if view.run.get("started"))
    dates = " to ".join(distinct([days[0], days[-1]])) if days else NONE
    lines = [f"# Experiment: {names[0]}", "", f"**Date**: {dates}", "", f"**Goal**: {goal or NONE}"]
    lines += ["", "**Changes from baseline**:", "", *_changes(views, baseline), ""]
    lines += ["## Configuration", "", *_configuration(views[-1]), ""]
    for stage, title in _TITLES.items():
        of_stage = [view for view in views if view.stage == stage]
        if of_stage:
            lines += [f"## {title}", ""]
            for view in of_stage:
                lines += [f"### Seed {view.seed}", "", *_results(view), ""]
    lines += ["## Gaps and collapse", "", *_measured(views), ""]
    lines += ["## Provenance", "", *_provenance(views), ""]
    lines += ["## W&B runs", "", *(f"- {_name(view)}: {_wandb(view, wandb)}" for view in views)]
    return "\n".join(lines) + "\n"


def _changes(views: Sequence[RunView], baseline: Baseline | None) -> list[str]:
    if baseline is None:
        return ["- the study names no baseline"]
    if baseline.name == views[0].experiment:
        return [f"- none: `{baseline.name}` is the baseline of the study"]
    theirs = baseline.run
    mine = next((view for view in views if theirs and view.stage == theirs.stage), None)
    if theirs is None or mine is None:
        stages = ", ".join(distinct(view.stage for view in views))
        return [f"- {NONE} (the baseline `{baseline.name}` has no finished run of {stages})"]
    own_names = ("experiment", "stage", "seed")  # differ between any two runs
    found = changes(mine.run.get("config", {}), theirs.run.get("config", {}))
    lines = [f"- `{key}`: {old} → {new}" for key, old, new in found if key not in own_names]
    against = f"Against `{baseline.name}` ({theirs.stage}; scores: tables/comparisons.md):"
    return [against, "", *(lines or ["- none"])]


def _configuration(view: RunView) -> list[str]:
    config = dict(flat(view.run.get("config", {})))
    initial = config.get("decoder.init")  # experiment or file of the first weights
    source = config.get("context.source", NONE)
    named = {
        "Embedding" if view.is_trm else "Encoder": f"`{source}`",
        "Pre-trained decoder": f"yes, `{initial}`" if initial else "no",
        "halt_max_steps": config.get("halting.max_steps", NONE),
        "halt_exploration_prob": config.get("halting.exploration_prob", NONE),
        "Split": view.run["split"],
        "Parameters": f"{view.run['num_params']:,}" if "num_params" in view.run else NONE,
    }
    lines = [f"- {name}: {value}" for name, value in named.items()]
    lines += ["", f"All of it but the health rules ({view.stage}):", ""]
    shown = [(f"`{k}`", config[k]) for k in sorted(config) if not k.startswith("health.")]
    return [*lines, *markdown_table(("key", "value"), shown)]


def _results(view: RunView) -> list[str]:
    run, verdict = view.run, view.verdict
    lines = [
        f"- Train exact match at the end: {percent(view.final('train/exact_accuracy'))}",
        f"- Train token accuracy at the end: {percent(view.final('train/accuracy'))}",
        f"- Average ACT steps at the end: {_number(view.final('train/steps'))}",
        f"- Steps: {run.get('steps_done', NONE)} in {_number(run.get('seconds'))} s",
    ]
    if run.get("stopped_early"):
        lines += [f"- Ended early: {run['stopped_early']}"]
    if verdict is not None:
        threshold, evaluated = verdict["threshold"], view.series("all.exact_accuracy")
        reached = evaluated.index[evaluated >= threshold]
        first = reached[0] if len(reached) else "not reached at an evaluation"
        gate = f"{percent(verdict['exact_accuracy'])} (gate: {percent(threshold)})"
        lines += [f"- Exact match over the episodes: {gate}", f"- Steps to reach the gate: {first}"]
    if view.score is not None:
        lines += _test_results(view.score)
    found = (run.get("health") or []) if verdict is None else verdict["diagnosis"]
    issues = [_finding(finding) for finding in found]
    lines += ["- Issues encountered:" + ("" if issues else " none"), *issues]
    return [*lines, f"- Status: {outcome(view)}", *_criterion(view)]


def held_out_text(held_out: Mapping[str, Any]) -> str:
    """Say in words whether the tasks that were scored were held out from training."""
    if held_out["status"] == "seen":
        seen = f"{held_out['seen']} of {held_out['of']} were seen in training, by id or content"
        answers = held_out.get("answers", 0)
        return seen + f", test outputs of {answers} too" * bool(answers)
    if held_out["status"] == "not proven":
        return f"held-out: not proven (started from {', '.join(held_out['unproven'])})"
    return f"none of {held_out['of']} has touched a weight, by id or content"


def _finding(finding: Mapping[str, Any]) -> str:
    numbers = f"`{finding['metric']}` is {_number(finding['value'])}"
    numbers += f", the bound {_number(finding['threshold'])}, at step {finding['step']}"
    return f"  - {finding['severity']}: {finding['finding']}. {finding['message']} ({numbers})"


def _test_results(score: Mapping[str, Any]) -> list[str]:
    lines = []
    for k, rules in score["pass"].items():
        for rule, one in rules.items():
            counted = f"{one['numerator']:.4g}/{one['denominator']}"
            counted += ", partial" if score["partial"] else ""
            text = f"{percent(one['value'])} ({counted})"
            if one["ci95"]:
                bounds = " to ".join(percent(bound) for bound in one["ci95"])
                text += f", 95 % interval {bounds} ({one['ci95_method']})"
            lines.append(f"- Test pass@{k} ({_RULES[rule]}): {text}")
    single, gain = score["single_variant_exact"], score["voting_gain"]["difference"]
    counted = f"{single['numerator']}/{single['denominator']} predictions"
    asked = f"{score['tasks_evaluated']} of {score['tasks_asked']} tasks asked for"
    asked += " (**partial**)" * score["partial"]
    if score["tasks_asked"] < score.get("tasks_of_split", 0):
        asked += f" (**subset** of {score['tasks_of_split']})"
    return [
        *lines,
        f"- Test exact match, predictions one by one: {percent(single['value'])} ({counted})",
        f"- Test token accuracy: {percent(score['metrics'].get('all.accuracy'))}",
        f"- Voting gain: {NONE if gain is None else f'{100 * gain:+.1f} points'}",
        f"- Average ACT steps: {_number(score['metrics'].get('all.steps'))}",
        f"- Evaluated: {asked}, {score['variants']} variants",
        f"- Held-out tasks: {held_out_text(score['held_out'])}",
        f"- Test outputs that do not fit their canvas: {score['outputs_not_fitting_canvas']}",
    ]


def _criterion(view: RunView) -> list[str]:
    """Return the template's judgement by the guide's criterion: pass, some generalisation, fail."""
    if view.stage == "overfit" and view.verdict is not None:
        return ["- Criterion 1: " + ("✅ pass" if view.verdict["passed"] else "❌ fail")]
    exact = view.test_metric("all.exact_accuracy")  # 0-1
    if view.score is None or exact is None:
        return []
    if view.is_trm:
        return ["- Criterion 2: not judged (its embeddings have seen the evaluation demos)"]
    if view.score["held_out"]["status"] == "seen":
        return ["- Criterion 2: no measure of generalisation (held-out tasks were seen)"]
    if view.score["partial"]:
        return ["- Criterion 2: not judged (exact match is of the answers that there are)"]
    sign = "≥" if exact >= PASSING_TEST else "<"
    used = f"test exact match {percent(exact)} {sign} {percent(PASSING_TEST)}, by single answers"
    voted = [f"pass@{k} {percent(view.test_metric(f'ARC/pass@{k}'))}" for k in ATTEMPTS]
    word = "⚠️ some generalisation" if exact > 0 else "❌ fail"
    if exact >= PASSING_TEST:
        word = "✅ pass"
    return [f"- Criterion 2: {word} ({used}; voted: {', '.join(voted)})"]


def _measured(views: Sequence[RunView]) -> list[str]:
    """Return the gaps between training and unseen tasks, and the measures of collapse."""
    lines = []
    for view in views:
        where, train = _name(view), view.final("train/exact_accuracy")
        validated, tested = view.last(VALIDATION), view.test_metric("all.exact_accuracy")
        for name, exact in (("validation", validated), ("test", tested)):
            if train is not None and exact is not None:
                gap = f"{100 * (train - exact):+.1f} points"  # of generalisation
                lines.append(f"- {where}: gap between train and {name} exact match {gap}.")
        variance, gradient = view.final(VARIANCE), view.final("grad/encoder_norm")
        if variance is not None and gradient is not None:
            numbers = f"cross-sample variance {variance:.3g}, gradient norm {gradient:.3g}"
            lines.append(f"- {where}: the encoder ends with {numbers}.")
    return lines or [f"- {NONE}"]


def _wandb(view: RunView, folder: Path | None) -> str:
    """Return the link to a W&B run; where it is offline, the folder that can be sent."""
    run_id = str(view.run.get("key") or "")[:16]  # as `etrm.training.run` gives it
    if folder is None or not run_id:
        return NONE
    link = folder / f"{run_id}.url"
    if link.is_file():
        return f"<{link.read_text(encoding='utf-8').strip()}>"
    offline = sorted(folder.glob(f"wandb/offline-run-*-{run_id}"))
    return f"offline: `{offline[-1]}`" if offline else NONE


def _name(view: RunView) -> str:
    return f"seed {view.seed}, {view.stage}"


def _provenance(views: Sequence[RunView]) -> list[str]:
    rows = []
    for view in views:
        run = view.run
        memory = run.get("peak_memory_bytes")
        row = [view.stage, view.seed, run.get("started"), run.get("device")]
        row += [f"{memory / 2**20:,.0f} MiB" if memory else NONE]
        row += [str(run.get(key) or NONE)[:12] for key in ("commit", "code_digest")]
        rows.append([*row, ", ".join([*parents(run), *(run.get("unproven") or [])]) or NONE])
    columns = ("stage", "seed", "started", "device", "peak memory", "commit", "code", "parents")
    lines = markdown_table(columns, rows)
    versions = views[-1].run.get("versions") or {}
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    places = [view.run.get("environment") or {} for view in views]
    named = distinct(environment_text(place) for place in places if place.get("kind"))
    lines += ["", f"Versions: {known or NONE}"]
    sources = views[-1].run.get("sources") or {}
    read = [f"- `{name}`: {_source(source)}" for name, source in sources.items()]
    lines += ["", "Sources of tasks:", "", *read] if read else []
    return [*lines, "", f"Environment: {'; '.join(named) or NONE}"]


def _source(source: Mapping[str, Any]) -> str:
    """Return revision, origin and numbers of tasks of a source, as in `run.json`."""
    revision = source["revision"] or f"no known revision, content `{source['content'][:16]}`"
    skipped = sum(source["skipped"].values())
    left_out = f", {skipped} left out for problems" if skipped else ""
    return f"{revision}, from {source['origin']}; {source['tasks']} tasks{left_out}"


def environment_text(environment: Mapping[str, Any]) -> str:
    """Return kind, name, and whether it is the locked one: `conda etrm, as locked`."""
    name = " ".join(str(part) for part in (environment["kind"], environment["name"]) if part)
    if environment["locked"] is None:
        return f"{name}, no lock file to compare it with"
    if environment["locked"]:
        return f"{name}, as locked"
    differs = environment["differs"].items()
    shown = [f"{package} {here or 'missing'} ({locked})" for package, (here, locked) in differs]
    return f"{name}, not as locked: {', '.join(first_few(shown, _SHOWN))}"


def parents(run: Mapping[str, Any]) -> list[str]:
    """Return the runs that a run started from, as `trm/pretrain/seed0`."""
    found = run.get("parents") or ()
    return [f"{each['experiment']}/{each['stage']}/seed{each['seed']}" for each in found]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
