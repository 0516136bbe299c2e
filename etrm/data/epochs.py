"""The order of official TRM's training samples: epochs of tasks, one variant of each at a time.

Every epoch shuffles the tasks. Each task in turn gives one variant, drawn at random, and with it
all of its questions, in random order, until the batch is full; questions that find no place are
dropped. After `EPOCHS_PER_PASS` epochs, so is a batch that is not full.

`puzzle_dataset.py` of TinyRecursiveModels, as a function of seed and step: nothing has a state.
Shapes: B slots of the batch, G tasks, n slots asked for.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from etrm.data import counter_random as random

EPOCHS_PER_PASS = 10_000  # `eval_interval` of the official ARC command
PLANNED_EPOCHS = 64  # at once, on the host


class EpochOrder:
    """Questions and variants of every step, for all slots of a batch on one canvas.

    A *position* counts tasks from the first epoch on: epoch · G + place in the epoch. A step begins
    at a position that the sizes of all tasks before it decide, so the host plans steps ahead; all
    else is computed on the device of the slots, from that number alone.
    """

    def __init__(
        self, task: Tensor, batch_size: int, seed: int, epochs_per_pass: int = EPOCHS_PER_PASS
    ) -> None:
        """`task` [E]: of each question; those of a task stand together."""
        _, first, size = np.unique(task.cpu().numpy(), return_index=True, return_counts=True)
        assert batch_size <= epochs_per_pass * len(task), (batch_size, epochs_per_pass, len(task))
        self.size, self.most = torch.from_numpy(size), int(size.max())  # questions of a task
        places = {task.device, self.size.device}  # first question and size [G], for slots there
        self.on = {d: (torch.from_numpy(first).to(d), self.size.to(d)) for d in places}
        self.batch_size, self.seed, self.epochs_per_pass = batch_size, seed, epochs_per_pass
        self.begins = [0]  # positions at which steps 1, 2, ... begin; the last may be incomplete

    def draw(self, step: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the questions [n] of `slots` [n] at `step`, and uniform numbers of variants [n].

        Slots of one task have the same number. Step 0, which only gives shapes, is step 1.
        """
        while len(self.begins) <= step:
            self._plan()
        begin, device = self.begins[max(step, 1) - 1], slots.device
        first, size = self.on[device]
        positions = torch.arange(begin, begin + self.batch_size, device=device)  # at least 1 each
        group = self._tasks(begin, begin + self.batch_size, device)
        ends = size[group].cumsum(0)  # slots that are full after each task
        turn = torch.searchsorted(ends, slots, right=True)  # [n] the task of each slot
        place = slots - (ends - size[group])[turn]  # among the questions of the task
        order = random.uniform(self.seed, 0, random.EPISODE, positions[turn], self.most)
        absent = torch.arange(self.most, device=device) >= size[group][turn, None]
        order = order.masked_fill(absent, 2.0).argsort(dim=1)
        question = first[group[turn]] + order.gather(1, place[:, None])[:, 0]
        return question, random.uniform(self.seed, 0, random.VARIANT, positions[turn])[:, 0]

    def _tasks(self, begin: int, end: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the tasks, numbers below G, at positions from `begin` up to `end`."""
        groups = len(self.size)
        first, last = begin // groups * groups, -(-end // groups) * groups  # of whole epochs
        numbers = torch.arange(first, last, device=device)
        u = random.uniform(self.seed, 0, random.ORDER, numbers).reshape(-1, groups)
        return u.argsort(dim=1, stable=True).flatten()[begin - first : end - first]

    def _plan(self) -> None:
        """Add the steps that the next epochs fill."""
        groups, begin = len(self.size), self.begins[-1]
        passed = (begin // groups // self.epochs_per_pass + 1) * self.epochs_per_pass
        epochs = max(PLANNED_EPOCHS, 2 * self.batch_size // int(self.size.sum()))
        end = min(begin // groups + epochs, passed)
        filled = self.size[self._tasks(begin, end * groups)].cumsum(0).tolist()
        task, before = 0, 0
        while (task := bisect_left(filled, before + self.batch_size, task) + 1) <= len(filled):
            before = filled[task - 1]  # with the questions that found no place
            self.begins.append(begin + task)
        if end == passed:
            self.begins[-1] = passed * groups
