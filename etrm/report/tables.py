"""The results table: one row per experiment and stage, numbers first, their rendering apart.

`results_table` gives numbers (fractions from 0 to 1, counts) and is what the CSV holds; `rendered`
makes of it what a person reads, and Markdown, LaTeX and the terminal show exactly that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etrm.report.run_view import STAGES, RunView, distinct
from etrm.storage.files import atomic_write

RULES = {"task_fraction": "", "all_tests": "all tests"}
ATTEMPTS = (1, 2)
NONE = "–"
# What the status of a score says of its split. Without a score there is only what was meant.
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
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "±": r"$\pm$",
    "≥": r"$\geq$",
}


def results_table(views: Sequence[RunView]) -> pd.DataFrame:
    """One row per experiment and stage, in the order of `views`, with numbers over its seeds.

    A row holds the seeds that got so far: `pretrain` and `full` those whose run is there, `overfit`
    those without a full run, because they were stopped or because it has not finished. For m in
    `overfit_exact`, `train_exact` and pass@k by both credit rules: m is the mean over seeds, `m_sd`
    the sample standard deviation (from two seeds). pass@k also has `_numerator` (mean over seeds),
    `_denominator`, `_low` and `_high` (95 % interval of a single seed). Absent numbers are missing.
    """
    rows = []
    for name in distinct(view.experiment for view in views):
        of: dict[str, list[RunView]] = {stage: [] for stage in STAGES}
        for view in views:
            if view.experiment == name:
                of[view.stage].append(view)
        finished = {view.seed for view in of["full"]}
        waiting = [view for view in of["overfit"] if view.seed not in finished]
        passed = [view for view in of["overfit"] if view.seed in finished]
        for group, overfit in ((of["pretrain"], []), (of["full"], passed), (waiting, waiting)):
            if group:
                rows.append(_row(group, overfit))
    return pd.DataFrame(rows, columns=_columns()).reset_index(drop=True)


def rendered(table: pd.DataFrame) -> pd.DataFrame:
    """The results table as text, with the column names that people read."""
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
    """The split and what the score says of held-out tasks; `brief` leaves out the usual."""
    counts = {"seen": row["held_out_seen"], "of": row["held_out_of"]}
    words = _SPLITS.get((row["split"], row["held_out"]), str(row["split"])).format(**counts)
    if brief and row["held_out"] != "not proven":
        words = words.split(":")[0]
    if pd.notna(row["held_out_answers"]) and row["held_out_answers"] > 0:
        words += f", test outputs of {row['held_out_answers']:.0f} seen"
    return words


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table of the rendered numbers."""
    return _pipes(rendered(table).map(lambda cell: cell.replace("|", "\\|")))


def to_latex(table: pd.DataFrame) -> str:
    """A `tabular` of the rendered numbers, as wide as the text; needs booktabs and graphicx."""
    text = rendered(table).map(escape_latex)
    lines = [r"\resizebox{\linewidth}{!}{%"]
    lines += [r"\begin{tabular}{" + "l" * len(text.columns) + "}", r"\toprule"]
    lines.append(" & ".join(escape_latex(name) for name in text.columns) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(row) + r" \\" for row in text.to_numpy().tolist()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}%", "}", ""])


def to_text(table: pd.DataFrame) -> str:
    """Aligned plain text for a terminal: the columns that decide."""
    text = rendered(table)
    text["Split"] = [_split(row, brief=True) for _, row in table.iterrows()]
    keep = ("Experiment", "Stage", "Split", "Seeds", "Overfit exact match", "Train exact match")
    text = text[[*keep, "pass@1", "pass@2", "Status"]]
    text.columns = pd.Index([name.replace(" exact match", " EM") for name in text.columns])
    cells = [list(text.columns), *text.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(text.columns))]
    cells.insert(1, ["─" * width for width in widths])
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines) + "\n"


def to_html(table: pd.DataFrame) -> str:
    """A page with the table of rendered numbers, for the report."""
    body = rendered(table).to_html(index=False, border=0, justify="left")
    return f'<!doctype html><meta charset="utf-8"><style>{_CSS}</style>{body}\n'


