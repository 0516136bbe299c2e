"""One training run, from tables and a configuration to a run folder.

A run folder holds `model.safetensors` (raw and averaged weights), `metrics.parquet` (one row per
logged step) and `run.json` (configuration, provenance, cost). They are written when the run is
done. Until then its states are in `RunPaths.state`, where a killed run resumes and where the last
finished run is cached.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.load import plain
from etrm.config.study import RunConfig
from etrm.data.tables import read_sources, read_tasks
from etrm.runtime.distributed import Ranks
from etrm.runtime.interruption import Interruption
from etrm.runtime.progress import Progress
from etrm.runtime.run_lock import Lease
from etrm.storage.checkpoint import CheckpointError, clear_states, remove_temporaries
from etrm.storage.digests import code_digest, run_code, run_key, trajectory_key
from etrm.storage.files import table_digest
from etrm.storage.records import read_run
from etrm.storage.result_cache import CONTINUED, RUN_FILES, restore_result
from etrm.tracking.tracker import Tracker
from etrm.training.build import build_trainer
from etrm.training.initial_weights import Parent, read_parent, refuse_leak
from etrm.training.loop import train
from etrm.training.outputs import cache_run, run_record, write_outputs
from etrm.training.recorder import Recorder

log = logging.getLogger(__name__)
EVALUATED = ("all.", "validation.")  # prefixes of the metrics that W&B shows of a finished run


@dataclass(frozen=True)
class RunPaths:
    """Files and folders that a run reads and writes."""

    tasks: Path
    augmentations: Path
    parent: Path | None  # run folder or official checkpoint that initialises the decoder
    out: Path  # run folder
    state: Path  # states of runs under way, one subfolder per key
    wandb: Path
    strict_parents: tuple[str, ...] = ()  # proposed where a strict run's parent is refused
    keep_state: bool = False  # of the last step, for a run with more steps to continue from


def train_run(
    run: RunConfig,
    paths: RunPaths,
    tracking: TrackingConfig,
    device: str | None = None,
    bar: bool = True,
    ranks: Ranks | None = None,
    execution: ExecutionConfig | None = None,
) -> dict[str, Any]:
    """Train or resume one run, write its run folder, and return its `run.json`.

    `device`: of the only rank; by default a GPU if there is one. `ranks`: this process among those
    that train the run together (`ranks_of_this_run`); rank 0 alone writes, the others return an
    empty record. `bar`: show a progress bar on a terminal (not where several jobs share it).

    Raises `LeakError` when a strict run's parent has seen held-out tasks, `OutputError` when the
    run folder cannot be written but the state can. Exits with `EXIT_INTERRUPTED` after a save when
    SIGTERM, SIGUSR1 or SIGINT arrives, or when another process asks for the run
    (`etrm.runtime.run_lock`). Waits where neither has room (`etrm.runtime.disk_wait`).
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = ranks or Ranks(device=torch.device(device or default))
    name = f"{run.experiment}/{run.stage}/seed{run.seed}"
    with (
        Interruption(tell=ranks.is_rank_zero) as interruption,
        Lease(paths.state, name, interruption, ranks.is_rank_zero) as lease,
    ):
        with interruption.at_once("before the first step", "run the same command again"):
            parent = _accepted_parent(run, paths)
            key, data, shorter = _key(run, paths, parent)
            states, store = paths.state / key[:16], paths.state / "finished" / name
            while ranks.max_(int(not lease.take(key))):
                pass  # another process has the run, and is asked to hand over
            began = time.time()  # the wait for the lease does not count
            record = _restore_finished(paths.out, store, key, states, ranks)
            if record is not None:
                return record
            execution = execution or ExecutionConfig()
            tables = paths.tasks, paths.augmentations
            trainer, loaded = build_trainer(run, tables, parent, ranks, execution)
            tracking = tracking if ranks.is_rank_zero else TrackingConfig(wandb="disabled")
            tracker = Tracker(tracking, run, key, paths.wandb)
            progress = Progress(name, run.train.steps, ranks.is_rank_zero, bar)
            recorder = Recorder(
                trainer, tracker, states, ranks, interruption, lease, progress, began
            )
            interruption.doing = "finishing this step and saving it …"
            recorder.resume(shorter)
        with progress:
            train(trainer, recorder)
        record = run_record(recorder, parent, loaded, data, read_sources(paths.tasks), key)
        write_outputs(paths.out, record, recorder)
        if paths.keep_state:
            recorder.keep(shorter)
        if not ranks.is_rank_zero:
            return {}
        cache_run(paths.out, store, key, states)
        tracker.finish({k: v for k, v in tracker.rows[-1].items() if k.startswith(EVALUATED)})
    return record


def _key(
    run: RunConfig, paths: RunPaths, parent: Parent | None
) -> tuple[str, dict[str, str], Path]:
    """Return the key of a run, the digests of its tables, and the place of a last state.

    The state is that of a run with the same steps, which this one continues, or is continued by.
    """
    data = {table.stem: table_digest(table) for table in (paths.tasks, paths.augmentations)}
    weights = None if parent is None else parent.sha256
    determined = plain(run), list(data.values()), weights, code_digest(*run_code(run))
    shorter = paths.state / CONTINUED / trajectory_key(*determined)[:16]
    return run_key(*determined), data, shorter


def _accepted_parent(run: RunConfig, paths: RunPaths) -> Parent | None:
    """Return the weights that a run starts from, refused where a strict run must not see them."""
    if paths.parent is None:
        if run.decoder.init is not None:
            raise CheckpointError(
                f"{run.experiment}: decoder.init is {run.decoder.init!r}, but no weights to start"
                " from were given"
            )
        return None
    parent = read_parent(paths.parent, run.decoder.init_sha256)
    records = read_tasks(paths.tasks, run.sources)
    held_out = [record.task for record in records if record.split == "evaluation"]
    refuse_leak(run, parent, held_out, paths.strict_parents)
    return parent


def _restore_finished(
    out: Path, store: Path, key: str, states: Path, ranks: Ranks
) -> dict[str, Any] | None:
    """Restore this run from the cache and return its record (empty off rank 0), or None."""
    if ranks.is_rank_zero:
        remove_temporaries(out)
    if not ranks.max_(int(ranks.is_rank_zero and restore_result(out, RUN_FILES, store, key))):
        return None
    if not ranks.is_rank_zero:
        return {}
    record = read_run(out)
    log.info("the same run was finished on %s: restored from %s", record["finished"], store)
    clear_states(states)  # of a run that was killed when it had just been cached
    return record
