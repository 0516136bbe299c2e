"""The contrastive loss of contexts: one puzzle seen through different demos.

A sample's context is the anchor. Its key is the context of another view of the same puzzle: the
query's own pair as the only demo, as contrastive predictive coding (van den Oord et al.,
1807.03748) encodes the next observation. The pair is no demo of the sample and every training
sample has one, so each has a positive. It holds the answer, which the decoder never sees: only the
loss reads the key. Negatives are the keys of the step before, without gradients, as in MoCo
(1911.05722) with the encoder itself for its average; so they are the same for any number of ranks
and micro-batches.

Shapes: B slots of a micro-batch, N slots of all lanes and ranks, S grid tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from etrm.data.batch import Batch
from etrm.models.act import Model
from etrm.models.encoders.base import Encoded
from etrm.models.losses import contrastive_loss
from etrm.runtime.distributed import Ranks

Keys = tuple[Tensor, Tensor, Tensor]  # [N, D] float32, and their puzzles and tasks [N] int64


def query_view(batch: Batch) -> Batch:
    """Return `batch` with the query and its output as the only demo of each sample.

    Labels are coded as outputs of demos are: PAD where there is no cell.
    """
    return replace(
        batch,
        demo_inputs=batch.inputs[:, None],
        demo_outputs=batch.labels[:, None],
        demo_mask=torch.ones_like(batch.puzzle, dtype=torch.bool)[:, None],
        token_bounds=None,
        most_cells=None,
        noise=None,  # variational sources give their mean
    )


class Contrast:
    """Keys of the last step, and the loss of contexts against them."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.source, options = model.context, model.context.options
        self.active = bool(self.source.loss_weights.get("contrastive"))
        if self.active:
            self.temperature = options.contrastive_temperature
            self.tasks_are_positives = options.contrastive_positives == "task"
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self.bank: Keys = torch.zeros(0, model.config.width, device=device), none, none
        self._new: list[Keys] = []  # of the step under way, by micro-batch

    def loss(self, batch: Batch, encoding: Encoded) -> Tensor:
        """Return the loss [B] of the contexts `encoding` of `batch`; encodes its second view."""
        view = query_view(batch)
        keys = self._vectors(self.source(view, self.source.initial_state(len(view))))
        self._new.append((keys.detach().float(), batch.puzzle, batch.task))
        bank, puzzles, tasks = self.bank
        # Keys of the same puzzle do not count: they may be of a pair that the sample shows.
        other = batch.puzzle[:, None] != puzzles
        same_task = batch.task[:, None] == tasks
        positive = other & same_task & self.tasks_are_positives
        anchors = self._vectors(encoding)
        return contrastive_loss(anchors, keys, bank, positive, other & ~positive, self.temperature)

    def advance(self, slots: int, ranks: Ranks) -> None:
        """Go on to the next step, whose bank has the keys of all `slots` and `ranks`."""
        if self.active:
            parts = (torch.cat(each) for each in zip(*self._new, strict=True))
            keys, puzzles, tasks = (ranks.all_gather(part, slots) for part in parts)
            self.bank, self._new = (keys, puzzles, tasks), []

    def load_state(self, bank: Keys) -> None:
        """Resume from the `bank` of a trainer of the same run, on any number of ranks."""
        keys, puzzles, tasks = (tensor.to(self.bank[0].device) for tensor in bank)
        self.bank = keys, puzzles, tasks

    def _vectors(self, encoding: Encoded) -> Tensor:
        judged = self.source.representation(encoding)
        assert judged is not None, "found a contrastive loss without an encoder"
        return judged.mean()
