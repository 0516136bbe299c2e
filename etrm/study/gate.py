"""Whether an overfit run passed the gate, and the refusal of full runs that did not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etrm.config.health import GateConfig
from etrm.errors import UserError
from etrm.storage.records import read_run, read_verdict


class GateError(UserError):
    """A full run was asked for whose experiment did not pass criterion 1."""


def judge(verdict: Mapping[str, Any], gate: GateConfig) -> bool:
    """Does a recorded verdict pass a gate: exact match reached, and no finding that fails."""
    failed = [f for f in verdict["diagnosis"] if f["severity"] == "fail"]
    return verdict["exact_accuracy"] >= gate.exact_accuracy and not failed


def require_passed(verdict: Path, gate: GateConfig | None = None) -> None:
    """Raise `GateError` unless a verdict is a pass of the overfit run in whose folder it is.

    `gate`: today's, by which it is judged; None: as it was recorded. Raises `DamagedFileError`
    where the verdict, or the record of that run, cannot be read.
    """
    content = read_verdict(verdict)
    name = f"{content['experiment']}, seed {content['seed']}: the full run does not start, because"
    if content.get("run_key") != read_run(verdict.parent)["key"]:
        raise GateError(
            f"{name} {verdict} is the verdict on an earlier overfit run, expected one on that in"
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
    """A verdict in one line."""
    exact, threshold = verdict["exact_accuracy"], verdict["threshold"]
    sign = "≥" if exact >= threshold else "<"
    text = f"exact match {exact:.1%} {sign} {threshold:.0%}"
    failed = [f["finding"] for f in verdict["diagnosis"] if f["severity"] == "fail"]
    hints = [f["finding"] for f in verdict["diagnosis"] if f["severity"] == "warn"]
    if failed:
        text += ", failed " + ", ".join(dict.fromkeys(failed))
    elif not verdict["passed"] and hints:
        text += " (" + ", ".join(dict.fromkeys(hints)) + ")"
    return text
