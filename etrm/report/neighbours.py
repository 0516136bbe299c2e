"""The table `neighbours`: the training tasks that a run sees as most like a held-out task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from etrm.report.formats import NONE, Table
from etrm.report.run_view import RunView
from etrm.storage.records import read_contexts

NEIGHBOURS = 3  # of each held-out task, in the CSV
COLUMNS = ["experiment", "stage", "seed", "task", "rule", "rank", "neighbour", "neighbour_rule"]


def neighbours(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of nearest neighbours; no experiment is compared with the `baseline`.

    Its numbers are the `NEIGHBOURS` training tasks that are nearest to each held-out task, by run:
    by the cosine of contexts from which the mean of all was taken. `chance`: the share of training
    tasks that have the rule of the held-out task; null where rules are not known.
    """
    parts = []
    for view in views:
        if view.contexts is None:
            continue
        frame = contexts_frame(view)
        asked, known = frame[frame["split"] == "evaluation"], frame[frame["split"] == "training"]
        if not len(asked) or not len(known):
            continue
        x, y = (np.stack(part["context"].to_list()) for part in (asked, known))
        middle = np.concatenate([x, y]).mean(axis=0)
        x, y = (each - middle for each in (x, y))
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12) for z in (x, y))
        cosine = x @ y.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS]
        rule, rules = asked["rule"].to_numpy(), known["rule"].to_numpy()
        chance = [float((rules == each).mean()) if each is not None else None for each in rule]
        for rank in range(nearest.shape[1]):
            at = nearest[:, rank]
            part = {
                **{"experiment": view.experiment, "stage": view.stage, "seed": view.seed},
                **{"task": asked["task"].to_numpy(), "rule": rule, "rank": rank + 1},
                **{"neighbour": known["task"].to_numpy()[at], "neighbour_rule": rules[at]},
                **{"cosine": cosine[np.arange(len(at)), at], "chance": chance},
            }
            parts.append(pd.DataFrame(part))
    empty = pd.DataFrame(columns=[*COLUMNS, "cosine", "chance"])
    numbers = pd.concat(parts, ignore_index=True) if parts else empty
    return Table(numbers, rendered(numbers), _notes(numbers))


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run: how often the nearest training task has the same rule."""
    rows = []
    nearest = table[table["rank"] == 1]
    for (name, seed), own in nearest.groupby(["experiment", "seed"], sort=False):
        known = own[own["rule"].notna()]
        same, chance = NONE, NONE
        if len(known):
            same = f"{100 * (known['rule'] == known['neighbour_rule']).mean():.0f} %"
            chance = f"{100 * known['chance'].astype(float).mean():.0f} %"
        cosine = f"{own['cosine'].mean():.2f}"
        rows.append((name, str(seed), str(len(own)), cosine, same, chance))
    words = ["Experiment", "Seed", "Held-out tasks", "Cosine", "Same rule", "By chance"]
    return pd.DataFrame(rows, columns=words)


def _notes(table: pd.DataFrame) -> tuple[str, ...]:
    if table.empty:
        return ("No run has contexts of held-out and of training tasks.",)
    return (
        "Of each held-out task, the training task with the nearest context: the mean cosine, and"
        " how often both have one rule, where rules are known. The CSV names the tasks.",
    )


def contexts_frame(view: RunView) -> pd.DataFrame:
    """Return `contexts.parquet` of a run, without tasks whose contexts are not finite numbers."""
    assert view.contexts is not None
    frame = read_contexts(view.contexts).to_pandas()
    return frame[[bool(np.isfinite(x).all()) for x in frame["context"]]].reset_index(drop=True)
