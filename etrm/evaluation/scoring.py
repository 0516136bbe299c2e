"""pass@k with its denominators, and the Kaggle submission."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from etrm.evaluation.voting import to_array, vote

if TYPE_CHECKING:
    from etrm.arc.task import Task

CREDIT_RULES = ("task_fraction", "all_tests")


ATTEMPTS = 2


_NO_ANSWER = [[0]]  # what a submission holds where no grid was predicted


_NEVER = np.iinfo(np.int64).max  # rank of a truth that nobody predicted


Grid = tuple[int, int, bytes]  # height, width, row-major colours


def score(
    predictions: pd.DataFrame,
    tasks: Sequence[Task],
    *,
    ks: Sequence[int],
    bootstrap_samples: int,
    seed: int,
    variants: int,
) -> dict[str, Any]:
    """pass@k by both credit rules, with every count that a reader needs to judge it.

    `tasks` are the tasks *asked for*: each stays in the denominator whether it was predicted or
    not. Only a task without any labelled test output leaves it (and is counted). `variants` is the
    number of variants asked for per query.

    Credit rules: `task_fraction` gives a task the fraction of its labelled test outputs hit in the
    top k (TRM, ARC Prize code); `all_tests` gives 1 only if all are hit (ARC's definition). `ci95`
    is the percentile bootstrap over tasks; where every task has the same credit 0 or 1, for which
    the bootstrap has no width, it is the exact (Clopper-Pearson) interval: see `ci95_method`.

    Raises ValueError for predictions of a task or query that was not asked for, and for two rows of
    one (task, query, variant).
    """
    _check(predictions, tasks)
    ranked = vote(predictions)
    hit = _hits(ranked, _truths(tasks))
    won = ranked.loc[hit]
    outputs = zip(won["task"].tolist(), won["query"].tolist(), strict=True)
    best_rank = dict(zip(outputs, won["rank"].tolist(), strict=True))  # one true grid an output
    credit = _credits(tasks, best_rank, ks)  # [task, k, rule]
    numbers = _with_intervals(credit, bootstrap_samples, seed)
    passes = {
        str(k): {rule: numbers[i][j] for j, rule in enumerate(CREDIT_RULES)}
        for i, k in enumerate(ks)
    }
    counts = _counts(predictions, tasks, variants)
    single = _single_variant(ranked, hit, tasks)
    return {
        "pass": passes,
        **counts,
        "single_variant_exact": single,
        "voting_gain": _voting_gain(passes, single["value"], counts["partial"]),
        "bootstrap": {"samples": bootstrap_samples, "seed": seed},
        "metrics": {
            **{f"ARC/pass@{k}": passes[str(k)]["task_fraction"]["value"] for k in ks},
            "all.exact_accuracy": single["value"],
            "all.accuracy": _mean(predictions, "token_accuracy"),
            "all.steps": _mean(predictions, "steps"),
        },
    }


def submission(
    predictions: pd.DataFrame, tasks: Sequence[Task]
) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Kaggle form: {task: [{"attempt_1": grid, "attempt_2": grid}, one per test input]}.

    A single candidate is given twice (as TRM does); without any, both attempts are [[0]]. So is a
    candidate of no cells, which TRM gives as [] although no grid is empty: each grid here is valid.
    """
    ranked = vote(predictions)
    best: dict[tuple[str, int], list[list[list[int]]]] = {}
    columns = ("task", "query", "height", "width", "grid")
    top = ranked.loc[ranked["rank"] <= ATTEMPTS]
    for task_id, query, *grid in zip(*(top[name].tolist() for name in columns), strict=True):
        answer = to_array(*grid).tolist() if grid[0] and grid[1] else _NO_ANSWER
        best.setdefault((task_id, query), []).append(answer)
    answers: dict[str, list[dict[str, list[list[int]]]]] = {}
    for task in tasks:
        answers[task.id] = []
        for query in range(len(task.queries)):
            grids = best.get((task.id, query), [_NO_ANSWER])
            grids = grids + [grids[0]] * (ATTEMPTS - len(grids))
            answers[task.id].append({f"attempt_{i}": grid for i, grid in enumerate(grids, 1)})
    return answers


def _check(predictions: pd.DataFrame, tasks: Sequence[Task]) -> None:
    queries = {task.id: len(task.queries) for task in tasks}
    if len(queries) != len(tasks):
        raise ValueError(f"{len(tasks)} tasks asked for, {len(queries)} distinct ids among them")
    pairs = predictions[["task", "query"]].drop_duplicates()
    for task, query in zip(pairs["task"], pairs["query"], strict=True):
        if task not in queries:
            raise ValueError(f"predictions hold task {task!r}, which was not asked for")
        if not 0 <= query < queries[task]:
            raise ValueError(
                f"predictions hold query {query} of task {task!r}, which has {queries[task]}"
            )
    repeated = predictions.duplicated(["task", "query", "variant"])
    if repeated.any():
        row = predictions.loc[repeated].iloc[0]
        raise ValueError(
            f"{int(repeated.sum())} repeated rows, the first: task {row['task']!r}, query "
            f"{row['query']}, variant {row['variant']}; each may be predicted once"
        )


def _truths(tasks: Sequence[Task]) -> dict[tuple[str, int], Grid]:
    """The labelled test outputs."""
    truths = {}
    for task in tasks:
        for query, pair in enumerate(task.queries):
            if pair.output is not None:
                grid = np.ascontiguousarray(pair.output, dtype=np.uint8)
                truths[task.id, query] = (grid.shape[0], grid.shape[1], grid.tobytes())
    return truths


def _hits(ranked: pd.DataFrame, truths: dict[tuple[str, int], Grid]) -> np.ndarray:
    """Whether each candidate is the true output, bool [candidates]."""
    columns = ("task", "query", "height", "width", "grid")
    rows = zip(*(ranked[name].tolist() for name in columns), strict=True)
    return np.fromiter(
        (truths.get((task, query)) == (h, w, grid) for task, query, h, w, grid in rows),
        dtype=bool,
        count=len(ranked),
    )


def _credits(
    tasks: Sequence[Task], best_rank: dict[tuple[str, int], int], ks: Sequence[int]
) -> np.ndarray:
    """Credit of each task that has a labelled test output, float64 [task, k, rule]."""
    limits = np.asarray(ks, dtype=np.int64)
    rows = []
    for task in tasks:
        labelled = [q for q, pair in enumerate(task.queries) if pair.output is not None]
        if labelled:
            ranks = np.array([best_rank.get((task.id, q), _NEVER) for q in labelled])
            solved = ranks[:, None] <= limits  # [query, k]
            rows.append(np.stack([solved.mean(0), solved.all(0)], axis=-1))
    return np.array(rows).reshape(len(rows), len(ks), len(CREDIT_RULES))


def _with_intervals(credit: np.ndarray, samples: int, seed: int) -> list[list[dict[str, Any]]]:
    """numerator, denominator, value and 95 % interval of each [k][rule]."""
    n, n_ks, n_rules = credit.shape
    flat = credit.reshape(n, n_ks * n_rules)
    low_high = np.zeros((2, n_ks * n_rules))
    if n and samples:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n, np.full(n, 1.0 / n), size=samples)  # times each task is drawn
        low_high = np.percentile(drawn @ flat / n, [2.5, 97.5], axis=0)
    numbers = []
    for column in range(flat.shape[1]):
        values = flat[:, column]
        one: dict[str, Any] = {
            "numerator": float(values.sum()),
            "denominator": n,
            "value": float(values.mean()) if n else None,
            "ci95": [float(bound) for bound in low_high[:, column]] if n and samples else None,
            "ci95_method": "bootstrap" if n and samples else None,
        }
        if one["ci95"] and np.all(values == values[0]) and values[0] in (0.0, 1.0):
            other = 0.025 ** (1.0 / n)
            one["ci95"] = [0.0, 1.0 - other] if values[0] == 0.0 else [other, 1.0]
            one["ci95_method"] = "exact"
        numbers.append(one)
    return [numbers[i * n_rules : (i + 1) * n_rules] for i in range(n_ks)]


