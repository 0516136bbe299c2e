"""The results table: one row per experiment and stage, numbers first, their rendering apart.

`results_table` gives numbers (fractions from 0 to 1, counts), for the CSV; `rendered` gives them as
text, which Markdown, LaTeX, HTML and the terminal show as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etrm.report.registry import TABLE_FORMATS
from etrm.report.run_view import STAGES, RunView, distinct
from etrm.storage.files import atomic_write

RULES = ("task_fraction", "all_tests")  # of credit, see `etrm.evaluation.pass_at_k`
ATTEMPTS = (1, 2)
NONE = "–"
# Words for a split and the held-out claim of the score; without a score, the split stands alone.
_SPLITS = {
    ("strict", "proven"): "strict: held out",
    ("strict", "not proven"): "strict, held-out: not proven",
    ("strict", "seen"): "strict, {seen:.0f} of {of:.0f} held-out tasks seen",
    ("transductive", "proven"): "transductive: no held-out task seen",
    ("transductive", "not proven"): "transductive, held-out: not proven",
    ("transductive", "seen"): "transductive: evaluation demos seen",
}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "±": r"$\pm$", "≥": r"$\geq$"},
}


def results(views: Sequence[RunView]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the results table as numbers and as text."""
    numbers = results_table(views)
    return numbers, rendered(numbers)


def results_table(views: Sequence[RunView]) -> pd.DataFrame:
    """Return one row per experiment and stage, in the order of `views`, over its seeds.

    A row holds the seeds that got so far: `pretrain` and `full` those whose run is there, `overfit`
    those without a full run, because they were stopped or because it has not finished. For m in
    `overfit_exact`, `train_exact` and pass@k by both credit rules: m is the mean over seeds, `m_sd`
    the sample standard deviation (from two seeds). pass@k also has `_numerator` (mean over seeds),
    `_denominator`, `_low` and `_high` (95 % interval of a single seed). Absent numbers are missing.
    """
    rows = []
    for name in distinct(view.experiment for view in views):
        mine = [view for view in views if view.experiment == name]
        of = {stage: [view for view in mine if view.stage == stage] for stage in STAGES}
        finished = {view.seed for view in of["full"]}  # seeds
        waiting = [view for view in of["overfit"] if view.seed not in finished]
        passed = [view for view in of["overfit"] if view.seed in finished]
        for group, overfit in ((of["pretrain"], []), (of["full"], passed), (waiting, waiting)):
            if group:
                rows.append(_row(group, overfit))
    return pd.DataFrame(rows, columns=_columns())


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """Return the results table as text, with column names for people."""
    columns: dict[str, Callable[[pd.Series], str]] = {
        "Experiment": lambda row: str(row["experiment"]),
        "Stage": lambda row: str(row["stage"]),
        "Context": lambda row: str(row["context"]),
        "Split": _split,
        "Seeds": lambda row: str(row["seeds"]),
        "Parameters": lambda row: _count(row["params"]),
        "Overfit exact match": lambda row: _percent(row, "overfit_exact"),
        "Gate": lambda row: row["gate"],
        "Train exact match": lambda row: _percent(row, "train_exact"),
        "pass@1": lambda row: _pass(row, "pass@1_task_fraction"),
        "pass@2": lambda row: _pass(row, "pass@2_task_fraction"),
        "pass@2, all tests": lambda row: _pass(row, "pass@2_all_tests"),
        "Tasks": lambda row: _of(row["tasks_evaluated"], row["tasks"]),
        "Variants": lambda row: _count(row["variants"]),
        "Status": lambda row: str(row["status"]),
    }
    rows = [row for _, row in table.iterrows()]
    return pd.DataFrame({name: [make(row) for row in rows] for name, make in columns.items()})


def _split(row: pd.Series, brief: bool = False) -> str:
    """Return the split with the held-out claim of the score; `brief` leaves out the usual."""
    counts = {"seen": row["held_out_seen"], "of": row["held_out_of"]}
    words = _SPLITS.get((row["split"], row["held_out"]), str(row["split"])).format(**counts)
    if brief and row["held_out"] != "not proven":
        words = words.split(":")[0]
    if pd.notna(row["held_out_answers"]) and row["held_out_answers"] > 0:
        words += f", test outputs of {row['held_out_answers']:.0f} seen"
    return words


