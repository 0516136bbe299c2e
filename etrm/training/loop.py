"""The order of steps, evaluations and stop decisions of a run, which is all that is computed.

Metrics, states, signals and messages are the `Recorder`'s, and change no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from etrm.config.study import RunConfig
from etrm.training.health import Row, find_stop
from etrm.training.trainer import Trainer

if TYPE_CHECKING:
    from etrm.training.recorder import Recorder


def train(trainer: Trainer, recorder: Recorder) -> None:
    """Train to the last step, the target, or a health stop; end with an evaluation.

    Exits with `EXIT_INTERRUPTED` when the process was asked to stop, its state saved.
    """
    config = trainer.train
    if trainer.step_number == 0 and (row := trainer.initial_row()):
        recorder.tracker.log(row)
    evaluate_if_due(trainer, recorder)  # of a run that was interrupted just before it
    while trainer.step_number < config.steps and recorder.stop_reason is None:
        trainer.step()
        if trainer.row_due():
            recorder.log_row(trainer.row())
            recorder.stop_reason = health_stop(trainer.run, recorder.rows)
        recorder.exit_if_asked()  # before an evaluation, which would hold it up
        evaluate_if_due(trainer, recorder)
        recorder.save_if_due()
    recorder.end_training()
    if not is_evaluated(trainer.step_number, recorder.rows):
        evaluate(trainer, recorder)


def health_stop(run: RunConfig, rows: Sequence[Row]) -> str | None:
    """Return the finding that ends the run now; a loss that is not finite always does."""
    found = find_stop(rows, run.health)
    # Without `stop_on_health`, findings only warn; nothing can be learned from NaN.
    may_stop = found is not None and (run.train.stop_on_health or found.value is None)
    return found.finding if found is not None and may_stop else None


def evaluate_if_due(trainer: Trainer, recorder: Recorder) -> None:
    """Evaluate every `train.eval_every` steps; reaching the target ends the run."""
    step, config = trainer.step_number, trainer.train
    due = config.eval_every is not None and step > 0 and step % config.eval_every == 0
    # A resumed run has the evaluation of its step where the state was saved after it.
    if due and recorder.stop_reason is None and not is_evaluated(step, recorder.rows):
        exact = evaluate(trainer, recorder)
        if config.target_exact_accuracy is not None and exact >= config.target_exact_accuracy:
            recorder.stop_reason = "target"


def evaluate(trainer: Trainer, recorder: Recorder) -> float:
    """Evaluate and record; return exact match over the training episodes.

    An evaluation changes no state: a run that is interrupted in it repeats it.
    """
    with recorder.evaluating():
        result = trainer.evaluate()
    recorder.log_evaluation(result)
    return result.get("all.exact_accuracy", 0.0)


def is_evaluated(step: int, rows: Sequence[Row]) -> bool:
    """Return whether the last row of metrics is an evaluation of `step`."""
    return bool(rows) and rows[-1]["step"] == step and "all.exact_accuracy" in rows[-1]