def write_results(table: pd.DataFrame, stem: Path | str) -> list[Path]:
    """Writes `<stem>.csv` (numbers), `.md`, `.tex` and `.html` (rendered), each whole or not."""
    texts = {"csv": table.to_csv(index=False), "md": to_markdown(table), "tex": to_latex(table)}
    texts["html"] = to_html(table)
    paths = [Path(f"{stem}.{kind}") for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return paths


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def status(view: RunView) -> str:
    """Where the run stands, in words; a stopped one with its findings and numbers."""
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
        sign = "<" if exact < threshold else "≥"
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
    fixed = ["experiment", "stage", "kind", "context", "split"]
    fixed += ["held_out", "held_out_seen", "held_out_answers", "held_out_of"]
    fixed += ["seeds", "params", "status", "gate"]
    fixed += [
        "gate_threshold",
        "overfit_exact",
        "overfit_exact_sd",
        "train_exact",
        "train_exact_sd",
    ]
    parts = ("", "_sd", "_numerator", "_denominator", "_low", "_high")
    passes = [f"pass@{k}_{rule}{part}" for k in ATTEMPTS for rule in RULES for part in parts]
    return [*fixed, *passes, "tasks", "tasks_evaluated", "partial", "variants"]


def _row(views: Sequence[RunView], overfit: Sequence[RunView]) -> dict[str, Any]:
    first = views[0]
    verdicts = [view.verdict for view in overfit if view.verdict is not None]
    scores = [view.score for view in views if view.score is not None]
    row: dict[str, Any] = {
        "experiment": first.experiment,
        "stage": first.stage,
        "kind": first.run["kind"],
        "context": first.run.get("config", {}).get("context", {}).get("source", NONE),
        "split": first.run["split"],
        "held_out": _held_out(views),
        **_held_out_counts(scores),
        "seeds": len(views),
        "params": first.run.get("num_params"),
        "status": "; ".join(distinct(_status_in_table(view) for view in views)),
        "gate": _gate(verdicts),
        "gate_threshold": verdicts[0]["threshold"] if verdicts else None,
        **_spread("overfit_exact", [verdict["exact_accuracy"] for verdict in verdicts]),
        **_spread("train_exact", [_train_exact(view) for view in views]),
    }
    for k in ATTEMPTS:
        for rule in RULES:
            found = [score["pass"][str(k)][rule] for score in scores if str(k) in score["pass"]]
            row |= _pass_numbers(f"pass@{k}_{rule}", found)
    for name, key in (("tasks", "tasks_asked"), ("tasks_evaluated", "tasks_evaluated")):
        row[name] = min((score[key] for score in scores), default=None)
    row["partial"] = any(score["partial"] for score in scores) if scores else None
    row["variants"] = min((score["variants"] for score in scores), default=None)
    return row


def _held_out(views: Sequence[RunView]) -> str | None:
    """The least that is known of any seed: `seen`, `not proven` or `proven`."""
    found = {view.score["held_out"]["status"] for view in views if view.score is not None}
    found |= {"not proven" for view in views if view.run["unproven"]}
    return next((s for s in ("seen", "not proven", "proven") if s in found), None)


def _held_out_counts(scores: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Of how many held-out tasks something was seen, and test outputs: the most of any seed."""
    held_out = [score["held_out"] for score in scores]
    return {
        f"held_out_{key}": max((one.get(key, 0) for one in held_out), default=None)
        for key in ("seen", "answers", "of")
    }


def _train_exact(view: RunView) -> float | None:
    """Exact match over all training episodes at the end, or of the last samples in training."""
    evaluated = view.series("all.exact_accuracy")
    return float(evaluated.iloc[-1]) if len(evaluated) else view.final("train/exact_accuracy")


def _status_in_table(view: RunView) -> str:
    """There, an overfit run that passed is shown only while its full run is missing."""
    words = status(view)
    return "passed, full run not finished" if words == "passed" else words


def _gate(verdicts: Sequence[dict[str, Any]]) -> str:
    if not verdicts:
        return NONE
    passed = sum(verdict["passed"] for verdict in verdicts)
    if passed in (0, len(verdicts)):
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
        numbers[f"{name}_denominator"] = min(one["denominator"] for one in found)
    if len(found) == 1 and found[0]["ci95"]:
        numbers[f"{name}_low"], numbers[f"{name}_high"] = found[0]["ci95"]
    return numbers


def _pass(row: pd.Series, name: str) -> str:
    """`2.3 % (9/400) [1.0, 3.8]`, or with several seeds `2.3 % ± 0.4 (9.3/400)`."""
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
    """`400`, or `32 of 400`."""
    return (
        _count(whole)
        if part == whole or _count(part) == NONE
        else f"{_count(part)} of {_count(whole)}"
    )


def _pipes(text: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(text.columns) + " |", "|" + " --- |" * len(text.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in text.to_numpy().tolist()]
    return "\n".join(lines) + "\n"
