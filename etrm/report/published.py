"""Published results that a study is read beside: the table `published`, and lines in figures.

None of them is a number of ours: each is marked as published and cites its source. An interval is
given where the source says over how many tasks its score is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from etrm.evaluation.pass_at_k import INTERVAL
from etrm.evaluation.statistics import clopper_pearson
from etrm.report.formats import NONE, Table
from etrm.report.run_view import RunView

ARC1 = "ARC-AGI-1 evaluation"
SUBSET = "ARC-AGI-1 evaluation, 32 tasks"
TRAINING = "ARC-AGI-1 training"
TRM, LPN = "arXiv 2510.04871", "arXiv 2411.08706"
TINY, ETRM = "N8Programs, ARC Tiny Transformer", "github.com/bdsaglam/etrm"
SPLITS = {  # by what an evaluation task's demos have touched
    "strict": "held out",
    "transductive": "evaluation demos trained on",
    "decoder": "evaluation demos seen by the decoder",
    "adapted": "weights adapted to each task's demos",
    "training": "training tasks",
}


@dataclass(frozen=True)
class Published:
    """One published number."""

    name: str  # of the model, as its figures and tables show it
    benchmark: str
    metric: str  # `pass@1`, `pass@2`, `accuracy` (attempts not stated), or a metric of training
    value: float  # fractions from 0 to 1; of a variance as it is
    source: str  # arXiv id, or repository
    split: str = "strict"  # one of `SPLITS`
    tasks: int | None = None  # in the denominator; None: not stated

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval over the tasks (Clopper-Pearson); None where none are stated."""
        return None if self.tasks is None else clopper_pearson(self.value * self.tasks, self.tasks)


VARIANCE = "train/encoder_cross_sample_var"
EXACT = "train/exact_accuracy"
TINY_7M, TINY_50M = (f"ARC Tiny Transformer, {size} M parameters" for size in (7, 50))
TINY_ADAPTED = "ARC Tiny Transformer, test-time training"
DETERMINISTIC, VARIATIONAL, RECURRENT = (
    f"original ETRM, {kind}" for kind in ("deterministic", "variational", "ETRM-TRM")
)
TRM_155K, TRM_518K = (f"TRM by the original ETRM's authors, {n},000 steps" for n in (155, 518))

PUBLISHED = (
    Published("TRM", ARC1, "pass@2", 0.45, TRM, "transductive", 400),
    Published(TRM_155K, ARC1, "pass@1", 0.3738, ETRM, "transductive", 400),
    Published(TRM_518K, ARC1, "pass@1", 0.4175, ETRM, "transductive", 400),
    Published("LPN, no search", ARC1, "pass@2", 0.0775, LPN, tasks=400),
    Published("LPN, latent search", ARC1, "pass@2", 0.155, LPN, tasks=400),
    Published(TINY_7M, ARC1, "pass@1", 0.044, TINY),
    Published(TINY_50M, ARC1, "pass@1", 0.09, TINY),
    Published(TINY_ADAPTED, ARC1, "accuracy", 0.4775, TINY, "adapted"),
    Published("original ETRM, best run", ARC1, "pass@1", 0.0225, ETRM, "decoder", 400),
    Published("original ETRM, best run", ARC1, "pass@2", 0.025, ETRM, "decoder", 400),
    *(
        number
        for name, exact, variance in (
            (DETERMINISTIC, 0.7891, 0.357),
            (VARIATIONAL, 0.4062, 3.33),
            (RECURRENT, 0.5117, 0.146),
        )
        for number in (
            Published(name, SUBSET, "pass@1", 0.0, ETRM, "decoder", 32),
            Published(name, TRAINING, EXACT, exact, ETRM, "training"),
            Published(name, TRAINING, VARIANCE, variance, ETRM, "training"),
        )
    ),
    Published(TRM_155K, TRAINING, EXACT, 0.925, ETRM, "training"),
    Published(TRM_518K, TRAINING, EXACT, 0.9844, ETRM, "training"),
)
NOTES = (
    "All numbers are published ones, of other code and hardware; none was measured here.",
    f"Brackets are 95 % intervals ({INTERVAL}) that we computed from the value and the number of"
    f" tasks; {NONE} where the source does not state that number.",
    "The original ETRM's decoder was initialised from weights that had seen the demos of evaluation"
    " tasks, and its 0 % are of 32 tasks; accuracy: the number of attempts is not stated.",
)


def find(metric: str, benchmark: str = ARC1, split: str | None = None) -> list[Published]:
    """Return the numbers of a metric on a benchmark (of one of `SPLITS`), in order."""
    of = (p for p in PUBLISHED if (p.metric, p.benchmark) == (metric, benchmark))
    return [p for p in of if split in (None, p.split)]


def published(views: Sequence[RunView] = (), baseline: str | None = None) -> Table:
    """Return the table of published numbers, which no run and no `baseline` changes."""
    rows = []
    for each in PUBLISHED:
        low, high = each.interval or (None, None)
        row = (each.name, each.benchmark, each.split, each.metric, each.value, low, high)
        rows.append((*row, each.tasks, each.source))
    limits = ("published", "published_low", "published_high")
    columns = ["name", "benchmark", "split", "metric", *limits, "tasks", "source"]
    text = pd.DataFrame(
        {
            "Model": [each.name for each in PUBLISHED],
            "Benchmark": [each.benchmark for each in PUBLISHED],
            "Evaluation tasks": [SPLITS[each.split] for each in PUBLISHED],
            "Metric": [each.metric for each in PUBLISHED],
            "Published value": [value_text(each) for each in PUBLISHED],
            "Source": [each.source for each in PUBLISHED],
        }
    )
    return Table(pd.DataFrame(rows, columns=columns), text, NOTES)


def value_text(each: Published) -> str:
    """Render `7.75 % [5.3, 10.8] (of 400)`, or a variance as it is."""
    if each.metric == VARIANCE:
        return f"{each.value:.3g}"
    shown = f"{100 * each.value:.2f}".rstrip("0").rstrip(".") + " %"
    if each.interval is None:
        return shown
    low, high = (100 * limit for limit in each.interval)
    return f"{shown} [{low:.1f}, {high:.1f}] (of {each.tasks})"