def _counts(predictions: pd.DataFrame, tasks: Sequence[Task], variants: int) -> dict[str, Any]:
    """What was asked for and what was there. A task is evaluated once all its queries are."""
    per_query = predictions.groupby(["task", "query"], observed=True).size()
    predicted = set(per_query.index)
    outputs = [(task.id, q) for task in tasks for q in range(len(task.queries))]
    labelled = sum(pair.output is not None for task in tasks for pair in task.queries)
    evaluated = sum(
        bool(task.queries) and all((task.id, q) in predicted for q in range(len(task.queries)))
        for task in tasks
    )
    unlabelled_tasks = sum(all(pair.output is None for pair in task.queries) for task in tasks)
    not_fitting = 0
    if "fits" in predictions:
        misfit = predictions["fits"].astype("boolean").eq(False).fillna(False)
        not_fitting = len(predictions.loc[misfit, ["task", "query"]].drop_duplicates())
    return {
        "tasks_asked": len(tasks),
        "tasks_evaluated": evaluated,
        "tasks_unlabelled": unlabelled_tasks,
        "partial": evaluated < len(tasks),
        "test_outputs": len(outputs),
        "test_outputs_predicted": sum(output in predicted for output in outputs),
        "test_outputs_unlabelled": len(outputs) - labelled,
        "outputs_not_fitting_canvas": not_fitting,
        "predictions": len(predictions),
        "variants": variants,
        "variants_used_mean": float(per_query.mean()) if len(per_query) else None,
    }


def _single_variant(ranked: pd.DataFrame, hit: np.ndarray, tasks: Sequence[Task]) -> dict[str, Any]:
    """Share of individual predictions of labelled outputs that are right, before any voting."""
    truths = _truths(tasks)
    rows = zip(ranked["task"].tolist(), ranked["query"].tolist(), strict=True)
    labelled = np.fromiter((row in truths for row in rows), dtype=bool, count=len(ranked))
    votes = ranked["count"].to_numpy()
    right, total = int(votes[hit].sum()), int(votes[labelled].sum())
    return {"numerator": right, "denominator": total, "value": right / total if total else None}


def _voting_gain(
    passes: dict[str, Any], single: float | None, partial: bool
) -> dict[str, float | None]:
    """pass@1 (task_fraction) against single-variant exact match.

    Undefined (None) for a partial evaluation: its pass@1 counts the tasks that are missing.
    """
    first = passes["1"]["task_fraction"]["value"] if "1" in passes else None
    if first is None or single is None or partial:
        return {"difference": None, "ratio": None}
    return {"difference": first - single, "ratio": first / single if single else None}


def _mean(predictions: pd.DataFrame, column: str) -> float | None:
    if column not in predictions:
        return None
    values = pd.to_numeric(predictions[column]).dropna()
    return float(values.mean()) if len(values) else None
