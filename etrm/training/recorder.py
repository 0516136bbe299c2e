"""Everything around the loop of a run that changes no number: metrics, states, signals, messages.

All ranks call the same methods, and agree on whatever depends on a file or a signal before they
act on it, so that none waits for another that has taken another branch. Rank 0 writes.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from etrm.runtime.disk_wait import obstacle, until_written
from etrm.runtime.distributed import Ranks
from etrm.runtime.interruption import Interrupted, Interruption, signal_name
from etrm.runtime.logs import say
from etrm.runtime.progress import Progress
from etrm.runtime.run_lock import Lease, LeaseLost
from etrm.storage.checkpoint import load_state, remove_temporaries, save_state, state_path
from etrm.tracking.tracker import Row, Tracker
from etrm.training import shown_answers
from etrm.training.health import check_rules, check_stuck
from etrm.training.trainer import Trainer

log = logging.getLogger(__name__)

QUICK_SECONDS = 5.0  # an interruption waits for an evaluation that takes no longer
# Severities of findings, in the column `health/<finding>` of the row where each was first made.
LEVELS = {"warn": 1.0, "fail": 2.0, "stop": 3.0}
CLOCKED = "perf/"  # metrics by the clock
AGAIN = "run the same command again to resume from there"
SAVED, FAILED, LOST = 0, 1, 2  # outcomes of a save; the largest of all ranks' counts


@dataclass
class Recorder:
    """Records one run, saves its states in `folder`, and ends the process when asked to."""

    trainer: Trainer
    tracker: Tracker
    folder: Path  # of this run's states
    ranks: Ranks
    interruption: Interruption
    lease: Lease
    progress: Progress
    began: float  # `time.time()` when this process began with the run
    stop_reason: str | None = None  # why the run ended early
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    saved: int = 0  # step of the newest state
    events: list[dict[str, Any]] = field(default_factory=list)  # findings, when first made
    _resumed: int = 0  # step that this process resumed from
    _earlier_seconds: float = 0.0  # of processes before this one
    _slow_evaluation: bool = True  # until one was seen to be quick
    _failing: bool = False  # the last state was not written
    _ending: bool = False  # there are no more steps
    _obstacle: str = ""  # why the last state was not written
    _lost: LeaseLost | None = None

    @property
    def rows(self) -> list[Row]:
        """Metrics so far, one row a logged step."""
        return self.tracker.rows

    @property
    def seconds(self) -> float:
        """Seconds that the run took, in all the processes that had a part in it."""
        return self._earlier_seconds + time.time() - self.began

    # --- metrics ---

    def log_row(self, row: Row) -> None:
        """Record a row of training, and findings that are new in it."""
        self.tracker.log(row)
        self.progress.show(self.rows[-1])
        health = self.trainer.run.health
        for found in [*check_rules(self.rows, health), *check_stuck(self.rows, health)]:
            name, severity = found.finding, found.severity
            if (name, severity) in {(e["finding"], e["severity"]) for e in self.events}:
                continue
            self.events.append(asdict(found))
            if not found.metric.startswith(CLOCKED):  # rows are the same in every run
                self.tracker.log({"step": row["step"], f"health/{name}": LEVELS[severity]})
            if self.ranks.is_rank_zero:
                level = logging.INFO if severity == "warn" else logging.WARNING
                log.log(level, "health, step %d: %s: %s", found.step, name, found.message)

    def log_evaluation(self, result: Row) -> None:
        """Record an evaluation at the trainer's step, with a few answers as pictures for W&B."""
        step, exact = self.trainer.step_number, result.get("all.exact_accuracy", 0.0)
        self.tracker.log({"step": float(step), **result})
        if self.tracker.mirrors:
            rows = shown_answers.answer_rows(self.trainer)
            self.tracker.table(step, shown_answers.TABLE, shown_answers.COLUMNS, rows)
        if not self._ending:
            text = f"step {step}: exact match {exact:.1%} over the training episodes"
            unseen = result.get("validation.exact_accuracy")
            text += "" if unseen is None else f", {unseen:.1%} on validation tasks"
            self.progress.say(text)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Save before a long evaluation, and let a signal end the process within the block."""
        stopping: AbstractContextManager[None] = nullcontext()
        step = self.trainer.step_number
        if self._slow_evaluation and (self.saved == step or self.save()):
            then = f"the state of step {step} is saved, {AGAIN}"
            stopping = self.interruption.at_once(f"evaluating step {step}", then)
        started = time.monotonic()
        with stopping:
            yield
        slow = time.monotonic() - started > QUICK_SECONDS
        self._slow_evaluation = bool(self.ranks.max_(int(slow)))

    def end_training(self) -> None:
        """Note that there are no more steps, and log why a run stopped early."""
        self._ending = True
        if self.stop_reason not in (None, "target") and self.ranks.is_rank_zero:
            log.warning("stopped at step %d: %s", self.trainer.step_number, self.stop_reason)

    # --- states ---

    def resume(self, shorter: Path) -> None:
        """Resume from the newest intact state, if there is one; rank 0 chooses it.

        `shorter`: the folder of the last state of a run that took the same steps, but fewer.
        """
        if self.ranks.is_rank_zero:
            remove_temporaries(self.folder)
        if not self._resume(self.folder):
            self._resume(shorter)

    def _resume(self, folder: Path) -> bool:
        state = load_state(folder) if self.ranks.is_rank_zero else None
        if state is not None and state["step"] > self.trainer.train.steps:
            state = None  # of a longer run
        step = self.ranks.max_(-1 if state is None else state["step"])
        if step < 0:
            return False
        state = load_state(folder, step) if state is None else state
        assert state is not None, f"{state_path(folder, step)}: found on rank 0 alone"
        self.trainer.load_state_dict(state["trainer"])
        self.tracker.rows = list(state["rows"])
        self.stop_reason, self.started = state["reason"], state["started"]
        self.events, self._earlier_seconds = list(state["events"]), state["seconds"]
        self.saved = self._resumed = step
        self.progress.begin(step)
        if self.ranks.is_rank_zero:
            log.info("resuming from step %d (%s)", step, state_path(folder, step))
        return True

    def keep(self, folder: Path) -> None:
        """Save the state of the last step to `folder`; failing ends nothing.

        Not that of a run that has ended early, whose steps are not all done.
        """
        if self.stop_reason is not None:
            return
        trainer = self.trainer.state_dict()  # of all ranks
        if not self.ranks.is_rank_zero:
            return
        try:
            save_state(folder, self.trainer.step_number, self._state(trainer))
        except OSError as error:
            log.warning("%s: the last state could not be kept (%s)", folder, error)

    def save_if_due(self) -> None:
        """Save every `train.save_every` steps."""
        step, train = self.trainer.step_number, self.trainer.train
        due = step % train.save_every == 0 and step < train.steps
        if due and self.saved != step and self.stop_reason is None:
            self.save()

    def save(self) -> bool:
        """Write the state and return whether it could be written; failing ends nothing.

        Exits with `EXIT_INTERRUPTED` where another process has the run now.
        """
        trainer, outcome = self.trainer.state_dict(), SAVED
        if self.ranks.is_rank_zero:
            outcome = self._write(self._state(trainer))
        outcome = self.ranks.max_(outcome)
        if outcome == LOST:
            self.exit_if_superseded()
        if outcome == SAVED:
            self.saved = self.trainer.step_number
            self.interruption.advanced |= self.saved > self._resumed
        return outcome == SAVED

    def _state(self, trainer: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "step": self.trainer.step_number,
            "trainer": trainer,
            "rows": self.rows,
            "reason": self.stop_reason,
            "events": self.events,
            "started": self.started,
            "seconds": self.seconds,
        }

    def _write(self, state: dict[str, Any]) -> int:
        step, folder = state["step"], self.folder
        try:
            save_state(folder, step, state, self.lease.check)
        except LeaseLost as lost:
            self._lost = lost
            return LOST
        except OSError as error:
            self._obstacle = obstacle(folder, error)
            if not (self._failing or self._ending):  # said once, until states are written again
                text = (
                    f"{state_path(folder, step)}: the state could not be written"
                    f" ({self._obstacle}): make room, or make the folder writable. A run that ends"
                    f" now resumes from step {self.saved}; training goes on, and tries again"
                )
                say(text, logging.WARNING)
            self._failing = True
            return FAILED
        if self._failing:
            say(f"{folder}: states are written again, the newest is of step {step}")
        self._failing = False
        return SAVED

    # --- ending the process ---

    def exit_if_asked(self) -> None:
        """Save and exit with `EXIT_INTERRUPTED` where a rank was asked to stop."""
        number = self.ranks.max_(self.interruption.number)
        if number and self.stop_reason is None:
            self._ending = True
            name, ranks = self.progress.name, self.ranks
            saved = until_written(self.save, self.unsaved, name, ranks, self.interruption)
            self.exit_interrupted(number, saved)

    def exit_interrupted(self, number: int, saved: bool) -> NoReturn:
        """Say whether this step is `saved`, or else its loss; exit with `EXIT_INTERRUPTED`."""
        why = self.interruption.why  # of another process that asks for the run
        if self.ranks.is_rank_zero:
            self.tracker.close()
            done = f"saved step {self.trainer.step_number}" if saved else self.unsaved()
            then = f"; {AGAIN}" if self.saved and not why else ""
            say(f"{why or signal_name(number)}: {done}{then}", logging.WARNING)
        raise Interrupted(signal.SIGTERM if why else number, self.interruption.advanced)

    def exit_if_superseded(self) -> None:
        """Exit with `EXIT_INTERRUPTED` where another process has the run now."""
        if self.ranks.is_rank_zero:
            try:
                self.lease.check()
            except LeaseLost as lost:
                self._lost = lost
        if self.ranks.max_(int(self._lost is not None)):
            if self.ranks.is_rank_zero:
                self.tracker.close()
                step = self.trainer.step_number
                text = f"{self._lost}: ended at step {step}, of which nothing was written here"
                say(text, logging.WARNING)
            raise Interrupted(signal.SIGTERM, self.interruption.advanced)

    def unsaved(self) -> str:
        """Return a message of the steps that are lost when this process ends without a save."""
        step, count = self.trainer.step_number, self.trainer.step_number - self.saved
        last = f"the last state is that of {self.saved}" if self.saved else "there is no state"
        lost = "1 step is lost" if count == 1 else f"{count} steps are lost"
        return (
            f"step {step} could not be saved ({self.folder}: {self._obstacle}), {last}:"
            f" {lost} when this process ends"
        )
