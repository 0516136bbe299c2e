"""The discussion's claims, each with the numbers of this study that support or contradict it.

The claims are those of the discussion of the original ETRM, in its order. Each has an explicit rule
over the runs of a study (`accuracy.py`, `training.py`); where its runs are missing, or their
intervals hold both answers, it is not decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from etrm.report.claims import accuracy, training
from etrm.report.claims.case import VERDICTS, Case, Finding
from etrm.report.estimates import OVER_TASKS, PAIRED, STUDENT, UNPAIRED
from etrm.report.formats import Table
from etrm.report.run_view import RunView, asked


@dataclass(frozen=True)
class Claim:
    """A claim, where the discussion makes it, and what decides it."""

    section: str
    text: str
    rule: str  # in words, what `decide` does
    decide: Callable[[Case], Finding]


GAP = (
    "Over held-out runs ({of}): supported if the interval of pass@1 is below 1 % for all,"
    " contradicted if it is above 1 % for one."
)
CLAIMS = (
    Claim(
        "5.1.1",
        "ETRM reaches high accuracy in training (40 to 79 %) but next to none on unseen tasks"
        " (below 1 %).",
        GAP.format(of="those with at least 40 % in training"),
        accuracy.generalisation_gap,
    ),
    Claim(
        "5.1.1",
        "Encoders of different architectures all fail, so the task is hard rather than one encoder"
        " wrong.",
        GAP.format(of="the best of each of at least three kinds of encoder"),
        accuracy.all_families_fail,
    ),
    Claim(
        "5.1.2",
        "TRM refines each puzzle embedding by some 500 or more gradient updates.",
        "Slots × steps over augmented puzzles, of scored TRM: supported from 500 on.",
        training.updates_per_puzzle,
    ),
    Claim(
        "5.1.2",
        "Iteration without a signal is not enough: a recurrent encoder does no better.",
        "Recurrent encoders against the baseline: contradicted if one's interval is above 0,"
        " supported if all are below 1 point.",
        accuracy.unguided_iteration,
    ),
    Claim(
        "5.1.2",
        "Refinement needs a signal, such as the consistency of demos.",
        "Latent search against random directions and more ACT steps, at equal steps: supported if"
        " an interval is above 0 against each of them, contradicted if all are below 1 point.",
        accuracy.guided_refinement,
    ),
    Claim(
        "5.1.3",
        "Deterministic encoders have a low cross-sample variance (0.15 to 0.36).",
        "Mean over seeds at the end: supported if at most 0.36 for all, contradicted if for none.",
        training.low_variance,
    ),
    Claim(
        "5.1.3",
        "The decoder ignores the encoder's output (inferred there, measured here).",
        "Token accuracy lost with the contexts of other tasks, of experiments with at least 40 % in"
        " training: supported if below 1 point for all, contradicted if for none.",
        training.ignored_encoder,
    ),
    Claim(
        "5.1.4",
        "A variational encoder has some ten times the cross-sample variance.",
        "Ratio to the same encoder without sampling: supported if at least 5 for all pairs,"
        " contradicted if below 2 for all.",
        training.variational_variance,
    ),
    Claim(
        "5.1.4",
        "Variational encoders still solve no unseen task.",
        GAP.format(of="variational encoders"),
        accuracy.variational_fails,
    ),
    Claim(
        "5.1.4",
        "Variational regularisation keeps the decoder from learning by heart: lower accuracy in"
        " training.",
        "Train exact match below that of the same encoder without sampling: supported if by at"
        " least 10 points for all pairs, contradicted if for none.",
        training.variational_memory,
    ),
    Claim(
        "5.1.4",
        "Variance alone is not enough: a high one goes with failure, too.",
        "Experiments with a variance above 0.3, the guide's diverse: supported if pass@1 is below"
        " 1 % for one, contradicted if above 1 % for all.",
        accuracy.variance_is_not_enough,
    ),
    Claim(
        "5.1.5",
        "Wrong answers are in part collapsed, to a solid colour; most others have structure.",
        "Wrong answers of encoders that are of one colour, a mean over test outputs: supported if"
        " the interval is from 1 % to 50 %, contradicted if it is below 1 %.",
        accuracy.collapsed_answers,
    ),
    Claim(
        "5.1.5",
        "TRM's predictions are often right.",
        "pass@1 of TRM: supported if its interval is above 10 %, contradicted if below.",
        accuracy.trm_is_often_right,
    ),
    Claim(
        "5.1.6",
        "TRM reaches 41.75 % pass@1.",
        "On all 400 evaluation tasks of ARC-AGI-1: supported if the interval holds 41.75 %.",
        accuracy.trm_as_published,
    ),
    Claim(
        "5.1.6",
        "TRM answers variants of puzzles that it knows; unseen ones are another task.",
        "Transductive TRM against strict TRM that is asked by the mean of its embeddings:"
        " supported if the interval of the difference is above 0, contradicted if below 1 point.",
        accuracy.trm_knows_its_puzzles,
    ),
    Claim(
        "5.1.6",
        "An encoder in place of the embedding gives no few-shot generalisation.",
        "The guide's bar of 5 %: supported if every interval of pass@1 is below it, contradicted if"
        " one is above.",
        accuracy.no_few_shot,
    ),
    Claim(
        "5.2.1",
        "Cached encodings leave most samples without a gradient, and training stalls.",
        "Runs that cache: supported if gradient coverage is below half and none passes its gate,"
        " contradicted if one passes.",
        training.cached_encodings_starve,
    ),
    Claim(
        "5.2.1",
        "Encoding anew at every ACT step gives full coverage, and training reaches 79 % or more.",
        "Overfit runs: supported if a run of full coverage reaches 79 % and no cached one does,"
        " contradicted if none or a cached one does.",
        training.encoding_anew,
    ),
    Claim(
        "5.2.2",
        "Without gradient clipping training collapses; with it, it is stable.",
        "ETRM runs: supported if one without clipping diverged and none with it, contradicted if"
        " one with it diverged, or if none without it did.",
        training.clipping,
    ),
    Claim(
        "5.2.3",
        "A low cross-sample variance goes with failure to generalise.",
        "Rank correlation with the outcome, over runs: supported if its interval is above 0,"
        " contradicted if below.",
        training.variance_predicts,
    ),
    Claim(
        "5.2.3",
        "Cross-sample variance tells early: in the first 500 steps.",
        "The same with the variance in the first 500 steps.",
        training.early_variance_predicts,
    ),
    Claim(
        "5.3.1",
        "More training may improve the numbers.",
        "Exact match on validation tasks, at the end minus at half of the run: supported if an"
        " experiment's interval is above 0, contradicted if all are below 1 point.",
        training.more_training,
    ),
    Claim(
        "5.3.2",
        "An architecture that was not tried might succeed.",
        GAP.format(of="encoders other than standard, variational and recurrent").replace(
            "supported if the interval of pass@1 is below 1 % for all, contradicted if it is above"
            " 1 % for one",
            "supported if the interval of pass@1 is above 1 % for one, contradicted if it is below"
            " 1 % for all",
        ),
        accuracy.other_architectures,
    ),
    Claim(
        "5.3.3",
        "Raw instead of averaged weights of the decoder do not explain the failure.",
        "Averaged against raw first weights, all else equal: supported if the interval of the"
        " difference is below 1 point, contradicted if above 0.",
        accuracy.averaged_weights,
    ),
    Claim(
        "5.4.1",
        "Latent search at test time improves generalisation (LPN: 7.75 to 15.5 %).",
        "Its gain over no step, at the most steps: supported if an interval is above 0,"
        " contradicted if all are below 1 point.",
        accuracy.search_helps,
    ),
    Claim(
        "5.4.2",
        "A contrastive loss makes contexts that generalise better.",
        "With against without, all else equal: supported if an interval is above 0, contradicted if"
        " all are below 1 point.",
        accuracy.contrastive_helps,
    ),
    Claim(
        "5.4.3",
        "A pretrained decoder is the better start.",
        "Pretrained against from scratch, all else equal: supported if an interval is above 0,"
        " contradicted if all are below 1 point.",
        accuracy.pretraining_helps,
    ),
)
NOTE = (
    f"Brackets are 95 % intervals: of pass@1 by {OVER_TASKS}; of differences in pass@1 by {PAIRED};"
    f" of those in validation, where a pair lacks a score, by {UNPAIRED}; of measures by {STUDENT};"
    " of rank correlations by Bonett and Wright's method. No claim is corrected for their number."
)


def decide(views: Sequence[RunView], baseline: str | None = None) -> list[tuple[Claim, Finding]]:
    """Return each claim with its verdict and evidence, in the discussion's order.

    Of the runs on the `baseline`'s sources: a control on other tasks speaks of these.
    """
    case = Case(_on_its_sources(views, baseline), baseline)
    return [(claim, claim.decide(case)) for claim in CLAIMS]


def _on_its_sources(views: Sequence[RunView], baseline: str | None) -> list[RunView]:
    sources = {asked(view)[1] for view in views if view.experiment == baseline}
    return [view for view in views if not sources or asked(view)[1] in sources]


def claims(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of claims, by the runs on the `baseline`'s sources."""
    rows = [
        {
            **{"section": claim.section, "claim": claim.text, "verdict": found.verdict},
            **{"evidence": found.evidence, "rule": claim.rule},
        }
        for claim, found in decide(views, baseline)
    ]
    numbers = pd.DataFrame(rows)
    text = numbers.rename(columns=str.capitalize)
    some = len(_on_its_sources(views, baseline)) < len(views)
    left = (f"Of runs on the sources of {baseline} alone.",) if some else ()
    return Table(numbers, text, (*tally(numbers["verdict"].tolist()), *left, NOTE))


def tally(verdicts: Sequence[str]) -> tuple[str]:
    """Return how many claims have each verdict, in a sentence."""
    counts = pd.Series(list(verdicts)).value_counts()
    words = ", ".join(f"{counts.get(v, 0)} {v}" for v in VERDICTS)
    return (f"Of {len(verdicts)} claims of the discussion: {words}.",)
