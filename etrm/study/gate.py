"""The gate between an overfit run and its full run: criterion 1 of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etrm.config.health import GateConfig
from etrm.errors import UserError
from etrm.storage.records import read_run, read_verdict
from etrm.study.layout import Layout, Run


class GateError(UserError):
    """A full run whose overfit run did not pass the gate."""


def judge(verdict: Mapping[str, Any], gate: GateConfig) -> bool:
    """Return whether a verdict passes: exact match reached, and no finding that fails."""
    failed = any(f["severity"] == "fail" for f in verdict["diagnosis"])
    return verdict["exact_accuracy"] >= gate.exact_accuracy and not failed


def require_passed(verdict: Path, gate: GateConfig | None = None) -> None:
    """Raise `GateError` unless a verdict is a pass of the overfit run in whose folder it is.

    It is judged by `gate`; by None, as it was recorded. Raises `DamagedFileError` where the
    verdict, or the record of that run, cannot be read.
    """
    content = read_verdict(verdict)
    name = f"{content['experiment']}, seed {content['seed']}: the full run does not start, because"
    if content.get("run_key") != read_run(verdict.parent)["key"]:
        raise GateError(
            f"{name} {verdict} is the verdict on an earlier overfit run, expected one on the run in"
            f" {verdict.parent}: run `snakemake gate`"
        )
    if gate is not None:
        content |= {"passed": judge(content, gate), "threshold": gate.exact_accuracy}
    if not content["passed"]:
        raise GateError(
            f"{name} its overfit run did not pass: {describe(content)}. Verdict: {verdict}. Change"
            " the experiment, or gate.exact_accuracy, and run the overfit stage again"
        )


def describe(verdict: Mapping[str, Any]) -> str:
    """Return a verdict in one line; warnings only where nothing failed."""
    exact, threshold = verdict["exact_accuracy"], verdict["threshold"]
    text = f"exact match {exact:.1%} {'≥' if exact >= threshold else '<'} {threshold:.0%}"
    failed, hints = (
        ", ".join(dict.fromkeys(f["finding"] for f in verdict["diagnosis"] if f["severity"] == s))
        for s in ("fail", "warn")
    )
    if failed:
        return f"{text}, failed {failed}"
    return f"{text} ({hints})" if hints and not verdict["passed"] else text


def verdicts_of(layout: Layout) -> dict[Run, dict[str, Any]]:
    """Return the verdicts that are there, by their overfit runs."""
    paths = {run: layout.verdict(run.experiment, run.seed) for run in layout.runs("overfit")}
    return {run: read_verdict(path) for run, path in paths.items() if path.is_file()}


def outcome(verdict: Mapping[str, Any]) -> str:
    """Return whose verdict it is, and whether it is passed, in one line."""
    word = "passed " if verdict["passed"] else "stopped"
    return f"{word}  {verdict['experiment']}, seed {verdict['seed']}: {describe(verdict)}"
