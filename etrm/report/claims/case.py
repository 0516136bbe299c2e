"""Shared by the rules of claims: a verdict with its evidence, and the runs as rules see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etrm.config.text import first_few
from etrm.report.estimates import (
    Estimate,
    by_experiment,
    over_seeds,
    paired_difference,
    score_of,
    twins,
)
from etrm.report.published import VARIANCE
from etrm.report.refinement import stacked_credits
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
    def sources(self) -> dict[str, str]:
        """The encoder of each of these experiments, by name."""
        return {name: mine[0].source for name, mine in self.encoders.items()}

    @cached_property
    def held_out(self) -> dict[str, Estimate]:
        """pass@1 of each experiment with an encoder whose weights no held-out task has touched."""
        scores = {}
        for name, mine in self.encoders.items():
            proven = [v for v in mine if v.score and v.score["held_out"]["status"] == "proven"]
            scores[name] = score_of(proven)
        return known(scores)

    def means(self, measure: Callable[[RunView], float | None]) -> dict[str, float]:
        """Return the mean over seeds of a measure of every experiment that has it."""
        values = {n: map(measure, mine) for n, mine in self.encoders.items()}
        return known({name: over_seeds(each)["value"] for name, each in values.items()})

    @cached_property
    def exact(self) -> dict[str, float]:
        """Train exact match of each experiment."""
        return self.means(lambda view: view.train_exact)

    @cached_property
    def learned(self) -> set[str]:
        """The experiments that have learned their training tasks."""
        return {name for name, exact in self.exact.items() if exact >= LEARNED}

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
                plain, sampled = self.sources[a], self.sources[b]
                if sampled == ("variational" if plain == "standard" else f"{plain}_variational"):
                    found.append((a, b))
        return found

    def of_methods(self, ours: str, theirs: str | None) -> dict[str, Estimate]:
        """Return the difference of pass@1 of two methods of refinement at the most common steps.

        `theirs` None: from the same method without a step.
        """
        found = {}
        for name, mine in self.encoders.items():
            methods = [(view.refinement or {}).get("methods", {}) for view in mine]
            both = [each for each in methods if each.get(ours) and each.get(theirs or ours)]
            steps = [set(each[ours]) & set(each[theirs or ours]) - {"0"} for each in both]
            common = set.intersection(*steps) if steps else set()
            if not common:
                continue
            most = max(common, key=int)
            a = stacked_credits([each[ours][most] for each in both])
            b = stacked_credits(
                [each[theirs][most] if theirs else each[ours]["0"] for each in both]
            )
            if a is not None and b is not None and a.shape == b.shape:
                a, b = a[..., 0], b[..., 0]
                shown = f"{100 * b.mean():.1f} to {100 * a.mean():.1f} %"
                found[f"{name}, {most} steps: {shown},"] = paired_difference(a, b)
        return found


Rule = Callable[[Case], Finding]


@dataclass(frozen=True)
class Claim:
    """A claim, where the discussion makes it, and what decides it."""

    section: str
    text: str
    rule: str  # in words, what `decide` does
    decide: Rule


CLAIMS: list[Claim] = []  # as `claim` enters them


def claim(section: str, text: str, rule: str) -> Callable[[Rule], Rule]:
    """Enter a function into `CLAIMS` as the one that decides a claim by its rule."""

    def enter(decide: Rule) -> Rule:
        CLAIMS.append(Claim(section, text, rule, decide))
        return decide

    return enter


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there."""
    return {name: value for name, value in values.items() if value is not None}


def listed(items: Iterable[str]) -> str:
    """Return the first `SHOWN` items, and how many there are more."""
    return "; ".join(first_few(list(items), SHOWN))


def missing(what: str) -> Finding:
    """Return that nothing is decided, for want of `what`."""
    return Finding(OPEN, f"this study has no {what}")


def decided(supported: bool, contradicted: bool, evidence: str | Iterable[str]) -> Finding:
    """Return the verdict, support before contradiction, with its evidence, one text or a list."""
    verdict = SUPPORTED if supported else CONTRADICTED if contradicted else OPEN
    return Finding(verdict, evidence if isinstance(evidence, str) else listed(evidence))


def by_all(
    values: Mapping[str, Any],
    holds: Callable[[Any], bool],
    show: Callable[[Any], str],
    lacking: str,
) -> Finding:
    """Support if the claim holds of all values, contradict if of none."""
    if not values:
        return missing(lacking)
    true = [holds(value) for value in values.values()]
    evidence = listed(f"{name} {show(value)}" for name, value in values.items())
    return decided(all(true), not any(true), f"{sum(true)} of {len(true)}: {evidence}")


def near_zero(scores: Mapping[str, Estimate], lacking: str, bound: float = NEAR_ZERO) -> Finding:
    """Support if all scores are below the bound, contradict if one is above."""
    if not scores:
        return missing(lacking)
    best = sorted(scores, key=lambda name: scores[name].low, reverse=True)
    below = all(score.high < bound for score in scores.values())
    above = any(score.low > bound for score in scores.values())
    return decided(below, above, (f"{name} {scores[name]}" for name in best))


def opposite(found: Finding) -> Finding:
    """Return the finding on the opposite claim."""
    turned = {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED, OPEN: OPEN}
    return Finding(turned[found.verdict], found.evidence)


def gain(effects: Mapping[str, Estimate | None], lacking: str) -> Finding:
    """Support if one effect is above 0, contradict if all are below a point."""
    if not (found := known(effects)):
        return missing(lacking)
    above = any(effect.low > 0 for effect in found.values())
    below = all(effect.high < POINT for effect in found.values())
    shown = (f"{name} {each.points()} ({each.what})" for name, each in found.items())
    return decided(above, below, shown)
