"""Rules of health of a run, and the bar of an overfit run, by the experiment guide."""

from __future__ import annotations

from dataclasses import dataclass

from etrm.config.schema import option


@dataclass(frozen=True)
class HealthRule:
    """A bound on the median of a metric over a window of steps.

    The first row in its range can already warn or fail; only a whole window ends a run.
    """

    metric: str = option("name of the metric")
    warn: float | None = option(
        "a warning of the verdict where the median is on the wrong side of this", None
    )
    fail: float | None = option(
        "a failure, which the gate stops, where it is on the wrong side of this", None
    )
    stop: float | None = option(
        "the end of the run (with `train.stop_on_health`) where it is on the wrong side of this",
        None,
    )
    wrong: str = option("the wrong side", "below", choices=("below", "above"))
    from_step: int = option("not before", 100, unit="steps", ge=0)
    until_step: int | None = option("not after; null: to the end", None, unit="steps", ge=0)
    window: int = option(
        "the median is over the rows of so many steps; `stop` needs all of them",
        100,
        unit="steps",
        ge=1,
    )
    while_exact_below: float | None = option(
        "look only at rows whose train/exact_accuracy is below this: a converged run has no"
        " gradient left; null: at all rows",
        None,
        gt=0,
        le=1,
    )
    of: str = option(
        "the number that is judged: the median `value`; its `change` from the first half of the"
        " window to the second; or the median as a `share` of that of all rows so far",
        "value",
        choices=("value", "change", "share"),
    )
    at_end: bool = option("judged when the run has ended only", False)
    finding: str | None = option("name of the finding; null: the rule's own", None)


@dataclass(frozen=True)
class StuckRule:
    """Training that does not get better, by a test of the trend of train/exact_accuracy.

    It looks at each quarter of its steps. The guide's "not improving for 300 steps" cannot be told
    from noise: a row of 160 samples scatters by 4 points, where 0.2 points a hundred steps suffice.
    """

    min_gain: float = option(
        "a run that gains this much of train/exact_accuracy in 100 steps is not stuck", 0.002, gt=0
    )
    error: float = option("share of such runs that are stopped all the same", 0.01, gt=0, lt=0.5)
    from_step: int = option("not before", 0, unit="steps", ge=0)
    within: int = option("the time after that in which it can end a run", 2000, unit="steps", ge=4)
    converged: float = option("exact match from which on a run may plateau", 0.9, gt=0, le=1)


def guide_rules() -> dict[str, HealthRule]:
    """Return the experiment guide's thresholds, by the name of their finding."""
    return {
        # First, because it explains all other findings. An untrained decoder's loss is
        # ln 12 = 2.5.
        "divergence": HealthRule("train/lm_loss", fail=5.0, stop=5.0, wrong="above", from_step=0),
        "gradient_starvation": HealthRule(
            "grad/encoder_norm",
            warn=0.2,
            fail=0.05,
            stop=0.05,
            from_step=10,
            until_step=500,
            while_exact_below=0.9,
        ),
        # Measured where it happens: the share of samples whose encoding carries a gradient.
        "gradient_coverage": HealthRule(
            "grad/encoder_coverage", fail=0.5, stop=0.5, from_step=10, finding="gradient_starvation"
        ),
        "low_gradient_share": HealthRule(
            "grad/encoder_share", warn=0.1, from_step=10, until_step=500, while_exact_below=0.9
        ),
        "high_gradient_share": HealthRule(
            "grad/encoder_share",
            warn=0.5,
            wrong="above",
            from_step=10,
            until_step=500,
            while_exact_below=0.9,
        ),
        "collapse": HealthRule("train/encoder_cross_sample_var", warn=0.3, fail=0.1, stop=0.05),
        "never_halts": HealthRule("train/steps_share", warn=0.999, wrong="above"),
        # Two of 16 steps. A run that has converged may well be sure at once.
        "halts_at_once": HealthRule("train/steps_share", warn=0.13, while_exact_below=0.9),
        "unsure_halting": HealthRule("train/q_halt_accuracy", warn=0.85),
        "not_improving": HealthRule(
            "train/accuracy",
            warn=0.0,
            of="change",
            from_step=0,
            until_step=100,
            while_exact_below=0.9,
        ),
        "high_loss": HealthRule("train/lm_loss", warn=0.3, wrong="above", at_end=True),
        # Against the run itself. A study that knows its device's speed sets a rule of `value`.
        "slowdown": HealthRule("perf/examples_per_second", warn=0.5, of="share"),
    }


@dataclass(frozen=True)
class HealthConfig:
    """Rules of health (the experiment guide's; a small study scales them)."""

    rules: dict[str, HealthRule] = option("bounds by the name of the finding", factory=guide_rules)
    stuck: StuckRule = option("training that does not get better", factory=StuckRule)
    stop_until: int = option(
        "rules end a run only up to this step (`stuck` has its own)", 500, unit="steps", ge=0
    )


@dataclass(frozen=True)
class GateConfig:
    """Criterion 1: the bar that an overfit run must reach before its full run starts."""

    exact_accuracy: float = option(
        "exact match over all training episodes, averaged weights", 0.9, ge=0, le=1
    )
