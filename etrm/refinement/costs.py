"""The FLOPs of refinement: those of the decoder, which all but a percent or two of them are.

Encoders are left out: a search encodes a task's demos once, and reads the encodings at every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from etrm.config.refinement import RefinementConfig
from etrm.config.study import HaltingConfig, ModelConfig
from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.flops import FROZEN_BACKWARD, LINEAR_BACKWARD, act_step, cycle, heads

METHODS_WITH_STARTS = ("search", "random")


@dataclass(frozen=True)
class Costs:
    """FLOPs of the questions of a batch on one lane."""

    model: ModelConfig
    cells: int  # S
    context: int  # P
    demos: Sequence[int]  # of each of the B questions
    halting: HaltingConfig
    config: RefinementConfig

    @classmethod
    def of(
        cls, model: Model, batch: Batch, halting: HaltingConfig, config: RefinementConfig
    ) -> Costs:
        """Return the costs of a batch."""
        cells, context = batch.lane.cells, model.context.context_size(batch.cells)
        demos = batch.demo_mask.sum(dim=1).tolist()
        return cls(model.config, cells, context, demos, halting, config)

    @cached_property
    def act_step(self) -> float:
        """Return the FLOPs of one ACT step of one question, without gradients."""
        return act_step(self.model, self.cells, self.context).forward

    def step(self, method: str) -> list[float]:
        """Return the FLOPs of one step of a method, for each question: all demos of all starts."""
        last = cycle(self.model, self.cells, self.context) + heads(self.model, self.cells)
        answer = self.act_step * self.config.act_steps
        starts = self.config.starts if method in METHODS_WITH_STARTS else 1
        if method == "search":
            answer += last.backward(linear=FROZEN_BACKWARD)
        elif method == "fine_tuning":  # frozen decoders send gradients through all the same
            tuned = LINEAR_BACKWARD if self.config.tuned == "all" else FROZEN_BACKWARD
            answer += last.backward(linear=tuned)
        return [starts * count * answer for count in self.demos]

    def more_act_steps(self, steps: int) -> list[int]:
        """Return the ACT steps that cost as much as so many steps of the search, rounded up."""
        return [math.ceil(steps * each / self.act_step) for each in self.step("search")]

    def total(self, method: str, steps: int) -> float:
        """Return the FLOPs of refinement in so many steps and of an answer, of all questions."""
        if method == "act_steps":
            return self._answer(method) + self.act_step * sum(self.more_act_steps(steps))
        return self._answer(method) + steps * sum(self.step(method))

    def all(self) -> float:
        """Return the FLOPs of all methods, with an answer after each number of steps."""
        numbers = self.config.steps
        return sum(
            self.total(method, max(numbers)) + (len(numbers) - 1) * self._answer(method)
            for method in self.config.methods
        )

    def _answer(self, method: str) -> float:
        starts = self.config.starts if method in METHODS_WITH_STARTS else 1
        return self.halting.max_steps * self.act_step * len(self.demos) * starts
