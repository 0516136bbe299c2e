"""A fixed set of questions, two of each of some tasks, on which representations are measured.

Variance alone does not say whether an encoder is of use. These measures are free of scale: do
contexts of the same task from different demos agree, and does the decoder use them at all?
B samples, S grid tokens, P context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etrm.config.study import RunConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.models.act import Model, act_step, empty_carry
from etrm.models.compute import Compute, computing
from etrm.models.encoders.base import Encoded
from etrm.models.losses import right_cells

VIEWS = 2  # questions of a task: each shows other demos
ACT_STEPS = 4  # at most, for the answers: the measure is a difference


@dataclass
class Probe:
    """Batches of a few tasks, by lane; views of a task are next to each other."""

    batches: list[Batch]
    act_steps: int

    @torch.no_grad()
    def measure(self, model: Model, compute: Compute) -> dict[str, Tensor]:
        """Return the measures by name, with the model's weights as they are."""
        training = model.training
        model.eval()
        try:
            with computing(model, compute):
                starts = [model.context.initial_state(len(batch)) for batch in self.batches]
                encoded = list(map(model.context, self.batches, starts))  # at the first ACT step
                own = [self._accuracy(model, batch, compute, False) for batch in self.batches]
                swapped = [self._accuracy(model, batch, compute, True) for batch in self.batches]
        finally:
            model.train(training)
        tasks = torch.cat([batch.task for batch in self.batches])
        drop = torch.cat(own).mean() - torch.cat(swapped).mean()
        contexts = torch.cat([each.summary().flatten(1).float() for each in encoded])  # [N, P·D]
        return {**separation(contexts, tasks), "encoder/context_swap_drop": drop}

    def _accuracy(self, model: Model, batch: Batch, compute: Compute, swapped: bool) -> Tensor:
        """Return token accuracy [B] with a sample's own context, or one of another task."""
        carry = empty_carry(model, batch, compute.dtype)
        order = torch.arange(len(batch), device=batch.puzzle.device)
        order = order.roll(VIEWS) if swapped else order  # by one task
        output = None
        for step in range(self.act_steps):
            state = model.context.initial_state(len(batch)) if step == 0 else carry.state
            encoded = model.context(batch, state)
            carry, output = act_step(model, carry, batch, encoded=permute_contexts(encoded, order))
            # Encoder states stay in place: only the decoder's input is swapped.
            carry.state, carry.halted = encoded.state, torch.zeros_like(carry.halted)
        assert output is not None
        right, count = right_cells(output.logits, batch.labels)  # [B, S], [B]
        return right.sum(dim=-1) / count.clamp(min=1)


def make_probe(run: RunConfig, corpus: Corpus, episodes: Sequence[Episodes]) -> Probe | None:
    """Return a seeded probe of `train.probe_tasks` tasks; None where no lane has two tasks.

    Tasks with fewer than two questions on a lane are left out.
    """
    batches, total = [], sum(len(lane) for lane in episodes)
    for number, full in enumerate(episodes):
        lane = full.truncate_demos(run.episodes.max_demos)
        share = -(-run.train.probe_tasks * len(lane) // total)  # in tasks, rounded up
        index = _views(run, number, lane)[: VIEWS * max(2, share)]
        if len(index) >= 2 * VIEWS:
            batch = corpus.assemble(lane, index, torch.zeros_like(index))
            if lane.token_bounds is not None:
                batch.token_bounds = lane.token_bounds.take(index.cpu().numpy())
                batch.most_cells = batch.token_bounds.most_cells()
            batches.append(batch)
    return Probe(batches, min(ACT_STEPS, run.halting.max_steps)) if batches else None


def _views(run: RunConfig, number: int, lane: Episodes) -> Tensor:
    """Return questions of lane `number`, `VIEWS` of each task, tasks in a seeded order."""
    slots = torch.arange(len(lane), device=lane.task.device)
    order = random.uniform(run.seed, number, random.PROBE, slots)[:, 0].argsort()
    chosen: dict[int, list[int]] = {}
    for question, task in zip(order.tolist(), lane.task[order].tolist(), strict=True):
        chosen.setdefault(task, []).append(question)
    flat = [q for views in chosen.values() if len(views) >= VIEWS for q in views[:VIEWS]]
    return torch.tensor(flat, dtype=torch.int64, device=lane.task.device)


def permute_contexts(encoded: Encoded, order: Tensor) -> Encoded:
    """Return `encoded` with sample i given the context of sample `order[i]`."""

    def move(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[order]

    real, places = move(encoded.real), move(encoded.places)
    return replace(encoded, tokens=encoded.tokens[order], real=real, places=places)


def separation(x: Tensor, tasks: Tensor) -> dict[str, Tensor]:
    """Return measures of the separation of contexts [N, F] by their tasks [N].

    `between_task_ratio`: variance of task means over total variance. `effective_rank`: exp of the
    entropy of the normalised singular values (Roy and Vetterli, 2007). `task_knn_accuracy`: the
    share whose nearest neighbour, by cosine of centred contexts, is of the same task.
    """
    x = x - x.mean(dim=0)
    same = tasks[:, None] == tasks  # [N, N]
    means = same.to(x.dtype) @ x / same.sum(dim=1, keepdim=True)  # [N, F], of the own task
    total = x.square().sum().clamp(min=1e-12)
    spectrum = torch.linalg.svdvals(x)
    share = spectrum / spectrum.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    unit = torch.nn.functional.normalize(x, dim=1)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    nearest = (unit @ unit.T).masked_fill(itself, -2.0).argmax(dim=1)  # a cosine is at least -1
    return {
        "encoder/between_task_ratio": means.square().sum() / total,
        "encoder/effective_rank": entropy.exp(),
        "encoder/task_knn_accuracy": (tasks[nearest] == tasks).float().mean(),
    }
