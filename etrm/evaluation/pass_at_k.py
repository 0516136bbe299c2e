"""pass@k with its denominators, and the Kaggle submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from etrm.evaluation.statistics import clopper_pearson
from etrm.evaluation.voting import to_array, vote

if TYPE_CHECKING:
    from etrm.arc.task import Task

CREDIT_RULES = ("task_fraction", "all_tests")
RULES_IN_WORDS = ("mean over a task's tests", "all tests right")
ATTEMPTS = 2  # of a submission, for each test input
_NO_ANSWER = [[0]]  # in a submission, where no grid was predicted
_NEVER = np.iinfo(np.int64).max  # rank of a truth that no variant predicted
INTERVAL = "Clopper-Pearson"

Grid = tuple[int, int, bytes]  # height, width, row-major colours
Submission = dict[str, list[dict[str, list[list[int]]]]]  # Kaggle's form
Ranks = Mapping[str, Sequence[int | None]]  # by task: of each labelled test output's truth


def score(
    predictions: pd.DataFrame,
    tasks: Sequence[Task],
    *,
    ks: Sequence[int],
    variants: int,
) -> dict[str, Any]:
    """Return pass@k by both credit rules, with every count that a reader needs to judge it.

    `tasks` are the tasks *asked for*: each stays in the denominator whether it was predicted or
    not. Only a task without any labelled test output leaves it (and is counted). `variants` is the
    number of variants asked for per query.

    Credit rules: `task_fraction` gives a task the fraction of its labelled test outputs hit in the
    top k (TRM, ARC Prize code); `all_tests` gives 1 only if all are hit (ARC's definition). `ci95`
    is over tasks (`etrm.evaluation.statistics`). `ranks`, from which credits follow at every k,
    hold for each labelled test output the rank of the truth among its candidates, or null. `rules`
    has the tasks and their summed `task_fraction` at each k, by rule, of tasks whose rule is known.

    Raises `ValueError` for predictions of a task or query that was not asked for, and for two rows
    of one (task, query, variant).
    """
    _check(predictions, tasks)
    truths = _truths(tasks)
    ranked = vote(predictions)
    ranks, hit = candidate_ranks(ranked, truths)
    outputs = zip(ranked["task"].tolist(), ranked["query"].tolist(), strict=True)
    labelled = np.array([output in truths for output in outputs], dtype=bool)
    passes = pass_rates(ranks, ks)
    counts = _counts(predictions, tasks, variants)
    votes = ranked["count"].to_numpy()  # predictions behind each candidate
    right, total = int(votes[hit].sum()), int(votes[labelled].sum())
    single = {"numerator": right, "denominator": total, "value": right / total if total else None}
    return {
        "pass": passes,
        **counts,
        "single_variant_exact": single,  # of predictions one by one, before any vote
        "voting_gain": _voting_gain(passes, single["value"], counts["partial"]),
        "metrics": {
            **{f"ARC/pass@{k}": passes[str(k)]["task_fraction"]["value"] for k in ks},
            "all.exact_accuracy": single["value"],
            "all.accuracy": _mean(predictions, "token_accuracy"),
            "all.lm_loss": _mean(predictions, "lm_loss"),
            "all.q_halt_loss": _mean(predictions, "q_halt_loss"),
            "all.q_halt_accuracy": _mean(predictions, "q_halt_right"),
            "all.steps": _mean(predictions, "steps"),
        },
        "rules": _by_rule(ranks, tasks, ks),
        "ranks": ranks,
    }


def candidate_ranks(
    ranked: pd.DataFrame, truths: Mapping[tuple[str, int], Grid | None]
) -> tuple[dict[str, list[int | None]], np.ndarray]:
    """Return the rank of each truth among the candidates of `vote`, and which of these are right.

    `truths` by (task, query), None for one that no candidate is; ranks by task, bool [candidate].
    """
    outputs = list(zip(ranked["task"].tolist(), ranked["query"].tolist(), strict=True))
    grids = zip(*(ranked[name].tolist() for name in ("height", "width", "grid")), strict=True)
    pairs = zip(outputs, grids, strict=True)
    hit = np.array([truths.get(output) == grid for output, grid in pairs], dtype=bool)
    # One true grid an output: no candidate of it can be hit twice.
    best_rank = {outputs[i]: int(ranked["rank"].iloc[i]) for i in np.flatnonzero(hit)}
    ranks: dict[str, list[int | None]] = {}
    for task_id, query in truths:  # in the order of tasks
        ranks.setdefault(task_id, []).append(best_rank.get((task_id, query)))
    return ranks, hit


def pass_rates(ranks: Ranks, ks: Sequence[int]) -> dict[str, Any]:
    """Return pass@k by both credit rules, with numerator, denominator and interval of each."""
    credit = credits(ranks, ks)
    return {
        str(k): {rule: _number(credit[:, i, j]) for j, rule in enumerate(CREDIT_RULES)}
        for i, k in enumerate(ks)
    }


def credits(ranks: Ranks, ks: Sequence[int]) -> np.ndarray:
    """Return the credit of each task at each k by each rule, float64 [task, k, rule]."""
    rows = []
    for of_task in ranks.values():
        known = np.array([_NEVER if rank is None else rank for rank in of_task])  # [output]
        solved = known[:, None] <= np.asarray(ks, dtype=np.int64)  # [output, k]
        rows.append(np.stack([solved.mean(0), solved.all(0)], axis=-1))  # [k, rule]
    return np.array(rows).reshape(len(rows), len(ks), len(CREDIT_RULES))


def _by_rule(ranks: Ranks, tasks: Sequence[Task], ks: Sequence[int]) -> dict[str, Any]:
    rules = pd.Series({t.id: t.rule.name for t in tasks if t.rule and t.id in ranks}, dtype=object)
    found = {}
    for rule, own in rules.groupby(rules):
        credit = credits({name: ranks[name] for name in own.index}, ks)[..., 0]  # [task, k]
        right = dict(zip(map(str, ks), credit.sum(axis=0).tolist(), strict=True))
        found[str(rule)] = {"tasks": len(own), "right": right}
    return found


def submission(predictions: pd.DataFrame, tasks: Sequence[Task]) -> Submission:
    """Return the Kaggle form: {task: [{"attempt_1": grid, "attempt_2": grid}] per test input}.

    A single candidate is given twice (as TRM does); without any, both attempts are [[0]]. So is a
    candidate of no cells, which TRM gives as [] although no grid is empty: each grid here is valid.
    """
    return top_attempts(vote(predictions), {task.id: len(task.queries) for task in tasks})


def top_attempts(ranked: pd.DataFrame, tests: Mapping[str, int]) -> Submission:
    """Return the Kaggle form of the candidates of `vote`; `tests`: test inputs by task."""
    best: dict[tuple[str, int], list[list[list[int]]]] = {}
    columns = ["task", "query", "height", "width", "grid"]
    top = ranked.loc[ranked["rank"] <= ATTEMPTS, columns]
    for task_id, query, *grid in top.itertuples(index=False, name=None):
        answer = to_array(*grid).tolist() if grid[0] and grid[1] else _NO_ANSWER
        best.setdefault((task_id, query), []).append(answer)

    def attempts(task_id: str, query: int) -> dict[str, list[list[int]]]:
        grids = best.get((task_id, query), [_NO_ANSWER])
        filled = grids + [grids[0]] * (ATTEMPTS - len(grids))
        return {f"attempt_{i}": grid for i, grid in enumerate(filled, 1)}

    return {name: [attempts(name, query) for query in range(n)] for name, n in tests.items()}


def _check(predictions: pd.DataFrame, tasks: Sequence[Task]) -> None:
    queries = {task.id: len(task.queries) for task in tasks}
    if len(queries) != len(tasks):
        raise ValueError(f"{len(tasks)} tasks asked for, {len(queries)} distinct ids among them")
    pairs = predictions[["task", "query"]].drop_duplicates()
    for task, query in pairs.itertuples(index=False, name=None):
        if task not in queries:
            raise ValueError(f"predictions hold task {task!r}, which was not asked for")
        if not 0 <= query < queries[task]:
            has = f"which has {queries[task]}"
            raise ValueError(f"predictions hold query {query} of task {task!r}, {has}")
    repeated = predictions.duplicated(["task", "query", "variant"])  # would vote twice
    if repeated.any():
        row = predictions.loc[repeated].iloc[0]
        raise ValueError(
            f"{int(repeated.sum())} repeated rows, the first: task {row['task']!r}, query "
            f"{row['query']}, variant {row['variant']}; each may be predicted once"
        )


def _truths(tasks: Sequence[Task]) -> dict[tuple[str, int], Grid]:
    """Return the labelled test outputs by (task id, query)."""
    grids = {(t.id, q): pair.output for t in tasks for q, pair in enumerate(t.queries)}
    return {
        output: (*grid.shape, np.ascontiguousarray(grid, dtype=np.uint8).tobytes())
        for output, grid in grids.items()
        if grid is not None
    }


def _number(credit: np.ndarray) -> dict[str, Any]:
    """Return numerator, denominator, value and 95 % interval of the credits [task]."""
    n, total = len(credit), float(credit.sum())
    return {
        "numerator": total,
        "denominator": n,
        "value": total / n if n else None,
        "ci95": list(clopper_pearson(total, n)) if n else None,
        "ci95_method": INTERVAL if n else None,
    }


def _counts(predictions: pd.DataFrame, tasks: Sequence[Task], variants: int) -> dict[str, Any]:
    """Count the asked and the predicted; a task is evaluated once all its queries are."""
    per_query = predictions.groupby(["task", "query"], observed=True).size()  # variants used
    predicted = set(per_query.index)
    outputs = {task.id: [(task.id, q) for q in range(len(task.queries))] for task in tasks}
    unlabelled = [[pair.output is None for pair in task.queries] for task in tasks]
    evaluated = sum(bool(of) and predicted.issuperset(of) for of in outputs.values())
    not_fitting = 0
    if "fits" in predictions:
        misfit = predictions["fits"].astype("boolean").eq(False).fillna(False)
        not_fitting = len(predictions.loc[misfit, ["task", "query"]].drop_duplicates())
    return {
        "tasks_asked": len(tasks),
        "tasks_evaluated": evaluated,
        "tasks_unlabelled": sum(all(of_task) for of_task in unlabelled),
        "partial": evaluated < len(tasks),
        "test_outputs": sum(map(len, outputs.values())),
        "test_outputs_predicted": len(predicted),
        "test_outputs_unlabelled": sum(map(sum, unlabelled)),
        "outputs_not_fitting_canvas": not_fitting,
        "predictions": len(predictions),
        "variants": variants,
        "variants_used_mean": float(per_query.mean()) if len(per_query) else None,
    }


def _voting_gain(
    passes: dict[str, Any], single: float | None, partial: bool
) -> dict[str, float | None]:
    """Compare pass@1 (task_fraction) with the exact match of single variants.

    None for a partial evaluation: its pass@1 counts the tasks that are missing.
    """
    first = passes["1"]["task_fraction"]["value"] if "1" in passes else None
    if first is None or single is None or partial:
        return {"difference": None, "ratio": None}
    return {"difference": first - single, "ratio": first / single if single else None}


def _mean(predictions: pd.DataFrame, column: str) -> float | None:
    if column not in predictions:
        return None
    values = predictions[column].dropna().astype(float)
    return float(values.mean()) if len(values) else None
