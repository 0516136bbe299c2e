"""Rules of health and the verdict: every finding provoked, and none on a healthy run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from etrm.config.health import GateConfig, HealthConfig, HealthRule, StuckRule
from etrm.storage.files import write_table_atomic
from etrm.study.gate import judge
from etrm.tracking.tracker import metrics_table
from etrm.training.health import (
    ROOT_CAUSES,
    check_plateau,
    check_rules,
    check_stuck,
    find_stop,
    verdict,
    write_verdict,
)

Row = dict[str, float]
CONFIG, GATE = HealthConfig(), GateConfig()


def healthy(steps: int = 1000, final: float | None = 0.95, **changes: Any) -> list[Row]:
    """Rows of a good run, every ten steps; `changes` replace metrics (a number or a function)."""
    rows = []
    for step in range(10, steps + 1, 10):
        row = {
            "step": float(step),
            "train/lm_loss": 2.5 * math.exp(-step / 100),
            "train/accuracy": 1 - math.exp(-step / 100),
            "perf/examples_per_second": 100.0,
            "train/exact_accuracy": 1 - math.exp(-step / 200),
            "train/halted": 1000.0,
            "train/q_halt_accuracy": 0.95,
            "train/steps_share": 0.5,
            "train/encoder_cross_sample_var": 0.5,
            "grad/encoder_norm": 0.4,
            "grad/encoder_share": 0.3,
            "grad/encoder_coverage": 1.0,
        }
        for name, value in changes.items():
            key = name.replace("__", "/")
            row[key] = value(step) if callable(value) else value
        rows.append({k: v for k, v in row.items() if v is not None})
    if final is not None:
        rows.append({"step": float(steps), "all.exact_accuracy": final})
    return rows


# --- rules ---


def test_a_healthy_run_has_no_finding() -> None:
    rows = healthy()
    assert check_rules(rows, CONFIG) == []
    assert check_stuck(rows, CONFIG) == []
    for end in range(1, len(rows) + 1):
        assert find_stop(rows[:end], CONFIG) is None
    result = verdict(rows, CONFIG, GATE)
    assert result["passed"] is True
    assert result["diagnosis"] == []
    assert result["exact_accuracy"] == 0.95
    assert result["threshold"] == GATE.exact_accuracy


def test_a_run_without_an_encoder_has_no_finding() -> None:
    nothing = dict.fromkeys(("grad__encoder_norm", "grad__encoder_share", "grad__encoder_coverage"))
    assert check_rules(healthy(train__encoder_cross_sample_var=None, **nothing), CONFIG) == []


PROVOKED = [
    ("gradient_starvation", "stop", {"grad__encoder_norm": 0.01}),
    ("gradient_starvation", "warn", {"grad__encoder_norm": 0.1}),
    ("gradient_starvation", "stop", {"grad__encoder_coverage": 0.2}),
    ("low_gradient_share", "warn", {"grad__encoder_share": 0.05}),
    ("collapse", "stop", {"train__encoder_cross_sample_var": 0.01}),
    ("collapse", "fail", {"train__encoder_cross_sample_var": 0.07}),
    ("collapse", "warn", {"train__encoder_cross_sample_var": 0.2}),
    ("high_gradient_share", "warn", {"grad__encoder_share": 0.7}),
    ("halts_at_once", "warn", {"train__steps_share": 0.125}),
    ("not_improving", "warn", {"train__accuracy": lambda step: 0.7 - step / 1e4}),
    ("high_loss", "warn", {"train__lm_loss": 0.5}),
    ("slowdown", "warn", {"perf__examples_per_second": lambda s: 100.0 if s <= 900 else 30.0}),
    ("never_halts", "warn", {"train__steps_share": 1.0}),
    ("unsure_halting", "warn", {"train__q_halt_accuracy": 0.5}),
    ("divergence", "stop", {"train__lm_loss": 9.0}),
    ("divergence", "stop", {"train__lm_loss": math.nan}),
    ("divergence", "stop", {"train__lm_loss": math.inf}),
    ("gradient_starvation", "stop", {"grad__encoder_norm": math.nan}),
]


@pytest.mark.parametrize(("finding", "severity", "changes"), PROVOKED)
def test_each_finding_is_named_and_is_the_only_one(
    finding: str, severity: str, changes: dict[str, Any]
) -> None:
    rows = healthy(**changes)
    (found,) = check_rules(rows, CONFIG, ended=finding == "high_loss")
    assert (found.finding, found.severity) == (finding, severity)
    assert ROOT_CAUSES[finding] in found.message
    (metric,) = (name.replace("__", "/") for name in changes)
    assert found.metric == metric
    result = verdict(rows, CONFIG, GATE)
    assert result["passed"] is (severity == "warn")
    names = [d["finding"] for d in result["diagnosis"]]
    assert names == ([finding, "high_loss"] if finding == "divergence" else [finding])
    assert result["diagnosis"][0]["severity"] == ("warn" if severity == "warn" else "fail")
    assert judge(result, GATE) is result["passed"]
    json.dumps(result, allow_nan=False)


def test_every_rule_is_provoked_here() -> None:
    found = {finding for finding, _, _ in PROVOKED}
    assert found == {rule.finding or name for name, rule in CONFIG.rules.items()}
    assert found <= set(ROOT_CAUSES)


def one_rule(**changes: Any) -> HealthConfig:
    rule = HealthRule("m", **{"fail": 1.0, "from_step": 0, "window": 30, **changes})
    return dataclasses.replace(CONFIG, rules={"rule": rule})


def rows_of(*values: float, metric: str = "m") -> list[Row]:
    return [{"step": float(10 * i), metric: value} for i, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("wrong", "bounds", "severities"),
    [
        ("below", (1.0, 0.5, 0.2), {1.0: None, 0.999: 0, 0.5: 0, 0.499: 1, 0.2: 1, 0.199: 2}),
        ("above", (1.0, 2.0, 3.0), {1.0: None, 1.001: 0, 2.0: 0, 2.001: 1, 3.0: 1, 3.001: 2}),
    ],
)
def test_a_bound_itself_is_still_right(
    wrong: str, bounds: tuple[float, ...], severities: dict[float, int | None]
) -> None:
    config = one_rule(warn=bounds[0], fail=bounds[1], stop=bounds[2], wrong=wrong)
    for value, worst in severities.items():
        found = check_rules(rows_of(value, value, value), config)
        expected = [] if worst is None else [("warn", "fail", "stop")[worst]]
        assert [f.severity for f in found] == expected, value


def test_a_rule_looks_at_the_median_of_its_last_window() -> None:
    config = one_rule()
    assert check_rules(rows_of(0, 0, 5), config) != []
    assert check_rules(rows_of(0, 5, 5), config) == []
    assert check_rules(rows_of(0, 0, 0, 5, 5), config) == []  # over by now
    assert check_rules(rows_of(5, 5, 5, 0, 0), config) != []


def test_the_first_row_warns_and_a_whole_window_stops() -> None:
    config = one_rule(stop=0.5, from_step=10)
    severities = [check_rules(rows_of(*[0] * n), config)[0].severity for n in (1, 2, 3, 4)]
    assert severities == ["fail", "fail", "fail", "stop"]
    assert check_rules(rows_of(0, 0, 0), one_rule(fail=None, stop=0.5, from_step=10)) == []


@pytest.mark.parametrize("every", [10, 25, 50, 100])
def test_a_window_is_as_long_whatever_the_rows(every: int) -> None:
    """A row at step 10 as well, as a trainer logs it."""
    rows = [{"step": float(s), "m": 0.0} for s in sorted({10, *range(every, 401, every)})]
    config = one_rule(fail=1.0, stop=1.0, from_step=10, window=200)
    first = {}
    for end in range(1, len(rows) + 1):
        for found in check_rules(rows[:end], config):
            first.setdefault(found.severity, found.step)
    assert first == {"fail": 10, "stop": 210 + (-210 % every)}


def test_a_rule_looks_at_its_range_of_steps_only() -> None:
    config = one_rule(from_step=30, until_step=50)
    assert check_rules(rows_of(0, 0, 5, 5, 5, 0, 0, 0), config) == []
    assert check_rules(rows_of(5, 5, 0, 0, 0, 5, 5, 5), config) != []
    (found,) = check_rules(rows_of(5, 5, 0, 0, 0, 5, 5, 5), config)
    assert found.step == 50


def test_rows_without_the_metric_do_not_count() -> None:
    rows = rows_of(0, 0, 0)
    assert check_rules([rows[0], {"step": 15.0, "other": 1.0}, *rows[1:]], one_rule()) != []
    assert check_rules([{"step": 15.0, "other": 1.0}], one_rule()) == []


def test_one_value_that_is_not_finite_is_wrong_at_once() -> None:
    for value in (math.nan, math.inf, -math.inf):
        (found,) = check_rules(rows_of(5, 5, 5, value), one_rule())
        assert found.value is None
        assert "not finite" in found.message
    assert check_rules(rows_of(math.nan), one_rule()) != []


def test_a_rule_may_have_no_bound_and_may_name_its_finding() -> None:
    assert check_rules(rows_of(0, 0, 0, math.nan), one_rule(fail=None)) == []
    (found,) = check_rules(rows_of(0, 0, 0), one_rule(finding="gradient_starvation"))
    assert found.finding == "gradient_starvation"


@pytest.mark.parametrize("every", [10, 100])
def test_a_change_is_from_the_first_half_of_the_whole_window_to_the_second(every: int) -> None:
    config = one_rule(of="change", fail=None, warn=0.0, window=100, until_step=100)
    steps = sorted({10, *range(every, 301, every)})
    for slope, severities in ((-0.01, ["warn"]), (0.01, [])):
        rows = [{"step": float(step), "m": slope * step} for step in steps]
        found = check_rules(rows, config)
        assert [f.severity for f in found] == severities
        # With rows of steps 10 to 50 and 60 to 100, or of 10 and 100.
        assert [f.value for f in found] == [pytest.approx(-0.5 if every == 10 else -0.9)][
            : len(found)
        ]
        assert check_rules([row for row in rows if row["step"] < 100], config) == []


def test_a_share_is_of_the_run_so_far_and_the_end_is_judged_at_the_end() -> None:
    config = one_rule(of="share", fail=0.5)
    assert check_rules(rows_of(10, 10, 10, 10, 4, 4, 4), config) != []
    assert check_rules(rows_of(4, 4, 4), config) == []
    at_end = one_rule(at_end=True)
    assert check_rules(rows_of(0, 0, 0), at_end) == []
    assert check_rules(rows_of(0, 0, 0), at_end, ended=True) != []


# --- stuck ---


def accuracies(*values: float, halted: float = 1000.0, every: int = 10) -> list[Row]:
    return [
        {"step": s, "train/lm_loss": 1.0, "train/exact_accuracy": v, "train/halted": halted}
        for s, v in zip(range(every, every * len(values) + 1, every), values, strict=True)
    ]


def looks_that_stop(rows: list[Row], config: HealthConfig = CONFIG) -> list[int]:
    ends = range(1, len(rows) + 1)
    return [int(rows[end - 1]["step"]) for end in ends if check_stuck(rows[:end], config)]


def line(start: float, gain: float, rows: int = 200, every: int = 10) -> list[float]:
    """Exact match that gains `gain` in 100 steps."""
    return [start + gain * every * i / 100 for i in range(rows)]


@pytest.mark.parametrize(
    ("values", "looks"),
    [
        (line(0.5, 0.0), [1000, 1500, 2000]),
        (line(0.6, -0.001), [500, 1000, 1500, 2000]),
        (line(0.5, 0.002), []),
        (line(0.0, 0.005), []),
        (line(0.0, 0.0), [500, 1000, 1500, 2000]),
        (line(0.5, 0.0)[:100] + line(0.5, 0.01)[:100], [1000]),
        (line(0.92, 0.0), []),  # converged
        (line(0.5, 0.0, 9), []),  # too early for a look
    ],
)
def test_stuck_is_a_slope_that_is_too_small(values: list[float], looks: list[int]) -> None:
    assert looks_that_stop(accuracies(*values)) == looks
    assert looks_that_stop(accuracies(*values[::10], every=100)) == [s for s in looks if s > 999]


def test_stuck_looks_from_its_step_on_and_not_after_its_time() -> None:
    late = dataclasses.replace(CONFIG, stuck=StuckRule(from_step=1000))
    rows = accuracies(*line(0.1, 0.05, 100), *line(0.6, 0.0, 400))
    assert looks_that_stop(rows, late) == [2000, 2500, 3000]
    rows += [{"step": 5000.0, "all.exact_accuracy": 0.6}]
    assert check_stuck(rows, late) == []
    assert check_plateau(rows, late) != []
    assert check_plateau([*rows, {"step": 5000.0, "all.exact_accuracy": 0.95}], late) == []
    assert check_stuck([], CONFIG) == check_plateau([], CONFIG) == []


def test_rows_count_as_much_as_they_have_samples() -> None:
    """Few samples show nothing, and rows without any are left out."""
    flat = line(0.5, 0.0)
    assert looks_that_stop(accuracies(*flat, halted=1.0)) == []
    rows = accuracies(*flat)
    for row in rows[::2]:
        row["train/halted"] = 0.0
        del row["train/exact_accuracy"]
    assert looks_that_stop(rows)[-2:] == [1500, 2000]
    # An outlier of a single sample weighs nothing.
    rows = accuracies(*line(0.5, 0.002))
    rows[-1] |= {"train/exact_accuracy": 0.0, "train/halted": 0.001}
    assert looks_that_stop(rows) == []


# --- ending a run ---


def test_a_loss_that_is_not_finite_always_ends_a_run() -> None:
    config = dataclasses.replace(CONFIG, rules={})
    for value in (math.nan, math.inf):
        rows = healthy(5000, None, train__lm_loss=lambda s, v=value: v if s == 5000 else 1.0)
        reason = find_stop(rows, config)
        assert (reason.finding, reason.value) == ("divergence", None)
        # The evaluation at the end of a run is a row of its own, without a loss.
        rows.append({"step": 5000.0, "all.exact_accuracy": 0.0})
        assert find_stop(rows, config) == reason
        result = verdict(rows, config, GATE)
        assert "divergence" in [d["finding"] for d in result["diagnosis"]]


@pytest.mark.parametrize(
    ("steps", "changes", "finding"),
    [
        (500, {"train__encoder_cross_sample_var": 0.01}, "collapse"),
        (510, {"train__encoder_cross_sample_var": 0.01}, None),  # later than `stop_until`
        (500, {"train__encoder_cross_sample_var": 0.07}, None),  # a failure, no stop
        (1000, {"train__exact_accuracy": 0.2}, "stuck"),
        (1010, {"train__exact_accuracy": 0.2}, None),  # between two looks
    ],
)
def test_only_stops_end_a_run_and_only_early(
    steps: int, changes: dict[str, float], finding: str | None
) -> None:
    reason = find_stop(healthy(steps, None, **changes), CONFIG)
    assert (None if reason is None else reason.finding) == finding
    assert find_stop([], CONFIG) is None


# --- the verdict ---


@pytest.mark.parametrize(
    ("exact", "changes", "finding"),
    [
        (0.9, {}, None),  # the gate itself
        (1.0, {}, None),
        (0.8999, {}, "not_converged"),
        (0.75, {}, "not_converged"),
        (0.75, {"train__exact_accuracy": 0.75}, "weak_architecture"),
        (0.7, {"train__exact_accuracy": 0.75}, "weak_architecture"),
        (0.8, {"train__exact_accuracy": 0.75}, "weak_architecture"),
        (0.5, {"train__exact_accuracy": 0.5}, "suspected_starvation"),
        (0.35, {"train__exact_accuracy": 0.5}, "suspected_starvation"),
        (0.6, {"train__exact_accuracy": 0.6}, "stuck"),
        (0.5, {}, "not_converged"),
        (0.0, {}, "not_converged"),
        # Exact match of training samples, which are translated, may plateau.
        (0.95, {"train__exact_accuracy": 0.95}, None),
    ],
)
def test_the_gate_decides_and_falling_short_has_a_root_cause(
    exact: float, changes: dict[str, Any], finding: str | None
) -> None:
    rows = healthy(1010 if finding else 400, exact, **changes)  # at no look of `stuck`
    result = verdict(rows, CONFIG, GATE)
    assert result["passed"] is judge(result, GATE) is (finding is None)
    assert [d["finding"] for d in result["diagnosis"]] == ([finding] if finding else [])
    assert bool(check_plateau(rows, CONFIG)) == (finding not in (None, "not_converged"))


def test_a_run_that_a_rule_has_ended_is_not_still_improving() -> None:
    rows = healthy(110, 0.3, grad__encoder_coverage=0.2)
    assert find_stop(rows, CONFIG) is not None
    found = [each["finding"] for each in verdict(rows, CONFIG, GATE)["diagnosis"]]
    assert found[0] == "gradient_starvation"
    assert "not_converged" not in found


def test_the_last_evaluation_counts() -> None:
    rows = [*healthy(500, 0.99), *healthy(1000, 0.4)[50:]]
    result = verdict(rows, CONFIG, GATE)
    assert result["exact_accuracy"] == 0.4
    assert result["rests_on"]["step"] == 1000
    assert result["rests_on"]["steps"] == 1000


def test_a_run_without_an_evaluation_does_not_pass() -> None:
    result = verdict(healthy(final=None), CONFIG, GATE)
    assert result["passed"] is False
    assert result["exact_accuracy"] == 0.0
    assert verdict([], CONFIG, GATE)["passed"] is False


def test_failures_come_before_warnings() -> None:
    rows = healthy(train__steps_share=1.0, train__encoder_cross_sample_var=0.01)
    found = [d["severity"] for d in verdict(rows, CONFIG, GATE)["diagnosis"]]
    assert found == ["fail", "warn"]


RECORD = {
    **{"experiment": "a", "stage": "overfit", "seed": 0, "kind": "etrm", "split": "strict"},
    **{"config": {}, "key": "k", "weights_sha256": "w", "code_digest": "c"},
    **{"steps_done": 100, "device": "cpu"},
}


def written(folder: Path, rows: list[Row], **changes: Any) -> dict[str, Any]:
    """The verdict on a run folder with these rows, as returned; checks that it is the file's."""
    write_table_atomic(folder / "metrics.parquet", metrics_table(rows))
    (folder / "run.json").write_text(json.dumps({**RECORD, "stopped_early": None, **changes}))
    result = write_verdict(folder, folder / "verdict.json", CONFIG, GATE)
    text = (folder / "verdict.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == result
    return result


def test_a_verdict_is_written_from_a_run_folder(tmp_path: Path) -> None:
    rows = healthy(500, 0.3, grad__encoder_coverage=0.2, train__q_halt_accuracy=lambda s: None)
    result = written(
        tmp_path, rows, experiment="control", seed=3, stopped_early="gradient_starvation"
    )
    names = ("experiment", "seed", "run_key", "stopped_early", "passed")
    assert [result[name] for name in names] == ["control", 3, "k", "gradient_starvation", False]
    assert result["diagnosis"][0]["finding"] == "gradient_starvation"
    assert result["diagnosis"][0]["value"] == pytest.approx(0.2)


def test_a_verdict_on_metrics_that_are_not_numbers_is_json(tmp_path: Path) -> None:
    result = written(tmp_path, healthy(100, 0.0, train__lm_loss=math.nan))
    assert result["diagnosis"][0]["finding"] == "divergence"
