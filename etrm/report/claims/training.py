"""Rules of claims about training: gradients, representations, and what is learned by heart."""

from __future__ import annotations

from collections.abc import Callable

from etrm.report.claims.case import (
    CONTRADICTED,
    OPEN,
    POINT,
    SUPPORTED,
    Case,
    Finding,
    by_all,
    listed,
    missing,
)
from etrm.report.collapse import SWAP
from etrm.report.estimates import VALIDATION, over_seeds, settings
from etrm.report.formats import in_points
from etrm.report.predictors import Point, correlation_of, measure_of, strata, words
from etrm.report.published import VARIANCE
from etrm.report.run_view import RunView

LOW = 0.36  # cross-sample variance: the highest of a deterministic encoder in the discussion
COVERED = 0.99  # share of samples with a gradient, from which on it is all of them
REACHED = 0.79  # train exact match that encoding anew has enabled
EARLY = 500  # steps


def updates_per_puzzle(case: Case) -> Finding:
    """5.1.2: updates of a row of TRM's table of embeddings."""
    found = {}
    for name, (view, *_) in case.trm.items():
        if view.run["split"] != "transductive":
            continue
        batch = view.run.get("config", {}).get("train", {}).get("batch_size")
        if batch and view.run.get("puzzles"):
            found[name] = view.run["steps_done"] * batch / view.run["puzzles"]
    shown = {name: f"{value:,.0f} updates a puzzle" for name, value in found.items()}
    return by_all({n: v >= 500 for n, v in found.items()}, shown, "scored TRM with its puzzles")


def low_variance(case: Case) -> Finding:
    """5.1.3: cross-sample variance of deterministic encoders."""
    sources = {name: mine[0].source for name, mine in case.encoders.items()}
    plain = {n: v for n, v in case.variance.items() if "variational" not in sources[n]}
    shown = {name: f"{value:.3f}" for name, value in plain.items()}
    return by_all({n: v <= LOW for n, v in plain.items()}, shown, "deterministic encoder")


def ignored_encoder(case: Case) -> Finding:
    """5.1.3: token accuracy that is lost when contexts are exchanged."""
    drops = {n: v for n, v in case.means(lambda v: v.final(SWAP)).items() if n in case.learned}
    shown = {name: f"loses {100 * drop:.1f} points" for name, drop in drops.items()}
    lacking = "measured swap of contexts of a run with 40 % in training"
    return by_all({n: d < POINT for n, d in drops.items()}, shown, lacking)


def variational_variance(case: Case) -> Finding:
    """5.1.4: how much larger the variance of a variational encoder is."""
    found = {
        f"{b} over {a}": case.variance[b] / case.variance[a]
        for a, b in case.variational_pairs()
        if case.variance.get(a) and b in case.variance
    }
    if not found:
        return missing("variational encoder beside the same without sampling")
    evidence = listed(f"{name}: {ratio:.2g} times" for name, ratio in found.items())
    large, small = min(found.values()) >= 5, max(found.values()) < 2
    return Finding(SUPPORTED if large else CONTRADICTED if small else OPEN, evidence)


def variational_memory(case: Case) -> Finding:
    """5.1.4: train exact match of a variational encoder below that of its twin."""
    exact = case.means(lambda view: view.train_exact)
    pairs = [(a, b) for a, b in case.variational_pairs() if a in exact and b in exact]
    lower = {f"{b} below {a}": exact[a] - exact[b] for a, b in pairs}
    shown = {name: f"by {100 * gap:.1f} points" for name, gap in lower.items()}
    lacking = "variational encoder beside the same without sampling"
    return by_all({n: gap >= 0.10 for n, gap in lower.items()}, shown, lacking)


def _overfit(case: Case, cached: bool) -> dict[str, RunView]:
    """Return the judged overfit runs that cache their encodings, or those that do not."""
    judged = [view for view in case.views if view.verdict is not None and not view.is_trm]
    return {
        f"{view.experiment}, seed {view.seed}": view
        for view in judged
        if bool(settings(view).get("train.cache_context", False)) == cached
    }


def _exact(view: RunView) -> float:
    return float((view.verdict or {})["exact_accuracy"])


def _coverage(view: RunView) -> float | None:
    return view.final("grad/encoder_coverage")


def _covered(view: RunView) -> str:
    coverage = _coverage(view)
    known = "unknown" if coverage is None else f"{100 * coverage:.0f} %"
    return f"coverage {known}, exact match {100 * _exact(view):.1f} %"


