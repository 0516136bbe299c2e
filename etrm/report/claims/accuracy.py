"""Rules of claims about accuracy on unseen tasks, and about what would improve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow.parquet as pq

from etrm.evaluation.statistics import clopper_pearson, difference_interval
from etrm.report.claims.case import (
    CONTRADICTED,
    NEAR_ZERO,
    OPEN,
    SUPPORTED,
    Case,
    Finding,
    by_all,
    gain,
    listed,
    missing,
    near_zero,
    opposite,
)
from etrm.report.estimates import Estimate, difference, score_difference, score_of, settings, twins
from etrm.report.mechanisms import is_recurrent
from etrm.report.published import ARC1, TRM_518K, find
from etrm.report.refinement import stacked_credits
from etrm.report.run_view import RunView

BAR = 0.05  # the guide's criterion 2
DIVERSE = 0.3  # cross-sample variance, by the guide


def generalisation_gap(case: Case) -> Finding:
    """5.1.1: held-out accuracy of runs that have learned their training tasks."""
    scores = {name: score for name, score in case.held_out.items() if name in case.learned}
    return near_zero(scores, "held-out score of a run with 40 % in training")


def all_families_fail(case: Case) -> Finding:
    """5.1.1: the best held-out accuracy of each kind of encoder."""
    best: dict[str, tuple[str, Estimate]] = {}
    for name, score in case.held_out.items():
        source = case.encoders[name][0].source
        if source not in best or score.value > best[source][1].value:
            best[source] = name, score
    if len(best) < 3:
        return missing("held-out scores of three kinds of encoder")
    return near_zero(dict(best.values()), "")


def unguided_iteration(case: Case) -> Finding:
    """5.1.2: recurrent encoders against the baseline."""
    base = case.encoders.get(case.baseline or "")
    pairs = [n for n, mine in case.encoders.items() if is_recurrent(mine[0]) and mine != base]
    effects = {n: difference(case.encoders[n], base) for n in pairs} if base else {}
    known = {name: effect for name, effect in effects.items() if effect is not None}
    return opposite(gain(known, "recurrent encoder to compare with the baseline"))


def _of_methods(case: Case, ours: str, theirs: str | None) -> dict[str, Estimate]:
    """Return the difference of pass@1 of two methods of refinement at the most common steps.

    `theirs` None: from the same method without a step.
    """
    found = {}
    for name, mine in case.encoders.items():
        methods = [(view.refinement or {}).get("methods", {}) for view in mine]
        both = [each for each in methods if each.get(ours) and each.get(theirs or ours)]
        steps = [set(each[ours]) & set(each[theirs or ours]) - {"0"} for each in both]
        common = set.intersection(*steps) if steps else set()
        if not common:
            continue
        most = max(common, key=int)
        a = stacked_credits([each[ours][most] for each in both])
        b = stacked_credits([each[theirs][most] if theirs else each[ours]["0"] for each in both])
        if a is not None and b is not None and a.shape == b.shape:
            a, b = a[..., 0], b[..., 0]
            value, interval = float(a.mean() - b.mean()), difference_interval(a, b)
            shown = f"{100 * b.mean():.1f} to {100 * a.mean():.1f} %"
            label = f"{name}, {most} steps: {shown},"
            found[label] = Estimate("pass@1", value, *interval, a.shape[1], len(a))
    return found


def guided_refinement(case: Case) -> Finding:
    """5.1.2: latent search against its unguided controls."""
    controls = {each: _of_methods(case, "search", each) for each in ("random", "act_steps")}
    if not all(controls.values()):
        return missing("latent search beside both unguided controls")
    against = [
        gain({f"against {c}: {name}": each for name, each in of.items()}, "")
        for c, of in controls.items()
    ]
    verdicts = {each.verdict for each in against}
    evidence = "; ".join(each.evidence for each in against)
    return Finding(verdicts.pop() if len(verdicts) == 1 else OPEN, evidence)


def variational_fails(case: Case) -> Finding:
    """5.1.4: held-out accuracy of variational encoders."""
    scores = {n: s for n, s in case.held_out.items() if "variational" in case.encoders[n][0].source}
    return near_zero(scores, "held-out score of a variational encoder")


def variance_is_not_enough(case: Case) -> Finding:
    """5.1.4: held-out accuracy of encoders of high variance."""
    scores = {n: s for n, s in case.held_out.items() if case.variance.get(n, 0) > DIVERSE}
    if not scores:
        return missing("held-out score of an encoder with a variance above 0.3")
    fails = any(score.high < NEAR_ZERO for score in scores.values())
    solves = all(score.low > NEAR_ZERO for score in scores.values())
    shown = (f"{name} variance {case.variance[name]:.2f}, {scores[name]}" for name in scores)
    return Finding(SUPPORTED if fails else CONTRADICTED if solves else OPEN, listed(shown))


def collapsed_answers(case: Case) -> Finding:
    """5.1.5: the share of wrong answers that are of one colour, a mean over test outputs."""
    counts: dict[tuple[str, int], list[int]] = {}  # by test output: of one colour, all wrong ones
    columns = ["task", "query", "grid", "correct"]
    for view in (v for mine in case.encoders.values() for v in mine if v.predictions is not None):
        answers = pq.read_table(view.predictions, columns=columns).group_by(columns)
        counted = answers.aggregate([([], "count_all")])
        for task, query, grid, right, n in zip(
            *(c.to_pylist() for c in counted.columns), strict=True
        ):
            if right is False:
                of = counts.setdefault((task, query), [0, 0])
                of[0] += n * (len(set(grid)) == 1)
                of[1] += n
    if not counts:
        return missing("wrong answer to a held-out task")
    share = sum(solid / wrong for solid, wrong in counts.values()) / len(counts)
    low, high = clopper_pearson(share * len(counts), len(counts))
    verdict = SUPPORTED if low >= 0.01 and high <= 0.5 else CONTRADICTED if high < 0.01 else OPEN
    shown = f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return Finding(verdict, f"{shown} of wrong answers, over {len(counts)} test outputs")


def _transductive(case: Case) -> dict[str, Estimate]:
    runs = {n: mine for n, mine in case.trm.items() if mine[0].run["split"] == "transductive"}
    found = {name: score_of(mine) for name, mine in runs.items()}
    return {name: score for name, score in found.items() if score is not None}


def trm_is_often_right(case: Case) -> Finding:
    """5.1.5: pass@1 of TRM with learned embeddings."""
    return opposite(near_zero(_transductive(case), "score of transductive TRM", 0.10))


def trm_as_published(case: Case) -> Finding:
    """5.1.6: pass@1 of TRM against the published one, on the same number of tasks."""
    (number,) = (p for p in find("pass@1", ARC1) if p.name == TRM_518K)
    scores = {n: s for n, s in _transductive(case).items() if s.tasks == number.tasks}
    holds = {n: s.low <= number.value <= s.high for n, s in scores.items()}
    shown = {name: str(score) for name, score in scores.items()}
    return by_all(holds, shown, "TRM that was asked all 400 tasks")


def trm_knows_its_puzzles(case: Case) -> Finding:
    """5.1.6: transductive TRM against TRM that has never seen the tasks."""
    seen, unseen = (
        [m for m in case.trm.values() if m[0].run["split"] == split]
        for split in ("transductive", "strict")
    )
    pairs = [(a, b) for a in seen for b in unseen]
    effects = {
        f"{a[0].experiment} over {b[0].experiment}": score_difference(a, b) for a, b in pairs
    }
    known = {name: effect for name, effect in effects.items() if effect is not None}
    return gain(known, "score of strict TRM (`context.unseen: mean`) beside a transductive one")


def no_few_shot(case: Case) -> Finding:
    """5.1.6: held-out accuracy against the guide's bar."""
    return near_zero(case.held_out, "held-out score of an encoder", BAR)


