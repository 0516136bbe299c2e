"""Scores of refinement: pass@k after each number of steps, likelihoods of demos, and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from etrm.arc.task import Task
from etrm.evaluation.pass_at_k import ATTEMPTS, pass_rates
from etrm.evaluation.voting import vote

# By method and number of steps: {"seconds": …, "gflop": …}
Costs = Mapping[str, Mapping[int, Mapping[str, float]]]


def score_methods(rows: pd.DataFrame, tasks: Sequence[Task], costs: Costs) -> dict[str, Any]:
    """Return the scores of each method after each number of steps, `{method: {"50": {…}}}`.

    `rows`: those of `refinement.parquet`. `pass` and `ranks` are as in `score.json`, with every
    task of `tasks` in the denominator. Likelihoods are means over the first attempts of all
    variants. `costs`: of all questions together.
    """
    return {
        method: {
            str(steps): score_rows(_only(rows, method, steps), tasks) | dict(cost)
            for steps, cost in by_steps.items()
        }
        for method, by_steps in costs.items()
    }


def score_rows(rows: pd.DataFrame, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the scores of one method after one number of steps."""
    first = rows[rows["attempt"] == 1]
    right, solved = first["correct"].astype("boolean"), first["demos_solved"] == 1.0
    ranks = ranks_of(rows, tasks)
    return {
        "pass": pass_rates(ranks, range(1, ATTEMPTS + 1)),
        "likelihood": float(first["likelihood"].mean()),
        "likelihood_start": float(first["likelihood_start"].mean()),
        # Answers right of those whose demos all are, and of the others.
        "right_where_demos_solved": _share(right[solved]),
        "right_elsewhere": _share(right[~solved]),
        "answers": len(first),
        "ranks": ranks,
    }


def ranks_of(rows: pd.DataFrame, tasks: Sequence[Task]) -> dict[str, list[int | None]]:
    """Return the rank of the truth of each labelled test output; null where nobody found it."""
    ranked = vote_attempts(rows)
    found = {
        (task, query, height, width, bytes(grid)): int(rank)
        for task, query, height, width, grid, rank in ranked[
            ["task", "query", "height", "width", "grid", "rank"]
        ].itertuples(index=False, name=None)
    }
    ranks: dict[str, list[int | None]] = {}
    for task in tasks:
        for number, pair in enumerate(task.queries):
            if pair.output is not None:
                grid = (*pair.output.shape, pair.output.tobytes())
                ranks.setdefault(task.id, []).append(found.get((task.id, number, *grid)))
    return ranks


def vote_attempts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the ranked candidates of every (task, query), as `vote` does.

    First attempts of all variants vote first, then second ones, which only add candidates behind
    those.
    """
    votes = [vote(rows[rows["attempt"] == n]) for n in range(1, ATTEMPTS + 1)]
    ranked = pd.concat(votes).drop_duplicates(["task", "query", "height", "width", "grid"])
    ranked["rank"] = ranked.groupby(["task", "query"]).cumcount() + 1
    return ranked


def _only(rows: pd.DataFrame, method: str, steps: int) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["steps"] == steps)]


def _share(right: pd.Series) -> dict[str, Any]:
    known = right.dropna()
    hits, total = int(known.sum()), len(known)
    return {"numerator": hits, "denominator": total, "value": hits / total if total else None}
