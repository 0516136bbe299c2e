"""The FLOPs of refinement: those of the decoder, which all but a percent or two of them are.

Encoders are left out: a search encodes a task's demos once, and reads the encodings at every step.
"""

from __future__ import annotations

import math

from etrm.config.refinement import RefinementConfig
from etrm.config.study import HaltingConfig, ModelConfig
from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.flops import FROZEN_BACKWARD, LINEAR_BACKWARD, act_step, cycle, heads

METHODS_WITH_STARTS = ("search", "random")


class Costs:
    """FLOPs of the questions of a batch, each a list of B numbers."""

    def __init__(
        self, model: Model, batch: Batch, halting: HaltingConfig, config: RefinementConfig
    ) -> None:
        cells, context = batch.lane.cells, model.context.context_size(batch.cells)
        self.sizes: tuple[ModelConfig, int, int] = model.config, cells, context
        self.demos: list[int] = batch.demo_mask.sum(dim=1).tolist()
        self.halting, self.config = halting, config
        self.act_step = act_step(*self.sizes).forward

    def step(self, method: str) -> list[float]:
        """Return the FLOPs of one step of a method, for each question: all demos of all starts."""
        model, cells, _ = self.sizes
        last = cycle(*self.sizes) + heads(model, cells)
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
        decoding = self.halting.max_steps * self.act_step * len(self.demos)
        if method == "act_steps":
            return decoding + self.act_step * sum(self.more_act_steps(steps))
        starts = self.config.starts if method in METHODS_WITH_STARTS else 1
        return decoding * starts + steps * sum(self.step(method))