def cached_encodings_starve(case: Case) -> Finding:
    """5.2.1: coverage and verdict of runs that cache their encodings."""
    runs = _overfit(case, cached=True)
    if not runs:
        return missing("overfit run that caches its encodings")
    passed = any((view.verdict or {})["passed"] for view in runs.values())
    starved = all((_coverage(view) or 1.0) < 0.5 for view in runs.values())
    verdict = CONTRADICTED if passed else SUPPORTED if starved else OPEN
    return Finding(verdict, listed(f"{name}: {_covered(view)}" for name, view in runs.items()))


def encoding_anew(case: Case) -> Finding:
    """5.2.1: exact match of runs whose samples all have a gradient, against cached ones."""
    anew = {n: v for n, v in _overfit(case, False).items() if (_coverage(v) or 0.0) >= COVERED}
    cached = _overfit(case, cached=True)
    if not anew or not cached:
        return missing("judged overfit run of both kinds")
    reached, late = (sum(_exact(v) >= REACHED for v in of.values()) for of in (anew, cached))
    verdict = SUPPORTED if reached and not late else CONTRADICTED
    evidence = f"{reached} of {len(anew)} runs of full coverage reach {100 * REACHED:g} %"
    return Finding(verdict, f"{evidence}, {late} of {len(cached)} that cache")


def clipping(case: Case) -> Finding:
    """5.2.2: divergence of runs with and without gradient clipping."""
    runs = [view for view in case.views if not view.is_trm and "train.grad_clip" in settings(view)]
    kinds: dict[str, list[bool]] = {"clipped": [], "unclipped": []}
    for view in runs:
        kind = "unclipped" if settings(view)["train.grad_clip"] is None else "clipped"
        kinds[kind].append(view.run.get("stopped_early") == "divergence")
    if not all(kinds.values()):
        return missing("run of both kinds, with and without gradient clipping")
    clipped, free = kinds["clipped"], kinds["unclipped"]
    verdict = CONTRADICTED if any(clipped) or not any(free) else SUPPORTED
    evidence = f"diverged: {sum(free)} of {len(free)} without, "
    evidence += f"{sum(clipped)} of {len(clipped)} with it"
    return Finding(verdict, evidence)


def _correlation(case: Case, measure: Callable[[RunView], float | None]) -> Finding:
    found, evidence = [], []
    for stratum in strata(case.views):
        measured = [(view, measure(view), outcome) for view, outcome in stratum.runs]
        points = [Point(v, value, outcome) for v, value, outcome in measured if value is not None]
        if (each := correlation_of(points)) is not None and each.low is not None:
            found.append(each)
            shown = words(each.value, each.low, each.high)
            evidence.append(f"{shown} with {stratum.outcome} over {len(points)} runs")
    if not found:
        return missing("five full runs with an outcome, alike enough for a correlation")
    low = [each.low for each in found if each.low is not None]
    high = [each.high for each in found if each.high is not None]
    verdict = SUPPORTED if min(low) > 0 else CONTRADICTED if max(high) < 0 else OPEN
    return Finding(verdict, listed(evidence))


def variance_predicts(case: Case) -> Finding:
    """5.2.3: variance at the end against the outcome."""
    return _correlation(case, lambda view: measure_of(view, VARIANCE))


def early_variance_predicts(case: Case) -> Finding:
    """5.2.3: variance in the first steps against the outcome."""

    def early(view: RunView) -> float | None:
        values = view.series(VARIANCE)
        values = values[values.index <= EARLY]
        return float(values.mean()) if len(values) else None

    return _correlation(case, early)


def more_training(case: Case) -> Finding:
    """5.3.1: whether validation still rises in the second half of a run."""
    found: dict[str, tuple[float, float]] = {}
    evidence = []
    for name, mine in case.encoders.items():
        row = over_seeds(_second_half(view) for view in mine)
        value, low, high = (row[key] for key in ("value", "value_low", "value_high"))
        if value is not None and low is not None and high is not None:
            found[name] = low, high
            evidence.append(f"{name} {in_points(value, low, high)} points")
    if not found:
        return missing("experiment of two seeds that was validated while it trained")
    above = any(low > 0 for low, _ in found.values())
    below = all(high < POINT for _, high in found.values())
    return Finding(SUPPORTED if above else CONTRADICTED if below else OPEN, listed(evidence))


def _second_half(view: RunView) -> float | None:
    values = view.series(VALIDATION)
    early = values[values.index <= view.run["steps_done"] / 2]
    return float(values.iloc[-1] - early.iloc[-1]) if len(early) and len(values) > 1 else None
