"""The slots of a batch, shared out over canvas lanes, ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import Sampler
from etrm.data.packing import Room
from etrm.errors import UserError
from etrm.models.act import Carry, Model, empty_carry
from etrm.runtime.distributed import Ranks

CARRIED = ("z_H", "z_L", "state", "context", "steps", "halted")


class SlotError(UserError):
    """Questions that cannot be shared out over the slots of a batch."""


@dataclass
class Lane:
    """Slots of one canvas side that go through the model together."""

    side: int
    sampler: Sampler
    carry: Carry
    slots: Tensor  # [B] int64: their numbers in the whole batch
    places: Tensor  # [B] int64: their numbers among the slots of this side, on the host
    followed: Followed | None = None  # where the host must know what they hold

    def batch(self, step: int) -> Batch:
        """New samples for a step, with what is known of the samples that are held after it."""
        batch = self.sampler.batch(step)
        batch.room = None if self.followed is None else self.followed.room(step)
        return batch


class Followed:
    """Which question each slot holds, known to the host without holding up the device.

    The flags of slots that halted are copied when they are there. The host looks at them when it
    puts the next step's batch together; by then the device is at work on what came after them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.slots = sampler, sampler.slots.cpu()
        self.held = np.zeros(len(self.slots), dtype=np.int64)
        self._halted = torch.ones(len(self.slots), dtype=torch.bool)
        self._copied: torch.cuda.Event | None = None
        if sampler.slots.device.type == "cuda":
            self._halted, self._copied = self._halted.pin_memory(), torch.cuda.Event()

    def note(self, halted: Tensor) -> None:
        """These slots [B] take the next step's questions."""
        self._halted.copy_(halted, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def room(self, step: int) -> Room | None:
        """Bounds for the demos of what the slots hold when those that halted have new questions."""
        if self._copied is not None:
            self._copied.synchronize()
        new = self.sampler.questions(step, self.slots).numpy()
        self.held = np.where(self._halted.numpy(), new, self.held)
        return self.sampler.room(self.held)


def make_lanes(
    run: RunConfig,
    model: Model,
    corpus: Corpus,
    episodes: Sequence[Episodes],
    ranks: Ranks,
    dtype: torch.dtype,
    most: Callable[[Episodes], int],
) -> list[Lane]:
    """This rank's slots, all free, at most `most` of a lane together.

    Neither ranks nor micro-batches change which samples a slot takes.
    """
    size, demos = run.train.batch_size, model.context.needs_demos
    if size < ranks.size:
        raise SlotError(
            f"train.batch_size: found {size}, expected at least one slot for each of the"
            f" {ranks.size} ranks; raise it or use fewer GPUs"
        )
    lanes, first = [], 0
    for lane, count in zip(episodes, share_out(episodes, size), strict=True):
        own = ranks.own(torch.arange(first, first + count))
        parts = -(-len(own) // most(lane)) or 1
        for slots in own.tensor_split(parts) if len(own) else ():
            numbers, noise = slots.to(corpus.device), model.context.noise_size
            sampler = Sampler(corpus, lane, numbers, run.seed, run.episodes, demos, noise)
            carry = empty_carry(model, sampler.batch(0), dtype)
            # On every device, so that a state goes on with any; `meta` has no values to follow.
            follow = demos and corpus.device.type != "meta"
            followed = Followed(sampler) if follow else None
            lanes.append(Lane(lane.side, sampler, carry, numbers, slots - first, followed))
        first += count
    return lanes


def share_out(episodes: Sequence[Episodes], slots: int) -> list[int]:
    """Slots per lane in proportion to its questions (largest remainders), at least one each."""
    if not episodes:
        raise SlotError(
            "found no training question, expected at least one: the tasks trained on have too few"
            " pairs (for episodes.queries), or all of them are held out"
        )
    if slots < len(episodes):
        sides = [lane.side for lane in episodes]
        raise SlotError(
            f"train.batch_size: found {slots}, expected at least one slot for each of the canvas"
            f" lanes {sides}; raise it or use fewer lanes"
        )
    total = sum(len(lane) for lane in episodes)
    exact = [len(lane) * slots / total for lane in episodes]
    sizes = [max(1, int(share)) for share in exact]
    while sum(sizes) != slots:
        grow = 1 if sum(sizes) < slots else -1
        able = [i for i, size in enumerate(sizes) if size + grow >= 1]
        best = max(able, key=lambda i: grow * (exact[i] - sizes[i]))
        sizes[best] += grow
    return sizes


def gather(lanes: Sequence[Lane], ranks: Ranks) -> list[dict[str, Any]] | None:
    """What all slots of all ranks hold, by lane in order of slots; None but on the main rank."""
    parts = ranks.gather([_state(lane) for lane in lanes])
    if parts is None:
        return None
    found = [part for of_rank in parts for part in of_rank]
    sides = sorted({part["side"] for part in found})
    return [_joined([part for part in found if part["side"] == side]) for side in sides]


def scatter(lanes: Sequence[Lane], saved: Sequence[Mapping[str, Any]]) -> None:
    """Give this rank's slots back what `gather` has found in them, on however many ranks."""
    by_side = {state["side"]: state for state in saved}
    for lane in lanes:
        state, place, device = by_side[lane.side], lane.places, lane.slots.device

        def own(value: Tensor | None, place: Tensor = place, to: torch.device = device) -> Any:
            return None if value is None else value[place.to(value.device)].to(to)

        batch = Batch(**{k: own(v) for k, v in state["batch"].items()})
        batch.most_cells = lane.sampler.most_cells
        lane.carry = Carry(batch=batch, **{name: own(state[name]) for name in CARRIED})
        if lane.followed is not None:
            lane.followed.held = own(state["held"], to=torch.device("cpu")).numpy()
            lane.followed.note(lane.carry.halted)


def _state(lane: Lane) -> dict[str, Any]:
    values = {name: getattr(lane.carry, name) for name in CARRIED}
    host = {n: None if t is None else t.detach().cpu() for n, t in values.items()}
    batch = {name: tensor.cpu() for name, tensor in lane.carry.batch.tensors().items()}
    held = None if lane.followed is None else torch.from_numpy(lane.followed.held)
    return {"side": lane.side, "places": lane.places, "held": held, "batch": batch, **host}


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of one lane in order of places."""
    order = torch.cat([part["places"] for part in parts]).argsort()

    def join(values: list[Tensor | None]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.cat(tensors)[order] if tensors else None

    batch = {name: join([part["batch"][name] for part in parts]) for name in parts[0]["batch"]}
    carried = {name: join([part[name] for part in parts]) for name in (*CARRIED, "held")}
    return {"side": parts[0]["side"], "batch": batch, **carried}
