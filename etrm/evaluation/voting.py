"""Voting: predictions of all variants to ranked candidates.

A *candidate* is a distinct grid that at least one variant predicted for one (task, query).
Rules follow the evaluator of the TRM code (`evaluators/arc.py`): candidates are ordered by votes,
then by mean sigmoid(q_halt), both descending, ties in the order in which they were first predicted.

A predictions table has one row per (task, query, variant) and at least the columns `task`, `query`,
`height`, `width`, `grid` (bytes, row-major colours 0-9, already inverse-augmented and cropped; 0x0
is allowed) and `q_halt` (logit). Row order is prediction order.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa


def voting_rows(predictions: pa.Table) -> pd.DataFrame:
    """Return a table of predictions as a vote reads it: without the lists of ACT steps."""
    return predictions.drop_columns("accuracy_by_step").to_pandas()


def vote(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the ranked candidates of every (task, query), best first.

    Columns: task, query, rank (from 1), height, width, grid, count (votes) and q_mean (mean
    sigmoid(q_halt), 0-1; a logit that is not a number counts as 0).
    """
    keys = ["task", "query", "height", "width", "grid"]
    groups = predictions.groupby(keys, sort=False, observed=True, dropna=False)
    code = groups.ngroup().to_numpy()  # candidates numbered in the order first seen
    logit = predictions["q_halt"].to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):  # exp of a very negative logit is inf, and 1 / inf is 0
        confidence = np.nan_to_num(1.0 / (1.0 + np.exp(-logit)), nan=0.0)
    count = np.bincount(code)  # votes
    q_mean = np.bincount(code, weights=confidence) / count  # mean over the candidate's votes
    first = predictions.loc[~pd.Series(code, index=predictions.index).duplicated(), keys]
    query_code = first.groupby(["task", "query"], sort=False, observed=True).ngroup().to_numpy()
    order = np.lexsort((-q_mean, -count, query_code))  # stable: ties stay first seen first
    ranked = first.iloc[order].reset_index(drop=True)
    ranked["count"] = count[order]
    ranked["q_mean"] = q_mean[order]
    ranked.insert(2, "rank", ranked.groupby(query_code[order]).cumcount().to_numpy() + 1)
    return ranked


def with_arrays(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return predictions whose column `grid` holds arrays, uint8 [height, width], for people."""
    cells = zip(*(predictions[name] for name in ("height", "width", "grid")), strict=True)
    arrays = pd.Series([to_array(*each) for each in cells], predictions.index, dtype=object)
    return predictions.assign(grid=arrays)


def to_array(height: int, width: int, grid: bytes) -> np.ndarray:
    """Return the grid of one predictions row as uint8 [height, width]."""
    return np.frombuffer(grid, dtype=np.uint8).reshape(int(height), int(width))
