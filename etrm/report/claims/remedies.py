"""Claims of sections 5.3 and 5.4: what would improve accuracy on unseen tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etrm.report.claims.case import (
    POINT,
    Case,
    Finding,
    claim,
    decided,
    gain,
    missing,
    near_zero,
    opposite,
)
from etrm.report.claims.generalisation import GAP
from etrm.report.estimates import VALIDATION, Estimate, difference, over_seeds, twins
from etrm.report.formats import in_points
from etrm.report.run_view import RunView

TRIED = ("standard", "variational", "hybrid_variational", "recurrent", "recurrent_trm")


def _effects(
    case: Case, keys: Sequence[str], better: Callable[[RunView], bool]
) -> dict[str, Estimate | None]:
    """Return the effects of one setting: experiments with it against their twins without it."""
    found = {}
    for pair in twins(case.views, keys):
        for a, b in (pair, pair[::-1]):
            ours, theirs = case.encoders[a], case.encoders[b]
            if better(ours[0]) and not better(theirs[0]):
                found[f"{a} over {b}"] = difference(ours, theirs)
    return found


@claim(
    "5.3.1",
    "More training may improve the numbers.",
    "Exact match on validation tasks, at the end minus at half of the run: supported if an"
    " experiment's interval is above 0, contradicted if all are below 1 point.",
)
def more_training(case: Case) -> Finding:
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
    return decided(above, all(high < POINT for _, high in found.values()), evidence)


def _second_half(view: RunView) -> float | None:
    values = view.series(VALIDATION)
    early = values[values.index <= view.run["steps_done"] / 2]
    return float(values.iloc[-1] - early.iloc[-1]) if len(early) and len(values) > 1 else None


@claim(
    "5.3.2",
    "An architecture that was not tried might succeed.",
    GAP.format(of="encoders other than standard, variational and recurrent").replace(
        "supported if the interval of pass@1 is below 1 % for all, contradicted if it is above"
        " 1 % for one",
        "supported if the interval of pass@1 is above 1 % for one, contradicted if it is below"
        " 1 % for all",
    ),
)
def other_architectures(case: Case) -> Finding:
    scores = {n: s for n, s in case.held_out.items() if case.sources[n] not in TRIED}
    return opposite(near_zero(scores, "held-out score of another encoder"))


@claim(
    "5.3.3",
    "Raw instead of averaged weights of the decoder do not explain the failure.",
    "Averaged against raw first weights, all else equal: supported if the interval of the"
    " difference is below 1 point, contradicted if above 0.",
)
def averaged_weights(case: Case) -> Finding:
    key = "decoder.weights"
    effects = _effects(case, [key], lambda view: view.setting(key) == "ema")
    return opposite(gain(effects, f"pair that differs in `{key}` alone"))


@claim(
    "5.4.1",
    "Latent search at test time improves generalisation (LPN: 7.75 to 15.5 %).",
    "Its gain over no step, at the most steps: supported if an interval is above 0,"
    " contradicted if all are below 1 point.",
)
def search_helps(case: Case) -> Finding:
    return gain(case.of_methods("search", None), "latent search")


@claim(
    "5.4.2",
    "A contrastive loss makes contexts that generalise better.",
    "With against without, all else equal: supported if an interval is above 0, contradicted if"
    " all are below 1 point.",
)
def contrastive_helps(case: Case) -> Finding:
    keys = [f"context.contrastive_{name}" for name in ("weight", "temperature", "positives")]
    effects = _effects(case, keys, lambda view: bool(view.setting(keys[0])))
    return gain(effects, "pair that differs in the contrastive loss alone")


@claim(
    "5.4.3",
    "A pretrained decoder is the better start.",
    "Pretrained against from scratch, all else equal: supported if an interval is above 0,"
    " contradicted if all are below 1 point.",
)
def pretraining_helps(case: Case) -> Finding:
    keys = [f"decoder.{name}" for name in ("init", "weights", "init_seed")]
    effects = _effects(case, keys, lambda view: view.setting(keys[0]) is not None)
    return gain(effects, "pair that differs in `decoder.init` alone")
