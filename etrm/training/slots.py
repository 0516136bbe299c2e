"""The slots of a batch, apportioned to canvas lanes, ranks and micro-batches.

A lane is one canvas shape (rows, columns). A slot belongs to one lane and one rank for a whole
run, and takes the same samples whatever the numbers of ranks and micro-batches. B slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.config.lanes import Lane
from etrm.config.study import RunConfig
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import Sampler
from etrm.data.epochs import EpochOrder
from etrm.data.host_copies import HostCopies
from etrm.data.packing import TokenBounds
from etrm.errors import UserError
from etrm.models.act import Carry, Model, empty_carry
from etrm.runtime.distributed import Ranks
from etrm.training.micro_batches import max_slots

CARRIED = ("z_H", "z_L", "state", "context", "steps", "halted")  # tensors of a carry, in a state


class SlotError(UserError):
    """Questions that the slots of a batch cannot be apportioned to."""


class HostSlotTracker:
    """The demos that each slot holds, known to the host without holding up the device.

    Flags of halted slots are copied when they are there. The host reads them when it assembles the
    next step's batch; by then the device is at work on the backward pass that follows them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.slots = sampler, sampler.slots.cpu()
        self.held = sampler.members(0, self.slots)  # [B, K]: members of the lane's pools
        self.record_halted(torch.ones(len(self.slots), dtype=torch.bool))

    def record_halted(self, halted: Tensor) -> None:
        """Start to copy the flags [B] of slots that take the next step's questions."""
        self._halted = HostCopies({"halted": halted})

    def token_bounds(self, step: int) -> TokenBounds | None:
        """Return bounds for the demos held at `step`, when halted slots have new samples."""
        new = self.sampler.members(step, self.slots)
        halted = self._halted.read()["halted"]
        self.held = torch.where(halted[:, None], new, self.held)
        return self.sampler.episodes.token_bounds(self.held)


@dataclass
class LaneSlots:
    """Slots of one lane that go through the model together: one micro-batch."""

    lane: int  # number among the lanes, from 0
    sampler: Sampler
    carry: Carry
    slots: Tensor  # [B] int64, on the device: numbers in the whole batch
    positions: Tensor  # [B] int64, on the host: numbers among the slots of this lane
    host_tracker: HostSlotTracker | None = None  # where demos are packed by bounds

    def take_from(self, corpus: Corpus, episodes: Episodes) -> None:
        """Take new samples from other questions of the lane; slots keep those that they have."""
        self.sampler = replace(self.sampler, corpus=corpus, episodes=episodes)
        if self.host_tracker is not None:
            self.host_tracker.sampler = self.sampler

    def batch(self, step: int) -> Batch:
        """Return new samples of `step`, with token bounds for the samples held after it."""
        batch = self.sampler.batch(step)
        if self.host_tracker is not None:
            batch.token_bounds = self.host_tracker.token_bounds(step)
        return batch