def to_markdown(text: pd.DataFrame) -> str:
    """Return a Markdown table of rendered numbers."""
    cells = text.map(lambda cell: cell.replace("|", "\\|")).to_numpy().tolist()
    lines = ["| " + " | ".join(row) + " |" for row in (list(text.columns), *cells)]
    return "\n".join([lines[0], "|" + " --- |" * len(text.columns), *lines[1:], ""])


def to_latex(text: pd.DataFrame) -> str:
    """Return a `tabular` as wide as the text; needs booktabs and graphicx."""
    rows = [list(text.columns), *text.to_numpy().tolist()]
    head, *body = [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    lines = [r"\resizebox{\linewidth}{!}{%"]
    lines += [r"\begin{tabular}{" + "l" * len(text.columns) + "}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}%", "}", ""])


def to_text(table: pd.DataFrame) -> str:
    """Return aligned plain text for a terminal: the columns that decide."""
    text = rendered(table)
    text["Split"] = [_split(row, brief=True) for _, row in table.iterrows()]
    keep = ("Experiment", "Stage", "Split", "Seeds", "Overfit exact match", "Train exact match")
    text = text[[*keep, "pass@1", "pass@2", "Status"]]
    text.columns = pd.Index([name.replace(" exact match", " EM") for name in text.columns])
    cells = [list(text.columns), *text.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(text.columns))]  # in letters
    cells.insert(1, ["─" * width for width in widths])
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines) + "\n"


def to_html(text: pd.DataFrame) -> str:
    """Return a page with the table, for the report."""
    body = text.to_html(index=False, border=0, justify="left")
    return f'<!doctype html><meta charset="utf-8"><style>{_CSS}</style>{body}\n'


def write_table(numbers: pd.DataFrame, text: pd.DataFrame, stem: Path | str) -> list[Path]:
    """Write `<stem>.csv` (numbers), `.md`, `.tex` and `.html` (text), each whole or not at all."""
    render = {"md": to_markdown, "tex": to_latex, "html": to_html}
    paths = [Path(f"{stem}.{kind}") for kind in TABLE_FORMATS]
    for path, kind in zip(paths, TABLE_FORMATS, strict=True):
        content = numbers.to_csv(index=False) if kind == "csv" else render[kind](text)
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return paths


