"""First weights of a run: an earlier run or an official checkpoint, its origin, and leaks by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from etrm.arc.overlap import Overlap
from etrm.arc.task import Task
from etrm.config.parents import DECODER_SIZES
from etrm.config.study import ModelConfig, RunConfig
from etrm.config.text import first_few
from etrm.data.seen_tasks import find_touched, read_seen_run
from etrm.errors import UserError
from etrm.storage.checkpoint import CheckpointError, init_decoder
from etrm.storage.official import check_sha256, decoder_weights

WEIGHTS = "model.safetensors"
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
    """Read the parent at a run folder, its `model.safetensors`, or an official checkpoint file.

    Raises `CheckpointError` for a file that is missing or has another digest than `sha256`, or
    than the run recorded of its weights; `DamagedFileError` for an incomplete `run.json`.
    """
    folder = path if path.is_dir() else path.parent
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise CheckpointError(f"{weights}: no such file, expected weights to start from")
    found = check_sha256(weights, sha256)
    # A `model.safetensors` beside a run.json is a run's own; all else is of unknown origin.
    if weights.name != WEIGHTS or not (folder / "run.json").is_file():
        if path.is_dir():
            raise CheckpointError(f"{path}: found no run.json, expected a run folder")
        return Parent(path, weights, found, None)
    record = read_seen_run(folder)
    if record["weights_sha256"] != found:
        raise CheckpointError(
            f"{weights}: found SHA-256 {found}, expected {record['weights_sha256']} from its"
            " run.json: the file was changed or damaged; run its stage again"
        )
    return Parent(folder, weights, found, record)


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


def load_initial_weights(
    decoder: nn.Module, parent: Parent, which: str, model: ModelConfig
) -> dict[str, Any]:
    """Load a decoder's first weights; return names loaded, skipped and left new, for run.json.

    Raises `CheckpointError` where sizes or cycles differ from those of `model`.
    """
    if parent.record is not None:  # one of our runs
        theirs = parent.record["config"]["model"]
        pairs = [(name, theirs[name], getattr(model, name)) for name in DECODER_SIZES]
        differing = [f"{name} {its} there and {our} here" for name, its, our in pairs if its != our]
        if differing:
            raise CheckpointError(
                f"{parent.path}: found another model: {', '.join(differing)}; expected the sizes"
                " and cycles of the experiment"
            )
        report = {**init_decoder(decoder, parent.weights, which), "unchecked": []}
    else:
        ours = decoder.state_dict()
        given, skipped, unchecked = decoder_weights(parent.weights, ours, model)
        decoder.load_state_dict(given, strict=False)  # an EMA file has no buffers
        report = {
            "weights": "as in the file",
            "loaded": [f"decoder.{n}" for n in ours if n in given],
            "skipped": skipped,
            "new": [f"decoder.{n}" for n in ours if n not in given],
            "unchecked": unchecked,
        }
    return {**report, "path": str(parent.weights), "sha256": parent.sha256}
