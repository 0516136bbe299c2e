"""`etrm show RUN`: one run on one screen, from its files alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etrm.arc.parse import count
from etrm.config.text import first_few
from etrm.evaluation.pass_at_k import RULES_IN_WORDS
from etrm.report.experiment_record import environment_text, held_out_text, parents
from etrm.report.formats import NONE, percent
from etrm.report.run_view import RunView
from etrm.report.side_by_side import METRICS
from etrm.report.tables import outcome
from etrm.storage.result_cache import RUN_FILES, SCORE_FILES

SHOWN = 5  # lanes, sources
# Sizes of a model or an encoder, by option; other options are told where they are no default.
_SIZES = ("width", "heads", "layers", "context_tokens", "H_cycles", "L_cycles", "positions")
_OF_ENCODER = ("pairing", "width", "heads", "layers", "set_layers", "pooling", "norm")
_BYTES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))


def to_text(folder: Path, view: RunView, width: int) -> str:
    """Return what a run is, and how it went, for a terminal of this width."""
    lines = [f"{view.experiment}, {view.stage}, seed {view.seed}: {outcome(view)}"]
    rows = list(_rows(folder, view))
    indent = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        start = f"{label:{indent}}"
        lines += textwrap.wrap(start + text, width, subsequent_indent=" " * indent)
    return "\n".join(lines)


def _rows(folder: Path, view: RunView) -> Iterator[tuple[str, str]]:
    """Yield the lines, (label, text); without those that the files say nothing about."""
    run = view.run
    config = run.get("config", {})
    if config:
        label, context = "context" if view.is_trm else "encoder", config["context"]
        yield label, f"{context['source']}{_options(context, _OF_ENCODER)}"
        parameters = f"{run['num_params']:,} parameters" if "num_params" in run else NONE
        yield "model", f"{parameters}{_options(config.get('model', {}), _SIZES)}"
        yield "weights", _first_weights(run, config.get("decoder", {}))
        yield "data", _data(run, config)
        yield "halting", ", ".join(f"{key} {value}" for key, value in config["halting"].items())
    if "steps_done" in run:
        yield "training", _training(run, config.get("train", {}))
    yield "metrics", _metrics(view) or NONE
    yield "health", _health(run)
    if view.verdict is not None:
        passed = "passed" if view.verdict["passed"] else "stopped"
        exact, bar = view.verdict["exact_accuracy"], view.verdict["threshold"]
        yield "verdict", f"{passed}: exact match {percent(exact)}, the bar is {percent(bar)}"
    if view.score is not None:
        yield "score", _score(view.score)
        if exact := view.score.get("by_step", {}).get("exact_accuracy"):
            shown = f"{percent(exact[0])} after the first, {percent(exact[-1])} after the last"
            yield "ACT steps", f"{len(exact)}; exact match of single answers {shown}"
        yield "held out", held_out_text(view.score["held_out"])
    yield "made with", _made_with(run)
    yield "files", _files(folder)


def _options(options: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = [f"{name} {options[name]}" for name in names if name in options]
    return f" ({', '.join(found)})" if found else ""


def _first_weights(run: Mapping[str, Any], decoder: Mapping[str, Any]) -> str:
    initial = decoder.get("init")
    if initial is None:
        return "from scratch"
    weights = (run.get("init") or {}).get("weights", NONE)
    text = f"decoder from {', '.join(parents(run)) or initial} ({weights})"
    if decoder.get("frozen"):
        return f"{text}, frozen"
    steps = decoder.get("frozen_steps")
    return f"{text}, frozen for {steps} steps" if steps else text


def _data(run: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parts = [f"{run['split']} split"]
    if "tasks" in run:
        parts.append(f"{len(run['tasks']):,} tasks in {run.get('puzzles', 0):,} variants")
    if "lanes" in run:
        lanes = count(run["lanes"], "lane")
        parts.append(f"{sum(run['lanes'].values()):,} questions on {lanes}")
    parts.append(f"{config.get('episodes', {}).get('queries', NONE)} queries")
    if seen := run.get("seen_tasks"):
        parts.append(f"{seen['count']:,} tasks have touched the weights")
    if sources := run.get("sources"):
        parts.append(f"from {', '.join(first_few(sources, SHOWN))}")
    if run.get("unproven"):
        parts.append(f"ancestors of unknown origin: {', '.join(run['unproven'])}")
    return ", ".join(parts)


def _training(run: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    parts = [f"{run['steps_done']:,} of {train.get('steps', NONE)} steps"]
    parts += [f"batch {train['batch_size']}"] if "batch_size" in train else []
    parts += [f"{run['seconds']:,.0f} s"] if run.get("seconds") is not None else []
    ranks = run.get("ranks", 1)
    parts.append(f"{run.get('device', NONE)}{f' on {ranks} ranks' if ranks > 1 else ''}")
    if run.get("peak_memory_bytes"):
        parts.append(f"peak {_size(run['peak_memory_bytes'])}")
    parts += [f"ended early: {run['stopped_early']}"] if run.get("stopped_early") else []
    return ", ".join(parts)


def _metrics(view: RunView) -> str:
    """Return the metrics at the end, those that compare shows."""
    found = {name: view.end(name) for name in METRICS}
    return ", ".join(f"{name} {value:.3g}" for name, value in found.items() if value is not None)


def _health(run: Mapping[str, Any]) -> str:
    events = run.get("health") or []
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in events:
        found.setdefault((event["severity"], event["finding"]), []).append(event)
    texts = []
    for (severity, finding), each in found.items():
        event, often = each[-1], f", {len(each)} times, the last" if len(each) > 1 else ""
        value = f"{event['metric']} {event['value']:.3g}" if event["value"] is not None else NONE
        texts.append(f"{severity}: {finding} ({value}{often} at step {event['step']})")
    return "; ".join(texts) or "no finding"


def _score(score: Mapping[str, Any]) -> str:
    parts = []
    for k, rules in score["pass"].items():
        values = [rules[rule]["value"] for rule in rules]
        parts.append(f"pass@{k} {' / '.join(percent(value) for value in values)}")
    first = next(iter(score["pass"].values()))["task_fraction"]
    words = f"({' / '.join(RULES_IN_WORDS)}; {first['denominator']} tasks,"
    return f"{', '.join(parts)} {words} {score.get('variants', NONE)} variants)"


def _made_with(run: Mapping[str, Any]) -> str:
    versions = run.get("versions") or {}
    parts = [f"{name} {versions[name]}" for name in ("python", "torch", "etrm") if name in versions]
    place = run.get("environment") or {}
    parts += [environment_text(place)] if place.get("kind") else []
    parts += [
        f"commit {str(run.get('commit') or NONE)[:12]}",
        f"code {run.get('code_digest', NONE)}",
    ]
    parts += [f"finished {run['finished']}"] if run.get("finished") else []
    return ", ".join(parts)


def _files(folder: Path) -> str:
    """Return the folder, and those of its files that are there, with their sizes."""
    names = dict.fromkeys((*RUN_FILES, "verdict.json", *SCORE_FILES))
    there = [folder / name for name in names if (folder / name).is_file()]
    sizes = ", ".join(f"{path.name} {_size(path.stat().st_size)}" for path in there)
    return f"{folder}: {sizes}"


def _size(size: float) -> str:
    unit, scale = next((u, s) for u, s in _BYTES if size >= s or s == 1)
    return f"{size / scale:.3g} {unit}" if scale > 1 else f"{size:.0f} {unit}"
