"""The table `refinement`: pass@k against steps, guided by demos and not, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from etrm.evaluation.pass_at_k import ATTEMPTS, credits
from etrm.evaluation.statistics import difference_interval, mean_interval
from etrm.report.formats import NONE, Columns, Table, interval, number, points
from etrm.report.run_view import RunView, by_name, distinct

METHODS = {  # in the order of rows, in words
    "search": "latent search",
    "random": "random directions",
    "act_steps": "more ACT steps",
    "fine_tuning": "test-time training",
}
COLUMNS = (
    "experiment method steps seeds tasks pass@1 pass@1_low pass@1_high pass@2 pass@2_low"
    " pass@2_high gain gain_low gain_high likelihood_start likelihood solved solved_right"
    " unsolved unsolved_right seconds gflop"
)
NOTES = (
    "pass@k is the mean over a task's tests, of the attempts that the demos choose, voted on over"
    " variants; brackets are 95 % intervals. Gain: of pass@1 over that without a step, in points,"
    " paired over tasks.",
    "Demos: log-likelihood of their outputs, each read from the other demos' context, mean over"
    " cells. Right: answers, of those whose demos all came out exactly, and of the others.",
    "Seconds and GFLOP of an answer: FLOPs are the decoder's.",
)


TEXT: Columns = {
    "Experiment": "experiment",
    "Method": lambda row: METHODS[row["method"]],
    "Steps": "steps",
    "Seeds": "seeds",
    "Tasks": "tasks",
    "pass@1": interval("pass@1"),
    "pass@2": interval("pass@2"),
    "Gain, points": lambda row: points("gain")(row) if row["steps"] else NONE,
    "Demos, before → after": lambda row: (
        f"{row['likelihood_start']:.3f} → {row['likelihood']:.3f}".replace("-", "−")
    ),
    "Right where demos are": lambda row: _of(row["solved_right"], row["solved"]),
    "Right elsewhere": lambda row: _of(row["unsolved_right"], row["unsolved"]),
    "Seconds": number("seconds", ".2g"),
    "GFLOP": number("gflop", ".3g"),
}


def refinement(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return the table of refinement; nothing is compared with the `baseline`."""
    numbers = refinement_table(views)
    notes = ("No experiment names refinement.steps.",) if numbers.empty else NOTES
    return Table.of(numbers, TEXT, notes)


def refinement_table(views: Sequence[RunView]) -> pd.DataFrame:
    """Return a row for each experiment, method and number of steps, over seeds.

    `solved`, `unsolved`: answers whose demos all came out exactly, and the others; of them
    `_right` are correct.
    """
    refined = by_name(view for view in views if view.refinement is not None)
    rows = [r for name, mine in refined.items() for m in METHODS for r in _rows(name, m, mine)]
    return pd.DataFrame(rows, columns=COLUMNS.split())


def _rows(name: str, method: str, views: Sequence[RunView]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a method, of the seeds that have them with the same tasks."""
    found = [(v.refinement or {}).get("methods", {}).get(method, {}) for v in views]
    found = [by_steps for by_steps in found if by_steps]
    for steps in distinct(key for by_steps in found for key in by_steps):
        each = [by_steps[steps] for by_steps in found if steps in by_steps]
        credit, start = (stacked_credits([by[n] for by in found if n in by]) for n in (steps, "0"))
        if credit is None or start is None or credit.shape != start.shape:
            continue
        row: dict[str, Any] = {
            **{"experiment": name, "method": method, "steps": int(steps), "seeds": len(each)},
            **{"tasks": credit.shape[1], "gain": float((credit[..., 0] - start[..., 0]).mean())},
        }
        row["gain_low"], row["gain_high"] = difference_interval(credit[..., 0], start[..., 0])
        for k in range(ATTEMPTS):
            row[f"pass@{k + 1}"] = float(credit[..., k].mean())
            row[f"pass@{k + 1}_low"], row[f"pass@{k + 1}_high"] = mean_interval(credit[..., k])
        for kind, key in (("solved", "right_where_demos_solved"), ("unsolved", "right_elsewhere")):
            row[kind] = sum(one[key]["denominator"] for one in each)
            row[f"{kind}_right"] = sum(one[key]["numerator"] for one in each)
        for key in ("likelihood_start", "likelihood"):
            row[key] = float(np.mean([one[key] for one in each]))
        answers = sum(one["answers"] for one in each)
        for key in ("seconds", "gflop"):
            row[key] = sum(one[key] for one in each) / answers
        yield row


def stacked_credits(each: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Return the credits [seed, task, k] of one method and number of steps in each seed.

    None without tasks, or where seeds have others.
    """
    ranks = [one["ranks"] for one in each]
    if not ranks or not ranks[0] or any(list(one) != list(ranks[0]) for one in ranks):
        return None
    return np.stack([credits(one, range(1, ATTEMPTS + 1))[:, :, 0] for one in ranks])


def _of(right: int, total: int) -> str:
    return f"{100 * right / total:.0f} % of {total}" if total else NONE
