"""The weights of lanes: the slots of a batch without lanes that a slot of each lane stands for.

Official TRM has one batch; a slot that halts takes a question drawn from all. Questions that take
more ACT steps are held longer, so the batch fills with them: a lane with N questions of m ACT steps
each has the share N·m / Σ N·m of it. Here a lane's number of slots is fixed, whatever m is. Each of
them therefore counts w times, in the loss and in metrics: w is the lane's official share over its
share of the slots, so Σ slots · w is the batch size.

Weights and not other numbers of slots: these would change shapes, memory and compiled kernels
within a run, drop samples that are under way, and make the host wait for the device.

Shapes: L lanes, B slots of all lanes and ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from etrm.data.corpus import Episodes
from etrm.runtime.distributed import Ranks
from etrm.training.slots import apportion_slots

DECAY = 0.99  # of the counts, a step: the rate of halting is that of about the last 100 steps
STATE = ("share", "halted", "held")  # tensors that the next step depends on


class LaneWeights:
    """Shares of lanes in the official batch, followed from step to step as its expectation.

    Where a slot of lane l halts with probability h, that batch changes by

        share_l ← share_l (1 − h_l) + questions_l Σ share h

    from share = questions, the lanes' shares of new questions, to N·m / Σ N·m with m = 1 / h, as
    fast as the official batch would. h: slots that halted over slots, as decayed sums. A lane in
    which nothing has halted yet keeps its weight: no division by zero, no prior, no bound.

    All ranks hold the same; everything stays on the device. One lane has the weight 1.
    """

    def __init__(self, episodes: Sequence[Episodes], slots: int, device: torch.device) -> None:
        """`slots`: the batch size B, apportioned to the lanes of `episodes` as in training."""
        number = apportion_slots(episodes, slots)
        self.slots = torch.tensor(number, dtype=torch.float64, device=device)  # [L]
        questions = self.slots.new_tensor([lane.total_weight for lane in episodes])
        self.questions = questions / questions.sum()  # [L]: of the next question that is drawn
        self.slot_share = self.slots / slots  # [L] of all slots
        self.share = self.questions.clone()  # [L] of the official batch at the next step
        self.halted = torch.zeros_like(self.share)  # [L] decayed sum of slots that halted
        self.held = torch.zeros_like(self.share)  # [L] … of all slots
        lanes = [lane for lane, count in enumerate(number) for _ in range(count)]
        self.lane_of_slot = torch.tensor(lanes, device=device)  # [B]

    @property
    def by_lane(self) -> Tensor:
        """Return the weights [L] of the next step, float64."""
        return self.share / self.slot_share

    @property
    def by_slot(self) -> Tensor:
        """Return the weights [B] of the next step, slots in order of their numbers."""
        return self.by_lane[self.lane_of_slot]

    def advance(self, halted: Tensor, ranks: Ranks) -> None:
        """Go on to the next step: `halted` [L] of this rank's slots halted after this one."""
        if len(self.share) == 1:
            return
        ranks.sum_(halted)
        self.halted = DECAY * self.halted + halted
        self.held = DECAY * self.held + self.slots
        leaving = self.share * self.halted / self.held
        share = self.share - leaving + self.questions * leaving.sum()
        self.share = share / share.sum()  # 1 but for rounding, which must not add up

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that the next step depends on."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from `state_dict()`."""
        for name in STATE:
            setattr(self, name, state[name].to(self.share.device))
