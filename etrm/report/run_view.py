"""The runs of a study as the report sees them, read from run folders without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from etrm.evaluation.pass_at_k import CREDIT_RULES, credits
from etrm.report.formats import NONE
from etrm.storage.records import (
    DESCRIBED,
    DamagedFileError,
    read_metrics,
    read_run,
    read_score,
    read_verdict,
)

if TYPE_CHECKING:
    from etrm.arc.task import Task
    from etrm.config.execution import FigureStyle
    from etrm.config.health import HealthConfig

STAGES = ("pretrain", "overfit", "full")
# Means over the samples that halted in a step: without a value where `train/halted` is 0.
_OF_HALTED = ("train/accuracy", "train/exact_accuracy", "train/q_halt_accuracy", "train/steps")


@dataclass(frozen=True)
class RunView:
    """One training run and its results; `verdict` and `score` may be absent."""

    run: dict[str, Any]  # run.json
    metrics: pd.DataFrame  # metrics.parquet: `step` and one column per metric
    verdict: dict[str, Any] | None = None  # of an overfit run
    score: dict[str, Any] | None = None  # of an evaluated run
    predictions: Path | None = None
    refinement: dict[str, Any] | None = None  # of a run whose answers were refined
    contexts: Path | None = None  # of tasks, as the run sees them
    finalist: bool = True  # to be evaluated on held-out tasks, if it can be
    choices: tuple[dict[str, Any], ...] = ()  # its places in selections
    _read: dict[Any, pd.Series] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return str(self.run["experiment"])

    @property
    def stage(self) -> str:
        """One of `STAGES`."""
        return str(self.run["stage"])

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.run["seed"])

    @property
    def is_trm(self) -> bool:
        """Return whether the context is a learned puzzle embedding, not an encoder's output."""
        return bool(self.run["kind"] == "trm")

    @property
    def is_cached(self) -> bool:
        """Return whether contexts were cached in training: the negative control."""
        return bool(self.setting("train.cache_context", False))

    @property
    def source(self) -> str:
        """The name of its context source."""
        return str(self.setting("context.source", NONE))

    @property
    def only_initialises(self) -> bool:
        """Return whether it has no embedding of a held-out task, so that nothing is evaluated."""
        asked = self.setting("context.unseen", "none") != "none"
        return self.is_trm and self.run["split"] == "strict" and not asked

    @property
    def stopped(self) -> bool:
        """Return whether its verdict stopped it or, where it has none, a health rule.

        Ending a run because it reached its target (`stopped_early` names the target) is a success.
        """
        if self.verdict is not None:
            return not self.verdict["passed"]
        reason = self.run.get("stopped_early") or ""
        return bool(reason) and "target" not in reason

    @property
    def stopped_by(self) -> dict[str, Any] | None:
        """The finding that ended the run: its metric, value and threshold; None where none did."""
        reason = self.run.get("stopped_early")
        events = self.run.get("health") or []
        found = (e for e in events if e["severity"] == "stop" and e["finding"] == reason)
        return next(found, None)

    @property
    def train_exact(self) -> float | None:
        """The last exact match over all episodes, else that of the last training samples."""
        evaluated = self.last("all.exact_accuracy")
        return self.final("train/exact_accuracy") if evaluated is None else evaluated

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of its configuration, `block.name`."""
        block, _, name = key.partition(".")
        return self.run.get("config", {}).get(block, {}).get(name, default)

    def series(self, name: str) -> pd.Series:
        """Return the metric over steps (index), without steps on which it has no finite value.

        Figures ask for one many times over: it is read once, and must not be changed.
        """
        if name not in self._read:
            self._read[name] = self._series(name)
        return self._read[name]

    def _series(self, name: str) -> pd.Series:
        if name not in self.metrics:
            return pd.Series(dtype=np.float64, name=name)
        values = self._over_steps(name)
        if name in _OF_HALTED and "train/halted" in self.metrics:
            values = values[self.metrics["train/halted"].fillna(0).to_numpy() > 0]
        return values[np.isfinite(values)]  # not logged on this step, or diverged

    def weights(self, name: str) -> pd.Series:
        """Return the number of samples that each value of `series(name)` is a mean of; else 1."""
        values = self.series(name)
        if name not in _OF_HALTED or "train/halted" not in self.metrics:
            return pd.Series(1.0, index=values.index)
        return self._over_steps("train/halted").loc[values.index]

    def _over_steps(self, name: str) -> pd.Series:
        # One column: `set_index` would copy all of them.
        index = pd.Index(self.metrics["step"], name="step")
        return pd.Series(self.metrics[name].astype(np.float64).to_numpy(), index, name=name)

    def final(self, name: str) -> float | None:
        """Return the mean over samples in the last tenth of the metric's logged values."""
        values, weights = self.series(name), self.weights(name)
        last = -(-len(values) // 10)  # a tenth, rounded up
        if not last:
            return None
        return float(np.average(values.iloc[-last:], weights=weights.iloc[-last:]))

    def last(self, name: str) -> float | None:
        """Return the metric's last logged value."""
        values = self.series(name)
        return float(values.iloc[-1]) if len(values) else None

    def end(self, name: str) -> float | None:
        """Return the metric at the end: `final` of training, else `last`, of an evaluation."""
        return self.final(name) if name.startswith(("train/", "grad/")) else self.last(name)

    def credit(self, k: int, rule: str) -> pd.Series | None:
        """Return the credit of each test task by its id; None without a score at k."""
        score = self.score or {}
        ranks = score.get("ranks")
        if not ranks or str(k) not in score["pass"]:
            return None
        if (k, rule) not in self._read:
            found = credits(ranks, [k])[:, 0, CREDIT_RULES.index(rule)]
            self._read[k, rule] = pd.Series(found, index=list(ranks), name=self.seed)
        return self._read[k, rule]

    def test_metric(self, name: str) -> float | None:
        """Return an `all.*` metric of the evaluation on test tasks."""
        value = None if self.score is None else self.score["metrics"].get(name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class StudyView:
    """All that the figures of a study show."""

    runs: Sequence[RunView]
    style: FigureStyle
    health: HealthConfig  # whose bounds are drawn
    tasks: Sequence[Task] = ()  # held out


def load_run(
    folder: Path | str,
    *,
    verdict: Path | str | None = None,
    score: Path | str | None = None,
    predictions: Path | str | None = None,
    contexts: Path | str | None = None,
) -> RunView:
    """Read `run.json` and `metrics.parquet`; also `verdict` and `score` where a file is given.

    Raises `FileNotFoundError` for a file that is missing, `DamagedFileError` for one that cannot be
    used.
    """
    folder = Path(folder)
    run = read_run(folder, DESCRIBED)
    if run["stage"] not in STAGES:
        found = f"stage {run['stage']!r}"
        raise DamagedFileError(folder / "run.json", found, f"one of {', '.join(STAGES)}")
    return RunView(
        run=run,
        metrics=read_metrics(folder).to_pandas(),
        verdict=None if verdict is None else read_verdict(Path(verdict)),
        score=None if score is None else read_score(Path(score)),
        predictions=None if predictions is None else Path(predictions),
        contexts=None if contexts is None else Path(contexts),
    )


def credits_of(views: Sequence[RunView], k: int, rule: str) -> pd.DataFrame | None:
    """Return the credits of runs on test tasks, [seed, task id]; None unless all have the same."""
    rows = []
    for view in views:
        row = view.credit(k, rule)
        if row is None:
            return None
        rows.append(row)
    if not rows or any(set(row.index) != set(rows[0].index) for row in rows):
        return None
    return pd.DataFrame(rows)


def asked(view: RunView) -> tuple[str, tuple[str, ...] | None]:
    """Return split and sources of a run: where they differ, scores are of different things."""
    sources = view.run.get("config", {}).get("sources")
    return view.run["split"], None if sources is None else tuple(sorted(sources))


def gate_counts(views: Iterable[RunView]) -> tuple[int, int]:
    """Return how many of the seeds that were judged have passed the gate, and of how many."""
    verdicts = [view.verdict for view in views if view.verdict is not None]
    return sum(bool(verdict["passed"]) for verdict in verdicts), len(verdicts)


def last_stage(runs: Sequence[RunView]) -> tuple[list[RunView], str]:
    """Return the runs of the last stage that ETRM has finished, with TRM's, and a title for them.

    The two stages of a study answer different questions: a figure shows one of them.
    """
    etrm = {view.stage for view in runs if not view.is_trm}
    stage = next((s for s in reversed(STAGES) if s in etrm), "pretrain")
    shown = [view for view in runs if view.stage == stage or view.is_trm]
    words = {"full": "Full runs", "overfit": "Overfit runs", "pretrain": "Pretraining"}[stage]
    with_trm = etrm and any(view.is_trm for view in shown)
    return shown, words + " (TRM: pretraining)" * bool(with_trm)


def by_name(runs: Iterable[RunView]) -> dict[str, list[RunView]]:
    """Return the runs of each experiment, in the order first seen."""
    found: dict[str, list[RunView]] = {}
    for view in runs:
        found.setdefault(view.experiment, []).append(view)
    return found


def distinct(names: Iterable[str]) -> list[str]:
    """Return the names without repetition, in the order first seen."""
    return list(dict.fromkeys(names))
