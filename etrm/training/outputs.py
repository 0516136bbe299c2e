"""The files of a finished run: `model.safetensors`, `metrics.parquet`, `run.json`; its cache."""

from __future__ import annotations

import logging
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from etrm.config.load import plain
from etrm.data.seen_tasks import seen_tasks
from etrm.errors import UserError
from etrm.models.build import num_parameters
from etrm.models.compute import device_name
from etrm.runtime.disk_wait import obstacle, until_written
from etrm.runtime.environment import environment, versions
from etrm.storage.checkpoint import clear_states, save_weights
from etrm.storage.digests import code_digest, code_digests, commit, run_code
from etrm.storage.files import file_digest, write_json_atomic
from etrm.storage.result_cache import RUN_FILES, cache_result
from etrm.training.initial_weights import Parent
from etrm.training.recorder import Recorder

log = logging.getLogger(__name__)
Json = dict[str, Any]


class OutputError(UserError):
    """The files of a finished run could not be written."""


def run_record(
    recorder: Recorder,
    parent: Parent | None,
    loaded: Json | None,
    data: Json,
    sources: Json,
    key: str,
) -> Json:
    """Return the content of `run.json` without the digest of the weights.

    `loaded`: the report of the parent's weights; `data`: digests of the tables; `sources`: the
    identity of those that the tasks came from.
    """
    trainer, run, ranks = recorder.trainer, recorder.trainer.run, recorder.ranks
    tasks, code = trainer.corpus.tasks, run_code(run)
    parents = [] if parent is None or parent.record is None else [parent.record]
    if ranks.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(ranks.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # from KiB
    identity = ("experiment", "stage", "seed", "split")
    unproven = [] if parent is None else parent.unproven  # ancestors of unknown origin
    unproven += trainer.renewal.unproven if trainer.renewal else ()
    return {
        **{name: getattr(run, name) for name in identity},
        "kind": "trm" if run.context.source == "embedding" else "etrm",
        "config": plain(run),
        "tasks": [task.id for task in tasks],
        "puzzles": trainer.corpus.num_puzzles,
        "recipes_digest": trainer.corpus.recipes_digest(),
        "lanes": {str(each.lane): len(each) for each in trainer.episodes},
        "seen_tasks": seen_tasks(tasks, parents),  # transitively
        "parents": [{name: p[name] for name in (*identity, "key")} for p in parents],
        "unproven": unproven,
        "init": loaded,
        "num_params": num_parameters(trainer.model),
        "steps_done": trainer.step_number,
        "device": device_name(ranks.device),
        "ranks": ranks.world_size,
        "peak_memory_bytes": ranks.max_(memory),  # of the rank that took most
        "versions": versions(),
        "commit": commit(),
        "code_digest": code_digest(*code),
        "code": code_digests(*code),
        "environment": environment(),
        "started": recorder.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(recorder.seconds, 1),  # of all processes that had a part in it
        "stopped_early": recorder.stop_reason,
        "health": recorder.events,
        "data": data,
        "sources": sources,
        "key": key,
    }


def write_outputs(out: Path, record: Json, recorder: Recorder) -> None:
    """Write the run folder on rank 0; where that fails, save the state instead.

    Where that fails too, try both again until there is room, or a signal ends it. Raises
    `OutputError` where only the state could be saved.
    """
    error: OSError | None = None
    failed = False

    def write_results() -> bool:
        nonlocal error, failed
        recorder.exit_if_superseded()
        error = _write_files(out, record, recorder) if recorder.ranks.is_rank_zero else None
        failed = bool(recorder.ranks.max_(int(error is not None)))
        return not failed

    def write() -> bool:
        # A state of the last step holds all that the results are made from. Where there is room for
        # it, there may be room by now for the results as well.
        if write_results():
            return True
        if not recorder.save() and recorder.saved != recorder.trainer.step_number:
            return False
        write_results()
        return True

    def problem() -> str:
        assert error is not None
        found = obstacle(out, error)
        return f"{out}: training is done, but its results could not be written ({found})"

    saved = until_written(
        write,
        lambda: f"{problem()}, nor could its state: {recorder.unsaved()}",
        recorder.progress.name,
        recorder.ranks,
        recorder.interruption,
    )
    if not failed:
        return
    if not saved:
        recorder.exit_interrupted(recorder.ranks.max_(recorder.interruption.number), saved)
    if error is None:
        sys.exit(1)  # rank 0 says why
    raise OutputError(
        f"{problem()}: make room, or make the folder writable, and run the same command again:"
        f" it resumes from the state of step {recorder.saved}"
    )


def _write_files(out: Path, record: Json, recorder: Recorder) -> OSError | None:
    """Write the files of a run; on an error, remove those that are there and return it."""
    weights, metrics = out / "model.safetensors", out / "metrics.parquet"
    written: list[Path] = []
    try:
        save_weights(weights, recorder.trainer.model, recorder.trainer.ema.values)
        written.append(weights)
        recorder.tracker.write(metrics)
        written.append(metrics)
        record["weights_sha256"] = file_digest(weights)
        write_json_atomic(out / "run.json", record)  # last: with it, the run is finished
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        return error
    return None


def cache_run(out: Path, store: Path, key: str, states: Path) -> None:
    """Cache the finished run, and remove its states, which nothing needs any more."""
    try:
        cache_result(out, RUN_FILES, store, key)
        clear_states(states)
    except OSError as error:
        log.warning("%s is complete, but could not be cached in %s (%s)", out, store, error)