def escape_latex(text: str) -> str:
    """Return text that LaTeX shows as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def outcome(view: RunView) -> str:
    """Return how far the run got, in words; of a stopped one, its findings and numbers."""
    verdict, score = view.verdict, view.score
    if score is not None:
        if view.run.get("stopped_early") == "divergence":
            return "stopped: divergence"
        if score["partial"]:
            return f"partial: {score['tasks_evaluated']} of {score['tasks_asked']} tasks"
        return "evaluated"
    if verdict is not None and not verdict["passed"]:
        failed = [f["finding"] for f in verdict["diagnosis"] if f["severity"] == "fail"]
        exact, threshold = verdict["exact_accuracy"], verdict["threshold"]
        sign = "<" if exact < threshold else "≥"  # at or above it, a finding alone has stopped it
        compared = f"exact match {100 * exact:.1f} % {sign} {100 * threshold:g} %"
        return "stopped: " + ", ".join([*distinct(failed), compared])
    if view.stopped:
        return f"stopped: {view.run['stopped_early']}"
    if view.stage == "overfit":
        return "not judged" if verdict is None else "passed"
    if view.is_trm and view.run["split"] == "strict":
        return "initialises decoders"  # no embedding of a held-out task: nothing to evaluate
    return "not evaluated"


_CSS = (
    "body{font:13px sans-serif;margin:1em}table{border-collapse:collapse}"
    "th,td{padding:.4em .7em;border-bottom:1px solid #ddd;vertical-align:top;text-align:left}"
    "th{border-bottom:2px solid #444}td{min-width:5em}"
)


def _columns() -> list[str]:
    fixed = (
        "experiment stage kind context split held_out held_out_seen held_out_answers held_out_of"
    )
    fixed += " seeds params status gate gate_threshold"
    spreads = [f"{name}{part}" for name in ("overfit_exact", "train_exact") for part in ("", "_sd")]
    parts = ("", "_sd", "_numerator", "_denominator", "_low", "_high")
    passes = [f"pass@{k}_{rule}{part}" for k in ATTEMPTS for rule in RULES for part in parts]
    return [*fixed.split(), *spreads, *passes, "tasks", "tasks_evaluated", "partial", "variants"]


def _row(views: Sequence[RunView], overfit: Sequence[RunView]) -> dict[str, Any]:
    first = views[0]
    verdicts = [view.verdict for view in overfit if view.verdict is not None]
    scores = [view.score for view in views if view.score is not None]
    held_out = [score["held_out"] for score in scores]
    claims = {one["status"] for one in held_out}
    claims |= {"not proven" for view in views if view.run["unproven"]}
    shown = distinct(outcome(view) for view in views)
    row: dict[str, Any] = {
        "experiment": first.experiment,
        "stage": first.stage,
        "kind": first.run["kind"],
        "context": first.run.get("config", {}).get("context", {}).get("source", NONE),
        "split": first.run["split"],
        # The weakest claim of any seed, and the most that any of them has seen.
        "held_out": next((c for c in ("seen", "not proven", "proven") if c in claims), None),
        **{f"held_out_{key}": _extreme(max, held_out, key) for key in ("seen", "answers", "of")},
        "seeds": len(views),
        "params": first.run.get("num_params"),
        # An overfit run that passed has a row only while its full run is missing.
        "status": "; ".join(
            "passed, full run not finished" if words == "passed" else words for words in shown
        ),
        "gate": _gate(verdicts),
        "gate_threshold": verdicts[0]["threshold"] if verdicts else None,
        **_spread("overfit_exact", [verdict["exact_accuracy"] for verdict in verdicts]),
        **_spread("train_exact", [_train_exact(view) for view in views]),
        "tasks": _extreme(min, scores, "tasks_asked"),
        "tasks_evaluated": _extreme(min, scores, "tasks_evaluated"),
        "partial": any(score["partial"] for score in scores) if scores else None,
        "variants": _extreme(min, scores, "variants"),
    }
    for k in ATTEMPTS:
        for rule in RULES:
            found = [score["pass"][str(k)][rule] for score in scores if str(k) in score["pass"]]
            row |= _pass_numbers(f"pass@{k}_{rule}", found)
    return row


def _extreme(pick: Callable[..., Any], records: Sequence[dict[str, Any]], key: str) -> Any:
    return pick((record.get(key, 0) for record in records), default=None)


def _train_exact(view: RunView) -> float | None:
    """Return the last exact match over all episodes, else that of the last training samples."""
    evaluated = view.series("all.exact_accuracy")
    return float(evaluated.iloc[-1]) if len(evaluated) else view.final("train/exact_accuracy")


def _gate(verdicts: Sequence[dict[str, Any]]) -> str:
    if not verdicts:
        return NONE
    passed = sum(verdict["passed"] for verdict in verdicts)
    if passed in (0, len(verdicts)):  # all seeds agree
        return "passed" if passed else "stopped"
    return f"passed {passed} of {len(verdicts)}"


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    return {name: mean, f"{name}_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None}


def _pass_numbers(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers: dict[str, Any] = _spread(name, [one["value"] for one in found])
    if found:
        numbers[f"{name}_numerator"] = float(np.mean([one["numerator"] for one in found]))
        numbers[f"{name}_denominator"] = min(one["denominator"] for one in found)  # the weakest
    if len(found) == 1 and found[0]["ci95"]:  # over seeds there is a spread instead
        numbers[f"{name}_low"], numbers[f"{name}_high"] = found[0]["ci95"]
    return numbers


def _pass(row: pd.Series, name: str) -> str:
    """Render `2.3 % (9/400) [1.0, 3.8]`, or with several seeds `2.3 % ± 0.4 (9.3/400)`."""
    text = _percent(row, name)
    if pd.notna(row[f"{name}_denominator"]):
        partial = ", partial" if row["partial"] else ""
        text += f" ({row[f'{name}_numerator']:.4g}/{row[f'{name}_denominator']:.0f}{partial})"
    if pd.notna(row[f"{name}_low"]):
        text += f" [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
    return text


def _percent(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return NONE
    spread = row[f"{name}_sd"]
    return f"{100 * row[name]:.1f} %" + (f" ± {100 * spread:.1f}" if pd.notna(spread) else "")


def _count(value: float | None) -> str:
    return NONE if value is None or pd.isna(value) else f"{int(value):,}"


def _of(part: float | None, whole: float | None) -> str:
    """Render `400`, or `32 of 400`."""
    all_of_it = part == whole or _count(part) == NONE
    return _count(whole) if all_of_it else f"{_count(part)} of {_count(whole)}"
