"""One training run, from tables and a configuration to a run folder.

A run folder holds `model.safetensors` (raw and averaged weights), `metrics.parquet` (one row per
logged step) and `run.json` (configuration, provenance, what it cost). They are written when the
run is done; until then its state is in `RunPaths.state`, from which a killed run goes on, and where
the last finished run is kept.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from etrm.arc.task import Pair, Task
from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.load import plain
from etrm.config.registry import context_source
from etrm.config.study import RunConfig
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import on_lanes, training_questions
from etrm.data.leaks import seen_tasks
from etrm.data.tables import read_augmentations, read_tasks
from etrm.errors import UserError
from etrm.models.build import build_model, num_parameters
from etrm.models.compute import device_name
from etrm.runtime.disk_wait import obstacle, until_written
from etrm.runtime.distributed import Ranks
from etrm.runtime.environment import environment, versions
from etrm.runtime.interruption import Interruption
from etrm.runtime.progress import Progress
from etrm.runtime.run_lock import Lease
from etrm.storage.checkpoint import CheckpointError, clear_states, remove_temporaries, save_weights
from etrm.storage.digests import code_digest, code_digests, commit, digest, run_key, train_code
from etrm.storage.files import file_digest, write_json_atomic
from etrm.storage.finished import RUN_FILES, keep, take_back
from etrm.storage.records import read_run
from etrm.tracking.tracker import Tracker
from etrm.training.initial_weights import Parent, read_parent, refuse_leak, start_from
from etrm.training.loop import Loop
from etrm.training.trainer import Trainer

log = logging.getLogger(__name__)


class OutputError(UserError):
    """The files of a finished run could not be written."""


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
    ranks: Ranks | None = None,
    execution: ExecutionConfig | None = None,
) -> dict[str, Any]:
    """Train (or go on training) one run and write its run folder; returns its `run.json`.

    `device`: of the only rank; by default a GPU if there is one. `ranks`: this process among those
    that train the run together (`ranks_of_this_run`); only the main one writes anything, the
    others return an empty record. `bar`: show a progress bar on a terminal (not where several jobs
    share it).

    Raises `LeakError` when a strict run's parent has seen held-out tasks, `OutputError` when the
    run folder cannot be written but the state can, and exits with `EXIT_INTERRUPTED` after saving
    when SIGTERM, SIGUSR1 or SIGINT arrives, or when another process asks for the run
    (`etrm.runtime.run_lock`). Where neither has room, it waits (`etrm.runtime.disk_wait`).
    """
    if ranks is None:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        ranks = Ranks(device=torch.device(device or default))
    with (
        Interruption(tell=ranks.main) as interruption,
        Lease(paths.state, _name(run), interruption, ranks.main) as lease,
    ):
        with interruption.at_once("before the first step", "run the same command again"):
            parent = _read_parent(run, paths)
            data = {p.stem: file_digest(p) for p in (paths.tasks, paths.augmentations)}
            key, store = _key(run, data, parent), paths.state / "finished" / _name(run)
            states = paths.state / key[:16]
            while ranks.largest(int(not lease.take(key))):
                pass  # another process has the run, and is asked to hand over
            began = time.time()
            if ranks.main:
                remove_temporaries(paths.out)
            if ranks.largest(int(ranks.main and take_back(paths.out, RUN_FILES, store, key))):
                return _taken_back(paths.out, store, states) if ranks.main else {}
            trainer, loaded = _trainer(run, paths, parent, ranks, execution or ExecutionConfig())
            off = TrackingConfig(wandb="disabled")
            shown = plain(run)
            tracker = Tracker(
                tracking if ranks.main else off, _name(run), key[:16], shown, paths.wandb
            )
            progress = Progress(_name(run), run.train.steps, ranks.main, bar)
            loop = Loop(trainer, tracker, states, ranks, interruption, lease, progress, began)
            loop.resume()
        with progress:
            loop.train()
        record = _record(run, trainer, ranks, parent, loaded) | {
            "started": loop.started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(loop.seconds, 1),
            "stopped_early": loop.reason,
            "health": loop.events,
            "data": data,
            "key": key,
        }
        _write_outputs(paths.out, record, loop)
        if not ranks.main:
            return {}
        _keep(paths.out, store, key, states)
        tracker.finish({k: v for k, v in tracker.rows[-1].items() if k.startswith("all.")})
    return record


def _taken_back(out: Path, store: Path, states: Path) -> dict[str, Any]:
    record = read_run(out)
    log.info("the same run was finished on %s: taken back from %s", record["finished"], store)
    clear_states(states)  # of a run that was killed when it had just been kept
    return record


def _trainer(
    run: RunConfig, paths: RunPaths, parent: Parent | None, ranks: Ranks, execution: ExecutionConfig
) -> tuple[Trainer, dict[str, Any] | None]:
    """The trainer before its first step, and what its decoder has of its parent."""
    corpus, episodes = training_data(run, paths, ranks.device)
    model = build_model(run, corpus.num_puzzles).to(ranks.device)
    loaded = None
    if parent is not None:
        loaded = start_from(model.decoder, parent, run.decoder.weights, run.model)
    return Trainer(run, model, corpus, episodes, ranks, execution), loaded


def _write_outputs(out: Path, record: dict[str, Any], loop: Loop) -> None:
    """Write the run folder, on the main rank; where that fails, the state is saved for it.

    Where that fails too, both are tried again until there is room, or a signal ends it.
    """
    error: OSError | None = None
    failed = False

    def write() -> bool:
        nonlocal error, failed
        loop.end_if_lost()
        error = _write_results(out, record, loop) if loop.ranks.main else None
        failed = bool(loop.ranks.largest(int(error is not None)))
        return not failed or loop.save() or loop.saved == loop.step

    def problem() -> str:
        assert error is not None
        return (
            f"{out}: training is done, but its results could not be written"
            f" ({obstacle(out, error)}), nor could its state: {loop.unsaved()}"
        )

    name = _name(loop.run)
    saved = until_written(write, problem, name, loop.ranks, loop.interruption)
    if not failed:
        return
    if not saved:
        loop.end_interrupted(loop.ranks.largest(loop.interruption.number), saved)
    if error is None:
        sys.exit(1)  # the main rank says why
    raise OutputError(
        f"{out}: training is done, but its results could not be written ({obstacle(out, error)}):"
        " make room, or make the folder writable, and run the same command again: it goes on from"
        f" the state of step {loop.saved}"
    )


def _write_results(out: Path, record: dict[str, Any], loop: Loop) -> OSError | None:
    """Write the files of a run; what is incomplete is removed, and the error returned."""
    weights, metrics = out / "model.safetensors", out / "metrics.parquet"
    written: list[Path] = []
    try:
        save_weights(weights, loop.trainer.model, loop.trainer.ema.values)
        written.append(weights)
        loop.tracker.write(metrics)
        written.append(metrics)
        record["weights_sha256"] = file_digest(weights)
        write_json_atomic(out / "run.json", record)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        return error
    return None


def _keep(out: Path, store: Path, key: str, states: Path) -> None:
    """Keep the finished run; its state is not needed any more then."""
    try:
        keep(out, RUN_FILES, store, key)
        clear_states(states)
    except OSError as error:
        log.warning("%s is complete, but could not be kept in %s as well (%s)", out, store, error)


def training_data(
    run: RunConfig, paths: RunPaths, device: torch.device
) -> tuple[Corpus, list[Episodes]]:
    """The corpus of a run, which is all that it trains on, and its questions by lane.

    Every run leaves out training tasks that hold a test pair of a held-out task, a strict run those
    as well that touch one in another way. Test outputs of held-out tasks are removed before
    anything else sees them.
    """
    records = [r for r in read_tasks(paths.tasks) if r.answer_of is None]
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


def _key(run: RunConfig, data: Mapping[str, str], parent: Parent | None) -> str:
    code = code_digest(*train_code(run.context.source))
    weights = None if parent is None else parent.sha256
    return run_key(plain(run), list(data.values()), weights, code)


def _name(run: RunConfig) -> str:
    return f"{run.experiment}/{run.stage}/seed{run.seed}"


def _record(
    run: RunConfig,
    trainer: Trainer,
    ranks: Ranks,
    parent: Parent | None,
    loaded: dict[str, Any] | None,
) -> dict[str, Any]:
    tasks, device = trainer.corpus.tasks, ranks.device
    parents = [] if parent is None or parent.record is None else [parent.record]
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
        "device": device_name(device),
        "ranks": ranks.size,
        "peak_memory_bytes": ranks.largest(memory),  # of the rank that took most
        "versions": versions(),
        "commit": commit(),
        "code_digest": code_digest(*train_code(run.context.source)),
        "code": code_digests(*train_code(run.context.source)),
        "environment": environment(),
    }
