"""The demos of a task as queries with known answers: the objective of refinement.

Leave-one-out: a demo is answered from the context of the other demos, so that no answer is in the
context that it is read from. The only demo of a task is its own.

Shape suffixes: B samples, N demos of all samples, K demos of a sample, S grid tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etrm.arc.grid import PAD
from etrm.data.batch import Batch
from etrm.data.packing import TokenBounds
from etrm.models.act import Model, StepOutput
from etrm.models.encoders.base import Encoded
from etrm.models.losses import sample_losses


@dataclass(frozen=True)
class Demos:
    """All demos of B samples, each as a query about which the other demos are shown."""

    batch: Batch  # N
    sample: Tensor  # [N] int64: whose demo it is
    count: Tensor  # [B] int64: demos of each sample

    def mean(self, values: Tensor) -> Tensor:
        """Return the means [B] over the demos of each sample of `values` [N]."""
        total = values.new_zeros(len(self.count)).index_add(0, self.sample, values)
        return total / self.count.clamp(min=1)


def leave_one_out(batch: Batch) -> Demos:
    """Return every demo of `batch` as a query, shown the others."""
    sample, demo = batch.demo_mask.nonzero(as_tuple=True)  # [N]
    count = batch.demo_mask.sum(dim=1)
    shown = batch.demo_mask[sample]
    shown[torch.arange(len(sample), device=shown.device), demo] = count[sample] == 1
    fields = {name: tensor[sample] for name, tensor in batch.tensors().items()}
    fields |= {"inputs": batch.demo_inputs[sample, demo], "demo_mask": shown}
    fields |= {"labels": batch.demo_outputs[sample, demo]}
    return Demos(_like(batch, fields, sample), sample, count)


def left_out(batch: Batch, number: int) -> Demos:
    """Return the demo of this `number` of every sample as a query, shown the others.

    `leave_one_out` in a shape that is known without a look at the demos: a sample with fewer demos
    is asked for nothing.
    """
    count = batch.demo_mask.sum(dim=1)
    slots = torch.arange(batch.demo_mask.shape[1], device=count.device)
    shown = batch.demo_mask & ((slots != number) | (count == 1)[:, None])
    asked = batch.demo_mask[:, number]
    queries = replace(
        batch,
        inputs=batch.demo_inputs[:, number],
        labels=torch.where(asked[:, None], batch.demo_outputs[:, number], PAD),
        demo_mask=shown,
        noise=None,  # variational sources give their mean
    )
    return Demos(queries, torch.arange(len(batch), device=count.device), asked.long())


def expanded(batch: Batch, copies: int) -> Batch:
    """Return `copies` of all samples, one after the other."""
    return rows_of(batch, torch.arange(len(batch), device=batch.inputs.device).repeat(copies))


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Return the samples `rows` [n] of a batch."""
    return _like(batch, {name: tensor[rows] for name, tensor in batch.tensors().items()}, rows)


def _like(batch: Batch, fields: dict[str, Tensor], rows: Tensor) -> Batch:
    """Return samples of `fields`, which show no more than the samples `rows` of `batch`."""
    bounds = batch.token_bounds
    if bounds is not None:
        host = rows.cpu().numpy()
        bounds = TokenBounds(bounds.concat[host], bounds.aligned[host])
    return Batch(**fields, lane=batch.lane, token_bounds=bounds, most_cells=batch.cells)


def only_demo(batch: Batch, number: int) -> Batch:
    """Return `batch` with the demo of this `number` alone, or the first of those that have fewer.

    For samples that differ in their numbers of demos: number modulo the number that there is.
    """
    place = number % batch.demo_mask.sum(dim=1).clamp(min=1)  # demos are in front
    slots = torch.arange(batch.demo_mask.shape[1], device=place.device)
    alone = batch.demo_mask & (slots == place[:, None])
    return replace(batch, demo_mask=alone, most_cells=batch.cells)


def encodings(model: Model, batch: Batch, steps: int) -> list[Encoded]:
    """Return the encoding of each ACT step, or the only one of a source without a state."""
    state = model.context.initial_state(len(batch))
    found = [model.context(batch, state)]
    while state is not None and len(found) < steps:
        found.append(model.context(batch, found[-1].state))
    return found


def answer(
    model: Model, batch: Batch, contexts: Sequence[Encoded], steps: int, dtype: torch.dtype
) -> StepOutput:
    """Answer the queries of `batch` in `steps` ACT steps, the last of which has gradients.

    `contexts`: of each ACT step, or one for all; the steps are those of `etrm.models.act`.
    """
    slots, length = batch.inputs.shape
    first = contexts[0].tokens.shape[1]
    z_H, z_L = (z.to(dtype) for z in model.decoder.initial_states(slots, length, first))
    for step in range(steps):
        context = contexts[min(step, len(contexts) - 1)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and step == steps - 1):
            z_H, z_L, logits, q = model.decoder(
                batch.inputs, context.tokens, z_H, z_L, batch.lane, context.real, context.places
            )
    kind = model.config.loss_type
    return StepOutput(logits, q[:, 0], {}, q[:, 0] > 0, context, kind)


def demo_likelihood(
    model: Model, demos: Demos, contexts: Sequence[Encoded], steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the objective, and the shares of demos that are answered exactly, both [B].

    The objective is the mean over a sample's demos of the log-likelihood of their output, itself
    the mean over its cells (natural logarithm, ≤ 0).
    """
    losses = sample_losses(answer(model, demos.batch, contexts, steps, dtype), demos.batch.labels)
    return demos.mean(-losses.lm.double()), demos.mean(losses.exact.double())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Give no weight of `model` a gradient within the block, and let it evaluate."""
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)
