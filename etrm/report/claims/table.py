"""The discussion's claims, each with the numbers of this study that support or contradict it.

The claims are those of the discussion of the original ETRM, in its order. Each has an explicit rule
over the runs of a study, above the function that decides by it (`generalisation.py`, `training.py`,
`remedies.py`); where its runs are missing, or their intervals hold both answers, it is not decided.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

# Imported for the claims that they enter.
from etrm.report.claims import case, generalisation, remedies, training  # noqa: F401
from etrm.report.claims.case import VERDICTS, Case, Claim, Finding
from etrm.report.estimates import OVER_TASKS, PAIRED, STUDENT, UNPAIRED
from etrm.report.formats import Table
from etrm.report.run_view import RunView, asked

CLAIMS = tuple(sorted(case.CLAIMS, key=lambda claim: claim.section))
NOTE = (
    f"Brackets are 95 % intervals: of pass@1 by {OVER_TASKS}; of differences in pass@1 by {PAIRED};"
    f" of those in validation, where a pair lacks a score, by {UNPAIRED}; of measures by {STUDENT};"
    " of rank correlations by Bonett and Wright's method. No claim is corrected for their number."
)


def decide(views: Sequence[RunView], baseline: str | None = None) -> list[tuple[Claim, Finding]]:
    """Return each claim with its verdict and evidence, in the discussion's order.

    Of the runs on the `baseline`'s sources: a control on other tasks speaks of these.
    """
    runs = Case(_on_its_sources(views, baseline), baseline)
    return [(claim, claim.decide(runs)) for claim in CLAIMS]


def _on_its_sources(views: Sequence[RunView], baseline: str | None) -> list[RunView]:
    sources = {asked(view)[1] for view in views if view.experiment == baseline}
    return [view for view in views if not sources or asked(view)[1] in sources]


def claims(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of claims, by the runs on the `baseline`'s sources."""
    columns = ["section", "claim", "verdict", "evidence", "rule"]
    found = decide(views, baseline)
    rows = [(claim.section, claim.text, f.verdict, f.evidence, claim.rule) for claim, f in found]
    numbers = pd.DataFrame(rows, columns=columns)
    text = numbers.rename(columns=str.capitalize)
    some = len(_on_its_sources(views, baseline)) < len(views)
    left = (f"Of runs on the sources of {baseline} alone.",) if some else ()
    return Table(numbers, text, (*tally(numbers["verdict"].tolist()), *left, NOTE))


def tally(verdicts: Sequence[str]) -> tuple[str]:
    """Return how many claims have each verdict, in a sentence."""
    words = ", ".join(f"{verdicts.count(each)} {each}" for each in VERDICTS)
    return (f"Of {len(verdicts)} claims of the discussion: {words}.",)
