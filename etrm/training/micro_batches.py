"""Slots that go through a forward and backward pass at once, from a budget of memory.

Activations kept for the backward pass are most of the memory that training takes.
"""

from __future__ import annotations

from etrm.config.execution import ExecutionConfig
from etrm.config.study import RunConfig
from etrm.data.corpus import Episodes
from etrm.models.act import Model
from etrm.models.compute import DTYPES
from etrm.models.memory import MARGIN, kept_bytes


def slot_bytes(run: RunConfig, model: Model, episodes: Episodes) -> float:
    """Return the bytes that the forward and backward pass of one slot takes.

    The second view of a contrastive loss is computed with its padding, so two canvases count.
    """
    item = DTYPES[run.train.dtype].itemsize
    kept = kept_bytes(model, episodes.truncate_demos(run.episodes.max_demos), item)
    if model.context.loss_weights.get("contrastive"):
        kept += model.context.activation_bytes(2 * episodes.lane.cells, item)
    return MARGIN * kept


def max_slots(
    run: RunConfig, model: Model, episodes: Episodes, execution: ExecutionConfig, budget: float
) -> int:
    """Return the most slots of a lane in one pass with `budget` bytes: at least one."""
    fitting = max(1, int(budget / slot_bytes(run, model, episodes)))
    return min(fitting, execution.micro_batch or fitting)
