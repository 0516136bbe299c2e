"""Shared by the rules of claims: a verdict with its evidence, and the runs as rules see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from etrm.config.text import first_few
from etrm.report.estimates import Estimate, by_experiment, over_seeds, score_of, twins
from etrm.report.published import VARIANCE
from etrm.report.run_view import RunView

SUPPORTED, CONTRADICTED, OPEN = VERDICTS = ("supported", "contradicted", "not decided")
NEAR_ZERO, POINT = 0.01, 0.01  # of accuracy; of a gain
LEARNED = 0.40  # train exact match of a run that has learned its training tasks
SHOWN = 4  # items of evidence


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim, one of `VERDICTS`, and the numbers that it rests on."""

    verdict: str
    evidence: str


@dataclass(frozen=True)
class Case:
    """The runs of a study, as rules look at them."""

    views: Sequence[RunView]
    baseline: str | None = None

    @cached_property
    def encoders(self) -> dict[str, list[RunView]]:
        """The runs of each experiment with an encoder, of the last stage that it has."""
        return by_experiment(view for view in self.views if not view.is_trm)

    @cached_property
    def held_out(self) -> dict[str, Estimate]:
        """pass@1 of each experiment with an encoder whose weights no held-out task has touched."""
        found = {}
        for name, mine in self.encoders.items():
            proven = [v for v in mine if v.score and v.score["held_out"]["status"] == "proven"]
            if (score := score_of(proven)) is not None:
                found[name] = score
        return found

    def mean(self, name: str, measure: Callable[[RunView], float | None]) -> float | None:
        """Return the mean over seeds of a measure of an experiment."""
        return over_seeds(measure(view) for view in self.encoders[name])["value"]

    def means(self, measure: Callable[[RunView], float | None]) -> dict[str, float]:
        """Return the mean over seeds of a measure of every experiment that has it."""
        found = {name: self.mean(name, measure) for name in self.encoders}
        return {name: value for name, value in found.items() if value is not None}

    @cached_property
    def learned(self) -> dict[str, float]:
        """Train exact match of the experiments that have learned their training tasks."""
        return {
            name: x for name, x in self.means(lambda view: view.train_exact).items() if x >= LEARNED
        }

    @cached_property
    def variance(self) -> dict[str, float]:
        """Cross-sample variance at the end of each experiment that has logged it."""
        return self.means(lambda view: view.final(VARIANCE))

    @cached_property
    def trm(self) -> dict[str, list[RunView]]:
        """The runs of TRM that have a score."""
        return by_experiment(view for view in self.views if view.is_trm and view.score is not None)

    def variational_pairs(self) -> list[tuple[str, str]]:
        """Return pairs (deterministic, variational) of experiments that are alike otherwise."""
        found = []
        for pair in twins(self.views, ["context.source"]):
            for a, b in (pair, pair[::-1]):
                plain, sampled = (self.encoders[name][0].source for name in (a, b))
                if sampled == ("variational" if plain == "standard" else f"{plain}_variational"):
                    found.append((a, b))
        return found


def listed(items: Iterable[str]) -> str:
    """Return the first `SHOWN` items, and how many there are more."""
    return "; ".join(first_few(list(items), SHOWN))


def missing(what: str) -> Finding:
    """Return that nothing is decided, for want of `what`."""
    return Finding(OPEN, f"this study has no {what}")


def by_all(cases: Mapping[str, bool], evidence: Mapping[str, str], lacking: str) -> Finding:
    """Support by all, contradict by none."""
    if not cases:
        return missing(lacking)
    verdict = SUPPORTED if all(cases.values()) else OPEN if any(cases.values()) else CONTRADICTED
    count = f"{sum(cases.values())} of {len(cases)}: "
    return Finding(verdict, count + listed(f"{name} {evidence[name]}" for name in cases))


def near_zero(scores: Mapping[str, Estimate], lacking: str, bound: float = NEAR_ZERO) -> Finding:
    """Support if all scores are below the bound, contradict if one is above."""
    if not scores:
        return missing(lacking)
    best = sorted(scores, key=lambda name: scores[name].low, reverse=True)
    below = all(score.high < bound for score in scores.values())
    above = any(score.low > bound for score in scores.values())
    verdict = CONTRADICTED if above else SUPPORTED if below else OPEN
    return Finding(verdict, listed(f"{name} {scores[name]}" for name in best))


def opposite(found: Finding) -> Finding:
    """Return the finding on the opposite claim."""
    turned = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED, OPEN: OPEN}
    return Finding(turned[found.verdict], found.evidence)


def gain(effects: Mapping[str, Estimate], lacking: str) -> Finding:
    """Support if one effect is above 0, contradict if all are below a point."""
    if not effects:
        return missing(lacking)
    above = any(effect.low > 0 for effect in effects.values())
    below = all(effect.high < POINT for effect in effects.values())
    verdict = SUPPORTED if above else CONTRADICTED if below else OPEN
    shown = (f"{name} {each.points()} ({each.what})" for name, each in effects.items())
    return Finding(verdict, listed(shown))