def other_architectures(case: Case) -> Finding:
    """5.3.2: held-out accuracy of encoders that the discussion's authors had not tried."""
    tried = ("standard", "variational", "hybrid_variational", "recurrent", "recurrent_trm")
    scores = {n: s for n, s in case.held_out.items() if case.encoders[n][0].source not in tried}
    return opposite(near_zero(scores, "held-out score of another encoder"))


def _effects(
    case: Case, keys: Sequence[str], better: Callable[[RunView], bool]
) -> dict[str, Estimate]:
    """Return the effects of one setting: experiments with it against their twins without it."""
    found = {}
    for pair in twins(case.views, keys):
        for a, b in (pair, pair[::-1]):
            ours, theirs = case.encoders[a], case.encoders[b]
            effect = difference(ours, theirs)
            if better(ours[0]) and not better(theirs[0]) and effect is not None:
                found[f"{a} over {b}"] = effect
    return found


def averaged_weights(case: Case) -> Finding:
    """5.3.3: averaged against raw first weights of the decoder."""
    effects = _effects(
        case, ["decoder.weights"], lambda view: settings(view).get("decoder.weights") == "ema"
    )
    return opposite(gain(effects, "pair that differs in `decoder.weights` alone"))


def search_helps(case: Case) -> Finding:
    """5.4.1: the gain of latent search over no step."""
    return gain(_of_methods(case, "search", None), "latent search")


def contrastive_helps(case: Case) -> Finding:
    """5.4.2: a contrastive loss against none."""
    keys = [f"context.contrastive_{name}" for name in ("weight", "temperature", "positives")]
    effects = _effects(case, keys, lambda view: bool(settings(view).get(keys[0])))
    return gain(effects, "pair that differs in the contrastive loss alone")


def pretraining_helps(case: Case) -> Finding:
    """5.4.3: a pretrained decoder against one from scratch."""
    keys = [f"decoder.{name}" for name in ("init", "weights", "init_seed")]
    effects = _effects(case, keys, lambda view: settings(view).get("decoder.init") is not None)
    return gain(effects, "pair that differs in `decoder.init` alone")
