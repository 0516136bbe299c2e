"""A fixed set of puzzles, each seen through two sets of demos, to measure representations on.

Variance alone does not say whether an encoder is of use. These measures are free of scale: does a
context depend on the task and its variant, whichever demos show it, and does the decoder use it?
B samples, S grid tokens, K demos, P context tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
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

VIEWS = 2  # of a puzzle, without a common demo: halves of its pairs
VARIANTS = 2  # of a task, where the study has as many
ACT_STEPS = 4  # at most, for the answers: the measure is a difference
QUESTIONS, PAIRS, PUZZLES = range(3)  # draws of the probe, each in an order of its own


@dataclass
class ProbeLane:
    """Samples of one lane: variants of a task next to each other, in them the views of a puzzle."""

    views: Batch  # [tasks · variants · VIEWS]
    questions: Batch  # [tasks · variants]: with all of their demos


@dataclass
class Probe:
    """Views and questions of a few tasks, by lane."""

    lanes: list[ProbeLane]
    variants: int  # of each task
    act_steps: int

    @torch.no_grad()
    def measure(self, model: Model, compute: Compute) -> dict[str, Tensor]:
        """Return the measures by name, with the model's weights as they are."""
        training = model.training
        model.eval()
        try:
            with computing(model, compute):
                separated = self._separation(model)
                lanes = [lane.questions for lane in self.lanes]
                own = [self._accuracy(model, batch, compute, False) for batch in lanes]
                swapped = [self._accuracy(model, batch, compute, True) for batch in lanes]
        finally:
            model.train(training)
        drop = torch.cat(own).mean() - torch.cat(swapped).mean()
        return {**separated, "encoder/context_swap_drop": drop}

    def _separation(self, model: Model) -> dict[str, Tensor]:
        batches = [lane.views for lane in self.lanes]
        starts = [model.context.initial_state(len(batch)) for batch in batches]
        encoded = map(model.context, batches, starts)  # at the first ACT step
        contexts = torch.cat([each.summary().flatten(1) for each in encoded])  # [N, P·D]
        task, puzzle = (torch.cat([getattr(b, n) for b in batches]) for n in ("task", "puzzle"))
        view = torch.arange(len(task), device=task.device) % VIEWS
        levels = ("puzzle", "task") if self.variants > 1 else ("puzzle",)
        return separation(contexts, task, puzzle, view, levels)

    def _accuracy(self, model: Model, batch: Batch, compute: Compute, swapped: bool) -> Tensor:
        """Return token accuracy [B] with a sample's own context, or one of another task."""
        carry = empty_carry(model, batch, compute.dtype)
        order = torch.arange(len(batch), device=batch.puzzle.device)
        order = order.roll(self.variants) if swapped else order  # by one task
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

    Tasks with fewer than `VIEWS` pairs or fewer variants than the probe has are left out.
    """
    total, taken = sum(len(lane) for lane in episodes), set[int]()
    variants = min(VARIANTS, int(corpus.variant_count.max()))
    lanes = []
    for lane in episodes:
        share = -(-run.train.probe_tasks * len(lane) // total)  # in tasks, rounded up
        found = _questions(run.seed, corpus, lane, taken, variants)[: max(2, share)]
        if len(found) >= 2:
            taken |= {task for task, _ in found}
            lanes.append(_probe_lane(run, corpus, lane, found, variants))
    return Probe(lanes, variants, min(ACT_STEPS, run.halting.max_steps)) if lanes else None


def _questions(
    seed: int, corpus: Corpus, lane: Episodes, taken: set[int], variants: int
) -> list[tuple[int, int]]:
    """Return (task, question) of a lane, tasks in a seeded order; a task is on one lane only.

    The views of a task on two lanes would have demos in common.
    """
    counts = corpus.variant_count.tolist()
    others = lane.pools.others().tolist()
    tasks, chosen = lane.task.tolist(), dict[int, int]()
    for question in _order(seed, QUESTIONS, lane.query.tolist()):
        task = tasks[question]
        if task not in taken and counts[task] >= variants and others[question] >= VIEWS:
            chosen.setdefault(task, question)
    return list(chosen.items())


def _probe_lane(
    run: RunConfig, corpus: Corpus, lane: Episodes, found: list[tuple[int, int]], variants: int
) -> ProbeLane:
    """Return the samples of tasks and their questions: pairs of a question are halved, seeded.

    The query is in neither half, so a source whose context depended on it would see the same.
    """
    seed, most = run.seed, run.episodes.max_demos
    halves, rows, drawn = list[list[int]](), list[int](), list[int]()
    for task, question in found:
        others = torch.arange(int(lane.pools.others()[question]))[None]
        demos = lane.pairs(lane.members(torch.tensor([question]), others))[0].tolist()
        places = _order(seed, PAIRS, demos)
        first = int(corpus.first_puzzle[task])
        puzzles = range(first, first + int(corpus.variant_count[task]))
        for variant in _order(seed, PUZZLES, puzzles)[:variants]:
            rows.append(question)
            drawn.append(variant)
            halves += [places[view::VIEWS][:most] for view in range(VIEWS)]
    width = max(map(len, halves))
    columns = np.array([half + [-1] * (width - len(half)) for half in halves])  # [B, K], -1: none
    index, variants_of = np.array(rows), np.array(drawn)
    views = _batch(corpus, lane, index.repeat(VIEWS), variants_of.repeat(VIEWS), columns)
    whole = np.tile(np.arange(min(most, lane.most)), (len(index), 1))
    return ProbeLane(views, _batch(corpus, lane, index, variants_of, whole))


def _batch(
    corpus: Corpus, lane: Episodes, index: np.ndarray, variant: np.ndarray, columns: np.ndarray
) -> Batch:
    """Return questions `index` [B] in `variant` [B] with the demos `columns` [B, K], -1: none."""
    members = lane.members(torch.from_numpy(index), torch.from_numpy(columns))  # on the host
    on_device = (torch.from_numpy(each).to(corpus.device) for each in (index, variant))
    numbers, variants = on_device
    pairs = lane.pairs(members).to(corpus.device)
    batch = corpus.assemble(lane, numbers, variants, demos=pairs)
    batch.token_bounds = lane.token_bounds(members)
    if batch.token_bounds is not None:
        batch.most_cells = batch.token_bounds.most_cells()
    return batch


def _order(seed: int, draw: int, counters: Iterable[int]) -> list[int]:
    """Return the places of `counters` in a seeded order."""
    slots = torch.tensor(list(counters))
    order: list[int] = random.uniform(seed, draw, random.PROBE, slots)[:, 0].argsort().tolist()
    return order


def permute_contexts(encoded: Encoded, order: Tensor) -> Encoded:
    """Return `encoded` with sample i given the context of sample `order[i]`."""

    def move(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[order]

    real, places = move(encoded.real), move(encoded.places)
    return replace(encoded, tokens=encoded.tokens[order], real=real, places=places)


def separation(
    x: Tensor,
    task: Tensor,
    puzzle: Tensor,
    view: Tensor,
    levels: Sequence[str] = ("puzzle", "task"),
) -> dict[str, Tensor]:
    """Return measures of contexts x [N, F], each of a `task`, a `puzzle` and a `view` [N] of it.

    Two contexts of different views have no demo in common. Mates of a context are, at the level

    - `puzzle`: the other view of the same puzzle;
    - `task`: the same task in another variant and the other view.

    `between_LEVEL_ratio`: covariance of mates over the total variance, an intraclass correlation
    (Shrout and Fleiss, 1979). It is 1 where demos (and variant) change nothing, 0 on average for
    noise; puzzle less task is the variant's share, and 1 less puzzle that of the choice of demos.
    `LEVEL_knn_accuracy`: the share of contexts with a mate nearer than all contexts of other
    puzzles (of other tasks), by cosine of centred contexts. Ties are errors. Views of the same task
    that are neither do not take part. `effective_rank`: exp of the entropy of the normalised
    singular values (Roy and Vetterli, 2007).
    """
    x = x.double()  # so that contexts that are all equal have no variance left from rounding
    least = 1e-10 * x.square().sum(dim=1).mean() + 1e-30
    x = x - x.mean(dim=0)
    products = x @ x.T  # [N, N]
    total = products.diagonal().mean()
    norms = products.diagonal().clamp(min=least).sqrt()
    cosines = products / norms[:, None] / norms
    spectrum = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()  # singular values of x
    share = spectrum / spectrum.sum().clamp(min=1e-30)
    found = {"encoder/effective_rank": (-(share * share.clamp(min=1e-30).log()).sum()).exp()}
    same_task, same_puzzle = (each[:, None] == each for each in (task, puzzle))
    other_view = view[:, None] != view
    mates = {"puzzle": same_puzzle, "task": same_task & ~same_puzzle}
    others = {"puzzle": ~same_puzzle, "task": ~same_task}
    for level in levels:
        mate = mates[level] & other_view
        near, far = (cosines.masked_fill(~each, -2.0).amax(dim=1) for each in (mate, others[level]))
        covariance = (products * mate).sum() / mate.sum().clamp(min=1)
        found[f"encoder/between_{level}_ratio"] = covariance / total.clamp(min=least)
        found[f"encoder/{level}_knn_accuracy"] = (near > far).double().mean()
    return found
