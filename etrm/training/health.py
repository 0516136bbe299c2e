"""Is a run healthy? The experiment guide's rules, and the diagnosis of an overfit run.

The rules are data (`HealthConfig`); this file only applies them to logged rows of metrics.
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

from etrm.config.health import GateConfig, HealthConfig, HealthRule
from etrm.storage.files import write_json_atomic
from etrm.storage.records import read_metrics, read_run

Row = Mapping[str, float]

# Said to the reader beside the number: the guide's reading of each finding.
EXPLANATIONS = {
    "gradient_starvation": "the encoder gets too little gradient to learn",
    "low_gradient_share": "the encoder gets a small share of all gradients",
    "collapse": "the encoder's output hardly depends on the demos",
    "never_halts": "samples always use all ACT steps: the q-head never says stop",
    "unsure_halting": "the q-head does not know when the answer is right",
    "divergence": "the loss explodes or is not a number",
    "stuck": "exact match has stopped improving",
    "weak_architecture": "stuck at 70–80 %: a weak architecture, or a hyperparameter off",
    "not_converged": "exact match was still improving when the steps ran out",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with the number that it rests on."""

    finding: str
    severity: str  # "warn", "fail", or "stop": a fail bad enough to end a run
    metric: str
    value: float | None  # None for a value that is not a finite number
    threshold: float | None
    step: int
    message: str

    def plain(self) -> dict[str, Any]:
        """As JSON; "stop" is reported as the "fail" that it is."""
        severity = "warn" if self.severity == "warn" else "fail"
        return {**asdict(self), "severity": severity}


def check_rules(rows: Sequence[Row], config: HealthConfig) -> list[Finding]:
    """Findings of the rules on rows of metrics, each row with its `step`.

    A rule looks at the median of the last `window` rows in its range of steps that have its
    metric, and says nothing before the window is full. A value that is not finite is always wrong.
    """
    found = []
    for name, rule in config.rules.items():
        latest = list(islice(_latest(rows, rule), rule.window))
        window = [value for _, value in latest]
        finite = all(math.isfinite(value) for value in window)
        if window and (len(window) == rule.window or not finite):
            found += _judge(rule.finding or name, rule, window, latest[0][0])
    return found


def _latest(rows: Sequence[Row], rule: HealthRule) -> Iterator[tuple[int, float]]:
    """Step and value of a rule's metric in its range of steps, the latest first.

    Rows are in the order of steps. A long run checks its rules often: no row is looked at that
    is not needed.
    """
    end = len(rows)
    if rule.until_step is not None:
        end = bisect_right(rows, rule.until_step, key=lambda row: int(row["step"]))
    for row in map(rows.__getitem__, range(end - 1, -1, -1)):
        if row["step"] < rule.from_step:
            return
        learned = rule.while_exact_below is not None and (
            row.get("train/exact_accuracy", 0.0) >= rule.while_exact_below
        )
        if rule.metric in row and not learned:
            yield int(row["step"]), row[rule.metric]


def _judge(name: str, rule: HealthRule, window: list[float], step: int) -> list[Finding]:
    median = statistics.median(window) if all(map(math.isfinite, window)) else math.nan
    for severity in ("stop", "fail", "warn"):
        bound = getattr(rule, severity)
        if bound is None:
            continue
        wrong = median < bound if rule.wrong == "below" else median > bound
        if wrong or math.isnan(median):
            value = None if math.isnan(median) else median
            shown = "not finite" if value is None else f"{value:.3g}"
            text = (
                f"{rule.metric} = {shown}, {rule.wrong} {bound:g}: {EXPLANATIONS.get(name, name)}"
            )
            return [Finding(name, severity, rule.metric, value, bound, step, text)]
    return []


def check_stuck(rows: Sequence[Row], config: HealthConfig) -> list[Finding]:
    """Has train/exact_accuracy gained nothing for `patience` steps? Its best so far counts."""
    rule, metric = config.stuck, "train/exact_accuracy"
    best, last, since = -math.inf, 0, 0
    for row in rows:
        if metric in row and row["step"] >= rule.from_step:
            last = int(row["step"])
            if row[metric] >= best + rule.min_gain:
                best, since = row[metric], last
    if last - since < rule.patience or best >= 1.0 - rule.min_gain:
        return []
    text = f"{metric} at most {best:.3g} since step {since}: {EXPLANATIONS['stuck']}"
    return [Finding("stuck", "stop", metric, best, None, last, text)]


def stop_reason(rows: Sequence[Row], config: HealthConfig) -> Finding | None:
    """The finding that should end a run now, if any; a loss that is not finite always does."""
    losses = (row["train/lm_loss"] for row in reversed(rows) if "train/lm_loss" in row)
    if not math.isfinite(next(losses, 0.0)):
        text = f"train/lm_loss is not finite: {EXPLANATIONS['divergence']}"
        step = int(rows[-1]["step"])
        return Finding("divergence", "stop", "train/lm_loss", None, None, step, text)
    if not rows or rows[-1]["step"] > config.stop_until:
        return None
    findings = [*check_rules(rows, config), *check_stuck(rows, config)]
    return next((f for f in findings if f.severity == "stop"), None)


def verdict(rows: Sequence[Row], health: HealthConfig, gate: GateConfig) -> dict[str, Any]:
    """Did an overfit run pass criterion 1, and if not, why (`verdict.json`).

    It passes when exact match over all its training episodes reaches the gate and no rule fails.
    """
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    finals = [
        (row["step"], row["all.exact_accuracy"]) for row in rows if "all.exact_accuracy" in row
    ]
    exact = finals[-1][1] if finals else 0.0
    findings = check_rules(rows, health)
    ended = stop_reason(rows, health)
    reached = exact >= gate.exact_accuracy
    known = {f.finding for f in findings}
    # A run may stand still where it has reached the gate.
    known |= {"stuck"} if reached else set()
    if ended is not None and ended.finding not in known:
        findings.append(ended)
    if not reached:
        findings += _shortfall(exact, rows, health, {f.finding for f in findings})
    failed = [f for f in findings if f.severity != "warn"]
    return {
        "passed": reached and not failed,
        "exact_accuracy": exact,
        "threshold": gate.exact_accuracy,
        "diagnosis": [f.plain() for f in sorted(findings, key=lambda f: f.severity == "warn")],
        "rests_on": {
            "metric": "all.exact_accuracy",
            "step": int(finals[-1][0]) if finals else None,
            "steps": int(rows[-1]["step"]) if rows else 0,
            "rows": len(rows),
            "rules": {name: asdict(rule) for name, rule in health.rules.items()},
        },
    }


def write_verdict(
    folder: Path, out: Path, health: HealthConfig, gate: GateConfig
) -> dict[str, Any]:
    """The verdict on the run in `folder`, written as `verdict.json` to `out`."""
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


def _shortfall(
    exact: float, rows: Sequence[Row], health: HealthConfig, known: set[str]
) -> list[Finding]:
    """Why exact match fell short, where no rule has said so: the guide's failure modes."""
    step = int(rows[-1]["step"]) if rows else 0
    stuck = check_stuck(rows, health)
    if 0.7 <= exact <= 0.8:
        name = "weak_architecture"
    elif stuck:
        name = "stuck"
    else:
        name = "not_converged"
    if name in known:
        return []
    text = f"all.exact_accuracy = {exact:.3g}: {EXPLANATIONS[name]}"
    # Falling short is already why it did not pass; this only says what it looks like.
    return [Finding(name, "warn", "all.exact_accuracy", exact, None, step, text)]
