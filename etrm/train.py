"""One training run, from tables and a configuration to a run folder.

A run folder holds `model.safetensors` (raw and averaged weights), `metrics.parquet` (one row per
logged step) and `run.json` (configuration, provenance, what it cost). They are written when the
run is done; until then its state is in `RunPaths.state`, from which a killed run goes on, and where
the last finished run is kept.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from etrm.arc.task import Pair, Task
from etrm.checkpoint import CheckpointError, clear_states, load_state, save_state, save_weights
from etrm.config import plain
from etrm.config.study import RunConfig, TrackingConfig
from etrm.context import context_source
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import on_lanes, training_questions
from etrm.data.files import write_json_atomic
from etrm.data.tables import read_augmentations, read_tasks
from etrm.engine import Trainer
from etrm.health import check_rules, check_stuck, stop_reason
from etrm.keep import keep, take_back
from etrm.models.build import build_model, num_parameters
from etrm.parents import Parent, read_parent, refuse_leak, start_from
from etrm.progress import Interruption, Progress
from etrm.provenance import (
    code_digest,
    commit,
    digest,
    file_digest,
    seen_tasks,
    train_code,
    versions,
)
from etrm.tracker import Tracker

log = logging.getLogger(__name__)

# Told to the scheduler by a run that was asked to stop and has saved its state.
EXIT_INTERRUPTED = 75


@dataclass(frozen=True)
class RunPaths:
    """Where a run reads and writes."""

    tasks: Path
    augmentations: Path
    parent: Path | None  # run folder or official checkpoint that initialises the decoder
    out: Path  # run folder
    state: Path  # states of runs under way, one subfolder per digest
    wandb: Path
    strict_parents: tuple[str, ...] = ()  # what a refused run could start from instead


def train_run(
    run: RunConfig,
    paths: RunPaths,
    tracking: TrackingConfig,
    device: str | None = None,
    bar: bool = True,
) -> dict[str, Any]:
    """Train (or go on training) one run and write its run folder; returns its `run.json`.

    `bar`: show a progress bar on a terminal (not where several jobs share it).

    Raises `LeakError` when a strict run's parent has seen held-out tasks, and exits with
    `EXIT_INTERRUPTED` after saving when SIGTERM, SIGUSR1 or SIGINT arrives.
    """
    started = time.time()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parent = _read_parent(run, paths)
    key, store = _key(run, paths, parent), paths.state / "finished" / _name(run)
    kept = take_back(paths.out, store, key)
    if kept is not None:
        log.info("the same run was finished on %s: taken back from %s", kept["finished"], store)
        return kept
    corpus, episodes = training_data(run, paths, target)
    model = build_model(run, corpus.num_puzzles).to(target)
    loaded = None
    if parent is not None:
        loaded = start_from(model.decoder, parent, run.decoder.weights, run.model)
    trainer = Trainer(run, model, corpus, episodes)
    tracker = Tracker(tracking, _name(run), key[:16], plain(run), paths.wandb)
    history: dict[str, Any] = {
        "seconds": 0.0,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = paths.state / key[:16]
    history |= _resume(trainer, tracker, folder, target)
    steps = trainer.step_number, run.train.steps
    progress = Progress(_name(run), *steps, bar and sys.stderr.isatty())
    reason = _loop(run, trainer, tracker, folder, history, started, progress)
    if not tracker.rows or "all.exact_accuracy" not in tracker.rows[-1]:
        tracker.log({"step": trainer.step_number, **trainer.evaluate()})
    paths.out.mkdir(parents=True, exist_ok=True)
    save_weights(paths.out / "model.safetensors", model, trainer.ema.values)
    tracker.write(paths.out / "metrics.parquet")
    record = _record(run, trainer, target, parent, loaded)
    record |= {
        "started": history["started"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(history["seconds"] + time.time() - started, 1),
        "stopped_early": reason,
        "key": key,
        "weights_sha256": file_digest(paths.out / "model.safetensors"),
    }
    write_json_atomic(paths.out / "run.json", record)
    keep(paths.out, store, key)
    tracker.finish({k: v for k, v in tracker.rows[-1].items() if k.startswith("all.")})
    clear_states(folder)
    return record


def training_data(
    run: RunConfig, paths: RunPaths, device: torch.device
) -> tuple[Corpus, list[Episodes]]:
    """The corpus of a run, which is all that it trains on, and its questions by lane.

    A strict run leaves out training tasks that share a pair with a held-out task. Test outputs of
    held-out tasks are removed before anything else sees them.
    """
    records = read_tasks(paths.tasks)
    held_out = [r.task.id for r in records if r.split == "evaluation"]
    if run.split == "strict":
        records = [r for r in records if r.split == "training" and r.duplicate_of is None]
    tasks = [without_answers(r.task) if r.split == "evaluation" else r.task for r in records]
    if run.train.tasks is not None:
        order = sorted(tasks, key=lambda task: digest(["subset", task.id]))
        chosen = {task.id for task in order[: run.train.tasks]}
        tasks = [task for task in tasks if task.id in chosen]
    variants = read_augmentations(paths.augmentations)
    corpus = Corpus(tasks, variants, device, limit=run.train.variants)
    needs_demos = context_source(run.context.source).needs_demos
    questions = training_questions(corpus, held_out, run.episodes, needs_demos)
    episodes = on_lanes(corpus, questions, run.episodes.canvas, see_answers=True)
    return corpus, episodes


def without_answers(task: Task) -> Task:
    """The task with the outputs of its test pairs removed."""
    return Task(task.id, task.demos, tuple(Pair(q.input, None) for q in task.queries))


def _read_parent(run: RunConfig, paths: RunPaths) -> Parent | None:
    if paths.parent is None:
        if run.decoder.init is not None:
            raise CheckpointError(
                f"{run.experiment}: decoder.init is {run.decoder.init!r}, but no weights to start"
                " from were given"
            )
        return None
    parent = read_parent(paths.parent, run.decoder.init_sha256)
    held_out = [r.task for r in read_tasks(paths.tasks) if r.split == "evaluation"]
    refuse_leak(run, parent, held_out, paths.strict_parents)
    return parent


def _key(run: RunConfig, paths: RunPaths, parent: Parent | None) -> str:
    """Digest of everything that determines a run: a state of another one is never resumed."""
    files = [file_digest(path) for path in (paths.tasks, paths.augmentations)]
    files += [] if parent is None else [parent.sha256]
    return digest([plain(run), files, code_digest(*train_code(run.context.source))])


def _name(run: RunConfig) -> str:
    return f"{run.experiment}/{run.stage}/seed{run.seed}"


def _resume(
    trainer: Trainer, tracker: Tracker, folder: Path, device: torch.device
) -> dict[str, Any]:
    state = load_state(folder, device)
    if state is None:
        return {}
    trainer.load_state_dict(state["trainer"])
    tracker.rows = list(state["rows"])
    log.info("going on from step %d (%s)", trainer.step_number, folder)
    return dict(state["history"])


def _loop(
    run: RunConfig,
    trainer: Trainer,
    tracker: Tracker,
    folder: Path,
    history: dict[str, Any],
    started: float,
    progress: Progress,
) -> str | None:
    """Train to the end, to the target, or to a finding; returns why it ended early."""
    train, reported, reason = run.train, set[str](), None

    def save() -> None:
        spent = {**history, "seconds": history["seconds"] + time.time() - started}
        state = {"trainer": trainer.state_dict(), "rows": tracker.rows, "history": spent}
        save_state(folder, trainer.step_number, state)

    with Interruption() as interruption, progress:
        while trainer.step_number < train.steps and reason is None:
            trainer.step()
            step = trainer.step_number
            if step % train.log_every == 0 or step == train.steps:
                tracker.log(trainer.row())
                progress.show(tracker.rows[-1])
                reason = _health(run, tracker.rows, reported)
            if train.eval_every and step % train.eval_every == 0 and reason is None:
                result = trainer.evaluate()
                tracker.log({"step": step, **result})
                exact, target = result.get("all.exact_accuracy", 0.0), train.target_exact_accuracy
                progress.say(f"step {step}: exact match {exact:.1%} over the training episodes")
                reason = "target" if target is not None and exact >= target else None
            if interruption.signal and reason is None:
                save()
                log.warning("%s: saved step %d, run again to go on", interruption.signal, step)
                sys.exit(EXIT_INTERRUPTED)
            if step % train.save_every == 0 and step < train.steps and reason is None:
                save()
    if reason not in (None, "target"):
        log.warning("stopped at step %d: %s", trainer.step_number, reason)
    return reason


def _health(run: RunConfig, rows: list[dict[str, float]], reported: set[str]) -> str | None:
    """Warn once about each finding; name the one that ends the run, if any does."""
    for finding in [*check_rules(rows, run.health), *check_stuck(rows, run.health)]:
        label = f"{finding.finding}/{finding.severity}"
        if label not in reported:
            reported.add(label)
            log.warning("health, step %d: %s: %s", finding.step, finding.finding, finding.message)
    reason = stop_reason(rows, run.health)
    if reason is not None and (run.train.stop_on_health or reason.value is None):
        return reason.finding
    return None


def _record(
    run: RunConfig,
    trainer: Trainer,
    device: torch.device,
    parent: Parent | None,
    loaded: dict[str, Any] | None,
) -> dict[str, Any]:
    tasks = trainer.corpus.tasks
    parents = [] if parent is None or parent.record is None else [parent.record]
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
        name = torch.cuda.get_device_name(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"cpu, {torch.get_num_threads()} threads"
    return {
        "experiment": run.experiment,
        "stage": run.stage,
        "seed": run.seed,
        "kind": "trm" if run.context.source == "embedding" else "etrm",
        "split": run.split,
        "config": plain(run),
        "tasks": [task.id for task in tasks],
        "puzzles": trainer.corpus.num_puzzles,
        "recipes_digest": trainer.corpus.recipes_digest(),
        "lanes": {str(lane.side): len(lane) for lane in trainer.episodes},
        "seen_tasks": seen_tasks(tasks, parents),
        "parents": [
            {k: p[k] for k in ("experiment", "stage", "seed", "split", "key")} for p in parents
        ],
        "unproven": [] if parent is None else parent.unproven,
        "init": loaded,
        "num_params": num_parameters(trainer.model),
        "steps_done": trainer.step_number,
        "device": name,
        "peak_memory_bytes": memory,
        "versions": versions(),
        "commit": commit(),
        "code_digest": code_digest(*train_code(run.context.source)),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
