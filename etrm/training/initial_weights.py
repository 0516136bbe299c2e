"""First weights of a run: an earlier run or an official checkpoint, its origin, and leaks by it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from etrm.arc.overlap import Overlap
from etrm.arc.task import Task
from etrm.config.parents import decoder_differences
from etrm.config.study import MAY_DIFFER, RunConfig
from etrm.config.text import first_few
from etrm.data.seen_tasks import find_touched, read_seen_run
from etrm.errors import UserError
from etrm.storage.checkpoint import CheckpointError, init_decoder
from etrm.storage.first_weights import RECORD, find_first_weights
from etrm.storage.official import check_sha256, decoder_weights, read_official, size_differences
from etrm.storage.trained_with import CONFIG, KNOWABLE, NOTED, own_settings

log = logging.getLogger(__name__)
MAX_NAMED = 5  # tasks named in an error


class LeakError(UserError):
    """A strict run would start from weights that have seen held-out tasks."""


@dataclass(frozen=True)
class Parent:
    """Weights that a run starts from."""

    path: Path  # run folder or checkpoint
    weights: Path
    sha256: str  # of the weights
    record: dict[str, Any] | None  # run.json; None for an unknown origin

    @property
    def name(self) -> str:
        """Return the experiment, or the path of a checkpoint of unknown origin."""
        return str(self.path) if self.record is None else str(self.record["experiment"])

    @property
    def unproven(self) -> list[str]:
        """Return the checkpoints of unknown origin among its ancestors, itself included."""
        return [str(self.path)] if self.record is None else list(self.record["unproven"])

    def may_have_seen(self, tasks: Sequence[Task]) -> bool:
        """Return whether it has seen one of `tasks`, by id or content, or nobody knows."""
        if self.record is None or self.unproven:
            return True
        return bool(find_touched(self.record["seen_tasks"], tasks))


def read_parent(path: Path, sha256: str | None) -> Parent:
    """Read the parent at `path` (`etrm.storage.first_weights`).

    Raises `CheckpointError` for a file that is missing or has another digest than `sha256`, or
    than the run recorded of its weights; `DamagedFileError` for an incomplete `run.json`.
    """
    first = find_first_weights(path)
    if not first.file.is_file():
        raise CheckpointError(f"{first.file}: no such file, expected weights to start from")
    found = check_sha256(first.file, sha256)
    if first.run is None:
        return Parent(path, first.file, found, None)
    if not (first.run / RECORD).is_file():
        raise CheckpointError(
            f"{path}: found no run.json, expected a run folder; name {first.file} where that is a"
            " checkpoint of official TRM"
        )
    record = read_seen_run(first.run)
    if record["weights_sha256"] != found:
        raise CheckpointError(
            f"{first.file}: found SHA-256 {found}, expected {record['weights_sha256']} from its"
            " run.json: the file was changed or damaged; run its stage again"
        )
    return Parent(first.run, first.file, found, record)


def refuse_leak(
    run: RunConfig, parent: Parent, held_out: Sequence[Task], strict_parents: Sequence[str]
) -> None:
    """Raise `LeakError` where a strict run would start from weights that saw a held-out task.

    `SeenContent` defines it: by its id, or by its content up to dihedral and colours.
    Weights of unknown origin are refused unless `decoder.init_trust` accepts them. `strict_parents`
    are the strict TRMs of the study, which an error proposes.
    """
    if run.split != "strict":
        return
    if parent.unproven and not run.decoder.init_trust:
        origin, advice = ", ".join(parent.unproven), _advice(run, parent, {}, strict_parents)
        raise LeakError(
            f"{run.experiment} is strict, but nobody knows which tasks {origin} has seen: {advice},"
            " or set decoder.init_trust: true, which marks its scores `held-out: not proven`"
        )
    if parent.record is None:
        return
    leaked = find_touched(parent.record["seen_tasks"], held_out)
    if leaked:
        named = ", ".join(first_few(leaked, MAX_NAMED))
        raise LeakError(
            f"{run.experiment} is strict, but its decoder.init {parent.name!r} has seen"
            f" {len(leaked)} of {len(held_out)} held-out tasks ({named}):"
            f" {_advice(run, parent, leaked, strict_parents)}"
        )


def _advice(
    run: RunConfig, parent: Parent, leaked: Mapping[str, Overlap], strict_parents: Sequence[str]
) -> str:
    """Return advice on a refused parent; one that is strict itself leaked by its training tasks."""
    # A strict TRM must not be told to start from itself.
    others = [name for name in strict_parents if name not in (parent.name, run.experiment)]
    advice = [f"start from {' or '.join(map(repr, others))}"] if others else []
    if leaked and parent.record is not None and parent.record["split"] == "strict":
        names = sorted({name for touch in leaked.values() for name in touch.tasks})
        tasks = ", ".join(first_few(names, MAX_NAMED))
        if run.decoder.init in strict_parents:
            again = f"run the stage `tasks` and {parent.name!r} again, with today's code and data:"
            advice.append(f"{again} that leaves out its training tasks {tasks}")
        else:
            advice.append(f"train {parent.name!r} again without its training tasks {tasks}")
    if not advice and run.context.source == "embedding":
        advice.append("set decoder.init: null, to train it from the beginning")
    return ", or ".join(advice or ["pretrain a strict TRM"])


def load_initial_weights(decoder: nn.Module, parent: Parent, run: RunConfig) -> dict[str, Any]:
    """Load a decoder's first weights; return names loaded, skipped and left new, for run.json.

    Raises `CheckpointError` where they were trained with another model than that of `run`.
    """
    which = run.decoder.weights
    if parent.record is not None:  # one of our runs
        checked = _compare(parent, run, own_settings(parent.record["config"]))
        report = init_decoder(decoder, parent.weights, which)
    else:
        given, ours = read_official(parent.weights, which), decoder.state_dict()
        sizes = size_differences(given.tensors, ours)
        checked = _compare(parent, run, given.settings, sizes, KNOWABLE)
        tensors, skipped = decoder_weights(parent.weights, given.tensors, ours)
        decoder.load_state_dict(tensors, strict=False)  # an EMA file has no buffers
        report = {
            "weights": "ema" if given.averaged else "as in the file",
            "loaded": [f"decoder.{n}" for n in ours if n in tensors],
            "skipped": skipped,
            "new": [f"decoder.{n}" for n in ours if n not in tensors],
        }
    return {**report, **checked, "path": str(parent.weights), "sha256": parent.sha256}


def _compare(
    parent: Parent,
    run: RunConfig,
    theirs: Mapping[str, Any],
    sizes: Sequence[str] = (),
    knowable: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Return the differences that are allowed, and the `knowable` settings that nobody knows.

    Both are logged. Raises `CheckpointError` for a difference that `decoder.init_differs` does not
    name, and for the sizes that differ.
    """
    differ = decoder_differences(theirs, run.model)
    refused = {name: t for name, t in differ.items() if name not in run.decoder.init_differs}
    if sizes or refused:
        names = ", ".join(name for name in refused if name in MAY_DIFFER)
        raise CheckpointError(
            f"{parent.path}: found another model: {', '.join([*sizes, *refused.values()])};"
            " expected the sizes and cycles of the experiment: change its `model`, or take another"
            f" checkpoint{f', or accept it by decoder.init_differs: [{names}]' if names else ''}"
        )
    ours = {
        "context_tokens": run.model.context_tokens,
        "max_steps": run.halting.max_steps,
        "dtype": run.train.dtype,
    }
    allowed = list(differ.values()) + [
        f"{name} {theirs[name]} there and {ours[name]} here"
        for name in NOTED
        if name in theirs and theirs[name] != ours[name]
    ]
    unchecked = [name for name in knowable if name not in theirs]
    if allowed:
        log.warning("%s: trained with %s", parent.path, ", ".join(allowed))
    if unchecked:
        log.warning(
            "%s: nobody knows whether these are those of the experiment: %s (no %s beside it)",
            *(parent.path, ", ".join(unchecked), CONFIG),
        )
    return {"differs": allowed, "unchecked": unchecked}
