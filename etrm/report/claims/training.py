"""Claims of section 5.2: gradients, stability, and what variance says about generalisation."""

from __future__ import annotations

from collections.abc import Callable

from etrm.report.claims.case import Case, Finding, claim, decided, missing
from etrm.report.estimates import settings
from etrm.report.predictors import correlation_of, points, strata, words
from etrm.report.published import VARIANCE
from etrm.report.run_view import RunView

COVERED = 0.99  # share of samples with a gradient, from which on it is all of them
REACHED = 0.79  # train exact match that encoding anew has enabled
EARLY = 500  # steps


def _overfit(case: Case, cached: bool) -> dict[str, RunView]:
    """Return the judged overfit runs that cache their encodings, or those that do not."""
    judged = [view for view in case.views if view.verdict is not None and not view.is_trm]
    return {f"{v.experiment}, seed {v.seed}": v for v in judged if v.is_cached == cached}


def _exact(view: RunView) -> float:
    return float((view.verdict or {})["exact_accuracy"])


def _coverage(view: RunView) -> float | None:
    return view.final("grad/encoder_coverage")


def _covered(view: RunView) -> str:
    coverage = _coverage(view)
    known = "unknown" if coverage is None else f"{100 * coverage:.0f} %"
    return f"coverage {known}, exact match {100 * _exact(view):.1f} %"


@claim(
    "5.2.1",
    "Cached encodings leave most samples without a gradient, and training stalls.",
    "Runs that cache: supported if gradient coverage is below half and none passes its gate,"
    " contradicted if one passes.",
)
def cached_encodings_starve(case: Case) -> Finding:
    runs = _overfit(case, cached=True)
    if not runs:
        return missing("overfit run that caches its encodings")
    passed = any((view.verdict or {})["passed"] for view in runs.values())
    starved = all((_coverage(view) or 1.0) < 0.5 for view in runs.values())
    shown = (f"{name}: {_covered(view)}" for name, view in runs.items())
    return decided(starved and not passed, passed, shown)


@claim(
    "5.2.1",
    "Encoding anew at every ACT step gives full coverage, and training reaches 79 % or more.",
    "Overfit runs: supported if a run of full coverage reaches 79 % and no cached one does,"
    " contradicted if none or a cached one does.",
)
def encoding_anew(case: Case) -> Finding:
    anew = {n: v for n, v in _overfit(case, False).items() if (_coverage(v) or 0.0) >= COVERED}
    cached = _overfit(case, cached=True)
    if not anew or not cached:
        return missing("judged overfit run of both kinds")
    reached, late = (sum(_exact(v) >= REACHED for v in of.values()) for of in (anew, cached))
    evidence = f"{reached} of {len(anew)} runs of full coverage reach {100 * REACHED:g} %"
    evidence += f", {late} of {len(cached)} that cache"
    return decided(bool(reached and not late), True, evidence)


@claim(
    "5.2.2",
    "Without gradient clipping training collapses; with it, it is stable.",
    "ETRM runs: supported if one without clipping diverged and none with it, contradicted if"
    " one with it diverged, or if none without it did.",
)
def clipping(case: Case) -> Finding:
    runs = [view for view in case.views if not view.is_trm and "train.grad_clip" in settings(view)]
    kinds: dict[bool, list[bool]] = {True: [], False: []}  # clipped: diverged
    for view in runs:
        diverged = view.run.get("stopped_early") == "divergence"
        kinds[view.setting("train.grad_clip") is not None].append(diverged)
    clipped, free = kinds[True], kinds[False]
    if not clipped or not free:
        return missing("run of both kinds, with and without gradient clipping")
    evidence = f"diverged: {sum(free)} of {len(free)} without, "
    evidence += f"{sum(clipped)} of {len(clipped)} with it"
    return decided(any(free) and not any(clipped), True, evidence)


def _correlation(case: Case, measure: Callable[[RunView], float | None] | str) -> Finding:
    low, high, evidence = [], [], []
    for stratum in strata(case.views):
        runs = points(stratum, measure)
        each = correlation_of(runs)
        if each is not None and each.low is not None and each.high is not None:
            low.append(each.low)
            high.append(each.high)
            shown = words(each.value, each.low, each.high)
            evidence.append(f"{shown} with {stratum.outcome} over {len(runs)} runs")
    if not evidence:
        return missing("five full runs with an outcome, alike enough for a correlation")
    return decided(min(low) > 0, max(high) < 0, evidence)


@claim(
    "5.2.3",
    "A low cross-sample variance goes with failure to generalise.",
    "Rank correlation with the outcome, over runs: supported if its interval is above 0,"
    " contradicted if below.",
)
def variance_predicts(case: Case) -> Finding:
    return _correlation(case, VARIANCE)


@claim(
    "5.2.3",
    "Cross-sample variance tells early: in the first 500 steps.",
    "The same with the variance in the first 500 steps.",
)
def early_variance_predicts(case: Case) -> Finding:
    def early(view: RunView) -> float | None:
        values = view.series(VARIANCE)
        values = values[values.index <= EARLY]
        return float(values.mean()) if len(values) else None

    return _correlation(case, early)
