"""The experiment guide's rules of health on rows of metrics, and the verdict on an overfit run.

The rules are data (`HealthConfig`). A finding gives its evidence (metric, value, threshold, step)
and the guide's reading of it, the root cause that it points to.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from etrm.config.health import GateConfig, HealthConfig, HealthRule, StuckRule
from etrm.storage.files import write_json_atomic
from etrm.storage.records import read_metrics, read_run
from etrm.training.trend import LEAST_ROWS, LOOKS, errors, falls_short

Row = Mapping[str, float]

# The guide's root cause of each finding, for its message.
ROOT_CAUSES = {
    "gradient_starvation": "the encoder gets too little gradient to learn",
    "low_gradient_share": "the encoder gets a small share of all gradients",
    "high_gradient_share": "the encoder gets most of all gradients: the decoder hardly learns",
    "collapse": "the encoder's output hardly depends on the demos",
    "never_halts": "samples use all ACT steps: the q-head never halts them",
    "halts_at_once": "samples halt after one or two ACT steps: the model may not be reasoning",
    "unsure_halting": "the q-head does not know when the answer is right",
    "divergence": "the loss explodes or is not a number",
    "not_improving": "a bug in training, data or loss: token accuracy does not improve at first",
    "high_loss": "the prediction task is not learned: a good run ends with a loss of 0.1 to 0.3",
    "slowdown": "training is far slower than it was: look at the device and its neighbours",
    "stuck": "exact match has plateaued",
    "suspected_starvation": "plateaued at 35–50 %: does the encoder get gradients? or the data",
    "weak_architecture": "plateaued at 70–80 %: a weak architecture, or a hyperparameter off",
    "not_converged": "exact match had not plateaued when the steps ran out",
}

# The guide's bands of exact match at which a run that has plateaued points to a root cause.
BANDS = {"suspected_starvation": (0.35, 0.5), "weak_architecture": (0.7, 0.8)}


@dataclass(frozen=True)
class Finding:
    """A rule that was broken, with the evidence."""

    finding: str  # its name
    severity: str  # "warn", "fail", or "stop": a fail bad enough to end a run
    metric: str
    value: float | None  # None for a value that is not a finite number
    threshold: float | None
    step: int
    message: str

    def plain(self) -> dict[str, Any]:
        """Return the finding as JSON, in which "stop" is the "fail" that it is."""
        severity = "warn" if self.severity == "warn" else "fail"
        return {**asdict(self), "severity": severity}


def check_rules(rows: Sequence[Row], config: HealthConfig, ended: bool = False) -> list[Finding]:
    """Return the findings of the rules on rows of metrics, each row with its `step`.

    A rule takes the median of its metric over the last `window` steps of its range. It speaks from
    the first row on, but ends a run only by a whole window: a bad start is no failure that stays.
    A value that is not finite is always wrong, at once. `ended`: by rules of the end as well.
    """
    found = []
    for name, rule in config.rules.items():
        window = _window(rows, rule) if ended or not rule.at_end else []
        if window:
            last = window[0][0]
            whole = last - rule.window >= rule.from_step
            finite = all(math.isfinite(value) for _, value in window)
            value = _judged(rows, rule, window, whole) if finite else math.nan
            if value is not None:
                found += _judge(rule.finding or name, rule, value, last, whole or not finite)
    return found


def _judged(
    rows: Sequence[Row], rule: HealthRule, window: list[tuple[int, float]], whole: bool
) -> float | None:
    """Return the number that a rule judges, of the rows of a window; None where it cannot yet."""
    median, last = statistics.median(value for _, value in window), window[0][0]
    if rule.of == "change":
        later = [value for step, value in window if step > last - rule.window / 2]
        earlier = [value for _, value in window[len(later) :]]
        return statistics.mean(later) - statistics.mean(earlier) if whole and earlier else None
    if rule.of == "share":
        usual = statistics.median(row[rule.metric] for row in rows if rule.metric in row)
        return median / usual if usual else None
    return median


def _window(rows: Sequence[Row], rule: HealthRule) -> list[tuple[int, float]]:
    """Return steps and values of a rule's metric in its last window, the latest first.

    Rows are in the order of steps, each of the steps since the one before it. A long run checks its
    rules often: rows are read only as far back as the window needs.
    """
    end, found = len(rows), list[tuple[int, float]]()
    if rule.until_step is not None:
        end = bisect_right(rows, rule.until_step, key=_step)
    for row in map(rows.__getitem__, range(end - 1, -1, -1)):  # without a copy of the rows
        step = int(row["step"])
        if step < rule.from_step or (found and step <= found[0][0] - rule.window):
            break
        converged = rule.while_exact_below is not None and (
            row.get("train/exact_accuracy", 0.0) >= rule.while_exact_below
        )
        if rule.metric in row and not converged:
            found.append((step, row[rule.metric]))
    return found


def _judge(name: str, rule: HealthRule, value: float, step: int, may_stop: bool) -> list[Finding]:
    severities = ("stop", "fail", "warn") if may_stop else ("fail", "warn")
    for severity in severities:  # the worst bound that is broken counts
        bound = getattr(rule, severity)
        broken = bound is not None and (value < bound if rule.wrong == "below" else value > bound)
        if broken or (bound is not None and math.isnan(value)):
            number, cause = None if math.isnan(value) else value, ROOT_CAUSES.get(name)
            shown = "not finite" if number is None else f"{number:.3g}"
            subject = rule.metric if rule.of == "value" else f"{rule.of} of {rule.metric}"
            text = f"{subject} = {shown}, {rule.wrong} {bound:g}: {cause or name}"
            return [Finding(name, severity, rule.metric, number, bound, step, text)]
    return []


def check_stuck(rows: Sequence[Row], config: HealthConfig) -> list[Finding]:
    """Return a finding where the row just logged is one at which `StuckRule` looks, and rejects."""
    rule = config.stuck
    steps = [int(row["step"]) for row in islice(_of_training(rows, len(rows)), 2)]  # latest first
    last, before = (*steps, 0, 0)[:2]
    for look, error in enumerate(errors(rule.error), 1):
        end = rule.from_step + rule.within * look // LOOKS
        if before < end <= last:
            return _plateau(rows, rule.from_step, rule, error)
    return []


def check_plateau(rows: Sequence[Row], config: HealthConfig) -> list[Finding]:
    """Return a finding where exact match did not rise over the last steps of a run."""
    last = int(rows[-1]["step"]) if rows else 0
    first = max(config.stuck.from_step, last - config.stuck.within)
    return _plateau(rows, first, config.stuck, config.stuck.error)


def _plateau(rows: Sequence[Row], first: int, rule: StuckRule, error: float) -> list[Finding]:
    """Test the trend of exact match from step `first` on; a run that has converged is not stuck."""
    metric, begun = "train/exact_accuracy", bisect_right(rows, first, key=_step)
    logged = [row for row in rows[begun:] if "train/lm_loss" in row]
    before = next((row["step"] for row in _of_training(rows, begun)), 0.0)
    # A row is of the steps since the one before it; without a halted sample it has no exact match.
    edges = np.array([before, *(row["step"] for row in logged)])
    known = np.array([row.get("train/halted", 0.0) > 0 and metric in row for row in logged], bool)
    if known.sum() < LEAST_ROWS:
        return []
    counts = (np.diff(edges) * [row["train/halted"] for row in logged])[known]
    shares = np.array([row[metric] for row, has in zip(logged, known, strict=True) if has])
    reached = float(np.average(shares[-LEAST_ROWS:], weights=counts[-LEAST_ROWS:]))
    evaluated = (row["all.exact_accuracy"] for row in reversed(rows) if "all.exact_accuracy" in row)
    if max(reached, next(evaluated, 0.0)) >= rule.converged:
        return []
    steps = ((edges[:-1] + edges[1:]) / 2)[known]
    if not falls_short(steps, shares, counts, rule.min_gain / 100, error):
        return []
    last, gain = int(edges[-1]), 100 * rule.min_gain
    text = (
        f"{metric} = {reached:.3g} gained less than {gain:g} points in 100 steps since step"
        f" {first}: {ROOT_CAUSES['stuck']}"
    )
    return [Finding("stuck", "stop", metric, reached, None, last, text)]


def _step(row: Row) -> int:
    return int(row["step"])


def _of_training(rows: Sequence[Row], end: int) -> Iterator[Row]:
    """Yield the rows of training before number `end`, without evaluations, the latest first."""
    for row in map(rows.__getitem__, range(end - 1, -1, -1)):
        if "train/lm_loss" in row:
            yield row


def find_stop(rows: Sequence[Row], config: HealthConfig) -> Finding | None:
    """Return the finding that should end a run now; a loss that is not finite always does."""
    losses = (row["train/lm_loss"] for row in reversed(rows) if "train/lm_loss" in row)
    if not math.isfinite(next(losses, 0.0)):
        text = f"train/lm_loss is not finite: {ROOT_CAUSES['divergence']}"
        step = int(rows[-1]["step"])
        return Finding("divergence", "stop", "train/lm_loss", None, None, step, text)
    early = bool(rows) and rows[-1]["step"] <= config.stop_until
    # Later, rules only enter the verdict.
    findings = [*(check_rules(rows, config) if early else []), *check_stuck(rows, config)]
    return next((f for f in findings if f.severity == "stop"), None)


def verdict(rows: Sequence[Row], health: HealthConfig, gate: GateConfig) -> dict[str, Any]:
    """Return whether an overfit run passes criterion 1, and its diagnosis (`verdict.json`).

    It passes when exact match over all its training episodes reaches the gate and no rule fails.
    """
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]  # Parquet's nulls
    metric, last = "all.exact_accuracy", int(rows[-1]["step"]) if rows else 0
    evaluated = [(int(row["step"]), row[metric]) for row in rows if metric in row]
    step, exact = evaluated[-1] if evaluated else (None, 0.0)  # no evaluation does not pass
    reached = exact >= gate.exact_accuracy
    findings, stop = check_rules(rows, health, ended=True), find_stop(rows, health)
    known = {f.finding for f in findings}
    # A run that has reached the gate may plateau.
    if stop is not None and stop.finding not in known and not (reached and stop.finding == "stuck"):
        findings.append(stop)
        known.add(stop.finding)
    name = _shortfall(exact, rows, health)
    unexplained = stop is None or name != "not_converged"  # a rule ended it, not its steps
    if not reached and name not in known and unexplained:
        # Falling short is already why it did not pass; this only adds the root cause.
        text = f"{metric} = {exact:.3g}: {ROOT_CAUSES[name]}"
        findings.append(Finding(name, "warn", metric, exact, None, last, text))
    return {
        "passed": reached and all(f.severity == "warn" for f in findings),
        "exact_accuracy": exact,
        "threshold": gate.exact_accuracy,
        "diagnosis": [f.plain() for f in sorted(findings, key=lambda f: f.severity == "warn")],
        "rests_on": {
            "metric": metric,
            "step": step,
            "steps": last,
            "rows": len(rows),
            "rules": {name: asdict(rule) for name, rule in health.rules.items()},
        },
    }


def _shortfall(exact: float, rows: Sequence[Row], health: HealthConfig) -> str:
    """Return the guide's failure mode of exact match below the gate."""
    if not check_plateau(rows, health):
        return "not_converged"
    return next((name for name, (low, high) in BANDS.items() if low <= exact <= high), "stuck")


def write_verdict(
    folder: Path, out: Path, health: HealthConfig, gate: GateConfig
) -> dict[str, Any]:
    """Write the verdict on the run in `folder` to `out`, and return it."""
    run, rows = read_run(folder), read_metrics(folder).to_pylist()
    content = {
        "experiment": run["experiment"],
        "seed": run["seed"],
        "run_key": run["key"],
        **verdict(rows, health, gate),
        "stopped_early": run["stopped_early"],
    }
    write_json_atomic(out, content)
    return content
