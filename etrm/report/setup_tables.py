"""The tables of an experiment section: `splits`, `design_space` and `hyperparameters`.

All from the resolved configuration and the counts in each `run.json` and `score.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from etrm.config.compare import flat
from etrm.report.estimates import by_experiment, settings
from etrm.report.formats import NONE, Columns, Table, number
from etrm.report.run_view import STAGES, RunView, asked, distinct

SET_BY_STAGES = ("train.steps", "train.tasks", "train.eval_", "train.target", "train.stop_")
MOST = 6  # values of a key that are shown one by one
SPLIT_COLUMNS = (
    "stage split sources experiments training_tasks puzzles questions validation_tasks"
    " held_out_tasks of_split test_outputs not_fitting variants held_out seen"
)


def _held_out_tasks(row: pd.Series) -> str:
    asked_tasks, whole = (number(name, ",.0f")(row) for name in ("held_out_tasks", "of_split"))
    return asked_tasks if whole in (asked_tasks, NONE) else f"{asked_tasks} of {whole}"


SPLIT_TEXT: Columns = {
    "Stage": "stage",
    "Split": "split",
    "Sources": "sources",
    "Experiments": number("experiments", ",.0f"),
    "Training tasks": number("training_tasks", ",.0f"),
    "Augmented puzzles": number("puzzles", ",.0f"),
    "Pairs asked about": number("questions", ",.0f"),
    "Validation tasks": number("validation_tasks", ",.0f"),
    "Held-out tasks": _held_out_tasks,
    "Test outputs": number("test_outputs", ",.0f"),
    "Too large for their canvas": number("not_fitting", ",.0f"),
    "Variants that vote": number("variants", ",.0f"),
    "Seen": lambda row: NONE if pd.isna(row["seen"]) else f"{row['seen']:.0f} ({row['held_out']})",
}


def splits(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return what runs were trained on and asked about, a row for each kind of run."""
    groups: dict[Any, list[RunView]] = {}
    for view in views:
        kind = (view.stage, *asked(view), view.setting("train.tasks"))
        groups.setdefault(kind, []).append(view)
    ordered = sorted(groups.values(), key=lambda mine: STAGES.index(mine[0].stage))
    numbers = pd.DataFrame(map(_split_row, ordered), columns=SPLIT_COLUMNS.split())
    notes = (
        "Counts, without error: tasks and their augmented puzzles; pairs that are asked about, in"
        " every puzzle; test outputs that exceed their canvas count as wrong. Seen: held-out tasks"
        " that have touched a weight, by id or by content, through parents too; – is not scored.",
    )
    return Table.of(numbers, SPLIT_TEXT, notes)


def _split_row(views: Sequence[RunView]) -> dict[str, Any]:
    scores = [view.score for view in views if view.score is not None]
    (split, sources), runs = asked(views[0]), [view.run for view in views]
    validation = [view.last("validation.tasks") for view in views]
    held_out = [score["held_out"] for score in scores]
    statuses = {one["status"] for one in held_out}
    weakest = next((s for s in ("seen", "not proven", "proven") if s in statuses), None)

    def most(records: Iterable[dict[str, Any]], key: str) -> Any:
        return max((record[key] for record in records if record.get(key) is not None), default=None)

    return {
        **{"stage": views[0].stage, "split": split},
        "sources": "all" if sources is None else " ".join(sources),
        "experiments": len({view.experiment for view in views}),
        "training_tasks": max((len(run["tasks"]) for run in runs if "tasks" in run), default=None),
        "puzzles": most(runs, "puzzles"),
        "questions": max((sum(r["lanes"].values()) for r in runs if "lanes" in r), default=None),
        "validation_tasks": max((n for n in validation if n is not None), default=None),
        "held_out_tasks": most(scores, "tasks_asked"),
        "of_split": most(scores, "tasks_of_split"),
        "test_outputs": most(scores, "test_outputs"),
        "not_fitting": most(scores, "outputs_not_fitting_canvas"),
        "variants": most(scores, "variants"),
        **{"held_out": weakest, "seen": most(held_out, "seen")},
    }


def design_space(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return every key in which experiments with an encoder differ, its values and the baseline's.

    The configuration of an experiment is that of its last stage.
    """
    runs = {name: mine[0] for name, mine in by_experiment(views).items() if not mine[0].is_trm}
    found = {name: settings(view) for name, view in runs.items()}
    if len({view.stage for view in runs.values()}) > 1:
        # What a stage sets, `stages` of the study, is no choice of an experiment.
        for name, each in found.items():
            found[name] = {k: v for k, v in each.items() if not k.startswith(SET_BY_STAGES)}
    rows, own = [], found.get(baseline or "", {})
    for key in distinct(key for each in found.values() for key in each):
        values = [_shown(each[key]) for each in found.values() if key in each]
        counts = pd.Series(values).value_counts(sort=False)
        if len(counts) > 1:
            row = {"key": key, "values": len(counts), "experiments": len(values)}
            row["explored"] = ", ".join(f"{value} ({n})" for value, n in counts.items())
            rows.append(row | {"baseline": _shown(own[key]) if key in own else NONE})
    numbers = pd.DataFrame(rows, columns=["key", "values", "explored", "experiments", "baseline"])
    columns = {"Dimension": "key", "Values (experiments)": "explored", "Baseline": "baseline"}
    notes = (f"Of {len(found)} experiments with an encoder; counts, without error.",)
    return Table.of(numbers, columns, notes)


def hyperparameters(views: Sequence[RunView], baseline: str | None = None) -> Table:
    """Return every setting of TRM's pretraining and of both stages of ETRM, side by side."""
    kinds: dict[str, Callable[[RunView], bool]] = {
        "TRM": lambda view: view.is_trm,
        "ETRM, overfit": lambda view: not view.is_trm and view.stage == "overfit",
        "ETRM, full": lambda view: not view.is_trm and view.stage == "full",
    }
    found: dict[str, dict[str, list[str]]] = {}  # by key and kind, without repetition
    for title, belongs in kinds.items():
        for view in filter(belongs, views):
            evaluation = {"evaluation": (view.score or {}).get("evaluation", {})}
            for key, value in (settings(view) | dict(flat(evaluation))).items():
                of = found.setdefault(key, {kind: [] for kind in kinds})
                of[title] = distinct([*of[title], _shown(value)])
    rows = [{"key": key, **{t: _values(of[t]) for t in kinds}} for key, of in found.items()]
    numbers = pd.DataFrame(rows, columns=["key", *kinds])
    notes = (
        "Settings as resolved, without error. Where experiments differ, all values, or their number"
        " (the table `design_space` has them).",
    )
    return Table(numbers, numbers.rename(columns={"key": "Setting"}), notes)


def _values(values: Sequence[str]) -> str:
    if len(values) > MOST:
        return f"{len(values)} values"
    return "; ".join(values) or NONE


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
