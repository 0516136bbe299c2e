"""The steps of a run, from wherever it is to the end: rows, evaluations, states, interruption.

All ranks run this loop, and what depends on a file or a signal is agreed on before it is acted on,
so that none of them waits for another that has gone a different way. The main one writes.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
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
from etrm.tracking.tracker import Tracker
from etrm.training.health import Finding, check_rules, check_stuck, stop_reason
from etrm.training.trainer import Trainer

log = logging.getLogger(__name__)

# An evaluation that takes longer is not waited for when the run is asked to stop.
QUICK_SECONDS = 5.0
# How bad a finding is, in the column `health/<finding>` of the row where it was first made.
LEVELS = {"warn": 1.0, "fail": 2.0, "stop": 3.0}
AGAIN = "run the same command again to go on from there"
# What becomes of a state: of all ranks', the largest.
SAVED, FAILED, LOST = 0, 1, 2


class Loop:
    """Trains one run, and keeps in `folder` the state from which it goes on."""

    def __init__(
        self,
        trainer: Trainer,
        tracker: Tracker,
        folder: Path,
        ranks: Ranks,
        interruption: Interruption,
        lease: Lease,
        progress: Progress,
        began: float,
    ) -> None:
        """`began`: when this process began with the run (`time.time()`)."""
        self.run, self.trainer, self.tracker = trainer.run, trainer, tracker
        self.folder, self.ranks = folder, ranks
        self.interruption, self.lease, self.progress = interruption, lease, progress
        self.reason: str | None = None  # why the run ended early
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.saved = self._resumed = 0  # step of the newest state, and of the one it went on from
        self.events: list[dict[str, Any]] = []  # findings, when they were first made
        self._slow = True  # the evaluation, until it was seen to be quick
        self._failing = self._ending = False  # the last state was not written; no more steps
        self.obstacle = ""  # why it was not
        self._lost: LeaseLost | None = None
        self._spent, self._began = 0.0, began
        interruption.doing = "finishing this step and saving it …"

    @property
    def step(self) -> int:
        """Steps done, the one under way included."""
        return self.trainer.step_number

    @property
    def seconds(self) -> float:
        """What the run took, in all the processes that had a part in it."""
        return self._spent + time.time() - self._began

    def resume(self) -> None:
        """Go on from the newest intact state, if there is one; rank 0 chooses it."""
        if self.ranks.is_rank_zero:
            remove_temporaries(self.folder)
        state = load_state(self.folder) if self.ranks.is_rank_zero else None
        step = self.ranks.max_(-1 if state is None else state["step"])
        if step < 0:
            return
        state = load_state(self.folder, step) if state is None else state
        assert state is not None  # that of a step is there, or an error
        self.trainer.load_state_dict(state["trainer"])
        self.tracker.rows = list(state["rows"])
        self.reason, self.started = state["reason"], state["started"]
        self.events, self._spent = list(state["events"]), state["seconds"]
        self.saved = self._resumed = step
        self.progress.begin(step)
        if self.ranks.is_rank_zero:
            log.info("going on from step %d (%s)", step, state_path(self.folder, step))

    def train(self) -> None:
        """Train to the end, to the target, or to a finding, and evaluate what came of it.

        Exits with `EXIT_INTERRUPTED` when it was asked to stop, its state saved.
        """
        train = self.run.train
        self._evaluate_if_due()  # of a run that was stopped just before it
        while self.step < train.steps and self.reason is None:
            self.trainer.step()
            if self.step % train.log_every == 0 or self.step == train.steps:
                self._log_row()
            self._stop_if_asked()
            self._evaluate_if_due()
            due = self.step % train.save_every == 0 and self.step < train.steps
            if due and self.saved != self.step and self.reason is None:
                self.save()
        self._ending = True
        if self.reason not in (None, "target") and self.ranks.is_rank_zero:
            log.warning("stopped at step %d: %s", self.step, self.reason)
        if not self._evaluated():
            self._evaluate()

    def save(self) -> bool:
        """Write the state; False where that is not possible, which is said and ends nothing.

        Exits with `EXIT_INTERRUPTED` where another process has the run now.
        """
        trainer = self.trainer.state_dict()
        outcome = SAVED
        if self.ranks.is_rank_zero:
            state = {
                "step": self.step,
                "trainer": trainer,
                "rows": self.tracker.rows,
                "reason": self.reason,
                "events": self.events,
                "started": self.started,
                "seconds": self.seconds,
            }
            outcome = self._write(state)
        outcome = self.ranks.max_(outcome)
        if outcome == LOST:
            self._end_without_lease()
        if outcome == SAVED:
            self.interruption.advanced |= self.step > self._resumed
            self.saved = self.step
        return outcome == SAVED

    def end_if_lost(self) -> None:
        """Exit with `EXIT_INTERRUPTED` where another process has the run now."""
        lost = False
        if self.ranks.is_rank_zero:
            try:
                self.lease.check()
            except LeaseLost as found:
                self._lost, lost = found, True
        if self.ranks.max_(int(lost)):
            self._end_without_lease()

    def _end_without_lease(self) -> None:
        if self.ranks.is_rank_zero:
            self.tracker.close()
            text = f"{self._lost}: ended at step {self.step}, of which nothing was written here"
            say(text, logging.WARNING)
        raise Interrupted(signal.SIGTERM, self.interruption.advanced)

    def _write(self, state: dict[str, Any]) -> int:
        try:
            save_state(self.folder, self.step, state, self.lease.check)
        except LeaseLost as lost:
            self._lost = lost
            return LOST
        except OSError as error:
            self.obstacle = obstacle(self.folder, error)
            if not (self._failing or self._ending):  # said once, until it is over
                say(
                    f"{state_path(self.folder, self.step)}: the state could not be written"
                    f" ({self.obstacle}): make room, or make the folder writable. A run that ends"
                    f" now goes on from step {self.saved}; training goes on, and tries again",
                    logging.WARNING,
                )
            self._failing = True
            return FAILED
        if self._failing:
            say(f"{self.folder}: states are written again, the newest is that of step {self.step}")
        self._failing = False
        return SAVED

    def _stop_if_asked(self) -> None:
        number = self.ranks.max_(self.interruption.number)
        if not number or self.reason is not None:
            return
        self._ending = True
        saved = until_written(
            self.save, self.unsaved, self.progress.name, self.ranks, self.interruption
        )
        self.end_interrupted(number, saved)

    def end_interrupted(self, number: int, saved: bool) -> NoReturn:
        """Say whether this step is `saved`, or what is lost; exit with `EXIT_INTERRUPTED`."""
        if self.ranks.is_rank_zero:
            self.tracker.close()
            why = self.interruption.why
            done = f"saved step {self.step}" if saved else self.unsaved()
            then = f"; {AGAIN}" if self.saved and not why else ""
            say(f"{why or signal_name(number)}: {done}{then}", logging.WARNING)
        number = signal.SIGTERM if self.interruption.why else number
        raise Interrupted(number, self.interruption.advanced)

    def unsaved(self) -> str:
        """Say which steps are lost when this process ends without a state of this step."""
        last = f"the last state is that of {self.saved}" if self.saved else "there is no state"
        count = self.step - self.saved
        lost = "1 step is lost" if count == 1 else f"{count} steps are lost"
        return (
            f"step {self.step} could not be saved ({self.folder}: {self.obstacle}), {last}:"
            f" {lost} when this process ends"
        )

    def _log_row(self) -> None:
        self.tracker.log(self.trainer.row())
        self.progress.show(self.tracker.rows[-1])
        rows, health = self.tracker.rows, self.run.health
        for finding in [*check_rules(rows, health), *check_stuck(rows, health)]:
            self._report(finding)
        reason = stop_reason(rows, health)
        if reason is not None and (self.run.train.stop_on_health or reason.value is None):
            self.reason = reason.finding

    def _report(self, finding: Finding) -> None:
        """A finding is an event, in the log, the metrics and the record, when it is first made."""
        if any(
            (e["finding"], e["severity"]) == (finding.finding, finding.severity)
            for e in self.events
        ):
            return
        self.events.append(asdict(finding))
        self.tracker.log(
            {"step": float(self.step), f"health/{finding.finding}": LEVELS[finding.severity]}
        )
        if self.ranks.is_rank_zero:
            text = "health, step %d: %s: %s"
            log.warning(text, finding.step, finding.finding, finding.message)

    def _evaluated(self) -> bool:
        rows = self.tracker.rows
        return bool(rows) and rows[-1]["step"] == self.step and "all.exact_accuracy" in rows[-1]

    def _evaluate_if_due(self) -> None:
        every, target = self.run.train.eval_every, self.run.train.target_exact_accuracy
        due = every is not None and self.step > 0 and self.step % every == 0
        if not due or self.reason is not None or self._evaluated():
            return
        exact = self._evaluate().get("all.exact_accuracy", 0.0)
        text = f"step {self.step}: exact match {exact:.1%} over the training episodes"
        self.progress.say(text)
        if target is not None and exact >= target:
            self.reason = "target"

    def _evaluate(self) -> dict[str, float]:
        """Evaluate and log. Long ones come after a save, so that a signal need not wait for them.

        An evaluation changes no state: a run that is stopped in it makes it again.
        """
        stopping: AbstractContextManager[None] = nullcontext()
        if self._slow and (self.saved == self.step or self.save()):
            then = f"the state of step {self.step} is saved, {AGAIN}"
            stopping = self.interruption.at_once(f"evaluating step {self.step}", then)
        started = time.monotonic()
        with stopping:
            result = self.trainer.evaluate()
        self._slow = bool(self.ranks.max_(int(time.monotonic() - started > QUICK_SECONDS)))
        self.tracker.log({"step": float(self.step), **result})
        return result