def make_lane_slots(
    run: RunConfig,
    model: Model,
    corpus: Corpus,
    episodes: Sequence[Episodes],
    ranks: Ranks,
    dtype: torch.dtype,
    execution: ExecutionConfig,
    memory: float,
) -> list[LaneSlots]:
    """Return this rank's slots, all free, in micro-batches that `memory`, in bytes, allows.

    Raises `SlotError` where there are fewer slots than lanes or ranks.
    """
    size, demos = run.train.batch_size, model.context.needs_demos
    if size < ranks.world_size:
        raise SlotError(
            f"train.batch_size: found {size}, expected at least one slot for each of the"
            f" {ranks.world_size} ranks; raise it or use fewer GPUs"
        )
    groups, first = [], 0
    counts = apportion_slots(episodes, size)
    for number, (lane, count) in enumerate(zip(episodes, counts, strict=True)):
        own = ranks.own(torch.arange(first, first + count))  # numbers in the whole batch
        order = EpochOrder(lane.task, count, run.seed) if run.episodes.order == "epochs" else None
        parts = -(-len(own) // max_slots(run, model, lane, execution, memory)) or 1  # rounded up
        for numbers in own.tensor_split(parts) if len(own) else ():
            slots, noise = numbers.to(corpus.device), model.context.noise_size
            sampler = Sampler(corpus, lane, slots, run.seed, run.episodes, demos, noise, order)
            carry = empty_carry(model, sampler.batch(0), dtype)
            # On every device, so that any can resume a state; `meta` tensors have no values.
            track = demos and corpus.device.type != "meta"
            tracker = HostSlotTracker(sampler) if track else None
            positions = numbers - first
            group = LaneSlots(number, sampler, carry, slots, positions, tracker)
            groups.append(group)
        first += count
    return groups


def apportion_slots(episodes: Sequence[Episodes], slots: int) -> list[int]:
    """Return slots per lane in proportion to its weight (largest remainders), at least one.

    Raises `SlotError` where there is no question, or fewer slots than lanes.
    """
    if not episodes:
        raise SlotError(
            "found no training question, expected at least one: the tasks trained on have too few"
            " pairs (for episodes.queries), or all of them are held out"
        )
    if slots < len(episodes):
        raise SlotError(
            f"train.batch_size: found {slots}, expected at least one slot for each of the canvas"
            f" lanes {[each.lane for each in episodes]}; raise it or use fewer lanes"
        )
    total = sum(lane.total_weight for lane in episodes)
    exact = [lane.total_weight * slots / total for lane in episodes]
    sizes = [max(1, int(share)) for share in exact]
    # The minimum of one can make the sum too large, rounding down too small.
    while sum(sizes) != slots:
        change = 1 if sum(sizes) < slots else -1
        able = [i for i, size in enumerate(sizes) if size + change >= 1]
        sizes[max(able, key=lambda i: change * (exact[i] - sizes[i]))] += change
    return sizes


def gather_carries(groups: Sequence[LaneSlots], ranks: Ranks) -> list[dict[str, Any]] | None:
    """Return the carries of all ranks' slots, one a lane, slots in order; None but on rank 0."""
    gathered = ranks.gather([_state(group) for group in groups])
    if gathered is None:
        return None
    parts = [part for of_rank in gathered for part in of_rank]
    lanes = sorted({part["lane"] for part in parts})
    return [_merge_parts(lane, [part for part in parts if part["lane"] == lane]) for lane in lanes]


def restore_carries(groups: Sequence[LaneSlots], saved: Sequence[Mapping[str, Any]]) -> None:
    """Give this rank's slots their rows of `gather_carries`, from however many ranks."""
    of_lane = {str(state["side"]): state for state in saved}
    for group in groups:
        lane, rows, device = group.sampler.episodes.lane, group.positions, group.slots.device
        state = of_lane[str(lane.plain())]

        def own(value: Tensor | None, rows: Tensor = rows, to: torch.device = device) -> Any:
            return None if value is None else value[rows.to(value.device)].to(to)

        tensors = {name: own(tensor) for name, tensor in state["batch"].items()}
        batch = Batch(**tensors, lane=lane)
        batch.most_cells = group.sampler.most_cells
        group.carry = Carry(batch=batch, **{name: own(state[name]) for name in CARRIED})
        if group.host_tracker is not None:
            group.host_tracker.held = own(state["held"], to=torch.device("cpu"))
            group.host_tracker.record_halted(group.carry.halted)  # read at the next step


def _state(group: LaneSlots) -> dict[str, Any]:
    carry, tracker = group.carry, group.host_tracker
    values = {name: getattr(carry, name) for name in CARRIED}
    return {
        "lane": group.sampler.episodes.lane,
        "positions": group.positions,
        "held": None if tracker is None else tracker.held,
        "batch": {name: tensor.cpu() for name, tensor in carry.batch.tensors().items()},
        **{name: None if t is None else t.detach().cpu() for name, t in values.items()},
    }


def _merge_parts(lane: Lane, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of one lane, of all ranks and micro-batches, in order of positions."""
    order = torch.cat([part["positions"] for part in parts]).argsort()

    def merge(values: list[Tensor | None]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.cat(tensors)[order] if tensors else None

    batch = {name: merge([part["batch"][name] for part in parts]) for name in parts[0]["batch"]}
    carried = {name: merge([part[name] for part in parts]) for name in (*CARRIED, "held")}
    return {"side": lane.plain(), "batch": batch, **carried}  # a number, of a square
