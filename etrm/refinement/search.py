"""Latent search: gradient ascent of the demos' likelihood over the context, weights frozen.

After the Latent Program Network (Macfarlane and Bonnet, 2411.08706), on a TRM decoder: Adam, first
order, from several starts at once. Every point of a trajectory is scored, its start included, and
the best so far is kept for each start; so more steps never make the demos less likely.

Shape suffixes: B questions, R starts of each, A = R · B, C numbers of steps, S grid tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from etrm.arc.grid import crop
from etrm.config.refinement import RefinementConfig
from etrm.config.study import HaltingConfig
from etrm.data.batch import Batch
from etrm.evaluation.decode import decode
from etrm.models.act import Model
from etrm.models.compute import Compute, computing
from etrm.refinement.demos import demo_likelihood, expanded, frozen, leave_one_out
from etrm.refinement.spaces import SPACES, Space, rms

ATTEMPTS = 2
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
CLIP = 1.0  # largest gradient norm of a start


@dataclass
class Points:
    """Points of A starts with their scores on the demos and their answers to the query."""

    likelihood: Tensor  # [A]: mean over demos of the log-likelihood of their output, per cell
    solved: Tensor  # [A]: share of demos that are answered exactly
    tokens: Tensor  # [A, S] uint8: the answer
    q_halt: Tensor  # [A]: its halting logit


@dataclass
class Attempts:
    """Two attempts at each of B questions, the first that with the more likely demos."""

    tokens: Tensor  # [2, B, S] uint8 ids on the canvas: `crop` reads the grid
    q_halt: Tensor  # [2, B]
    likelihood: Tensor  # [2, B] of the demos, as in `Points`
    solved: Tensor  # [2, B]


@dataclass
class Refined:
    """Attempts after each number of steps, and the record of the search on the way."""

    attempts: dict[int, Attempts]  # by number of steps; 0: the encoder's context, not refined
    best: list[Tensor] = field(default_factory=list)  # [R, B] of each step: likelihood, best so far
    lengths: list[Tensor] = field(default_factory=list)  # [A] of each step: RMS from the start
    seconds: dict[int, float] = field(default_factory=dict)  # until the attempts were there


def refine(
    model: Model,
    batch: Batch,
    halting: HaltingConfig,
    config: RefinementConfig,
    dtype: torch.dtype = torch.float32,
    lengths: Sequence[Tensor] | None = None,
) -> Refined:
    """Search contexts of the questions of `batch`, and answer them after each of `config.steps`.

    `batch`: B questions of one lane, as `Corpus.assemble` makes them; labels are not looked at.
    `halting.max_steps` ACT steps decode an answer, `config.act_steps` a demo, and each start needs
    the memory of a sample's demos with gradients. A question's result does not depend on the
    others of its batch. Returns two attempts at each question: the answer of the most likely point
    of all starts, and that of the next start (or of a start itself) whose grid differs, else the
    same again. The model's weights and mode are left as they were.

    `lengths`: those of an earlier result. Each step is then a random direction of that length from
    the start instead: the unguided control, which keeps the most likely of as many points.
    """
    with frozen(model), computing(model, Compute(dtype)):
        with torch.no_grad():
            copies = expanded(batch, config.starts)
            demos = leave_one_out(copies)
            space = SPACES[config.space](model, copies, demos, config.act_steps)
        search = Search(model, space, halting, config, dtype)
        return search.run(lengths)


@dataclass
class Search:
    """The trajectories of all starts of a batch."""

    model: Model
    space: Space
    halting: HaltingConfig
    config: RefinementConfig
    dtype: torch.dtype

    def run(self, lengths: Sequence[Tensor] | None = None) -> Refined:
        """Search, as `refine` says."""
        last, found, first = self.config.steps[-1], Refined({}), None
        began, start = time.perf_counter(), self.starts()
        space, adam, shift = self.space, Adam(self.config.lr * self.space.unit), start.clone()
        best = torch.full(start.shape[:1], -torch.inf, dtype=torch.float64, device=start.device)
        solved, kept = torch.zeros_like(best), start.clone()
        moving = torch.arange(len(best), device=best.device)  # starts that have not stopped
        for step in range(last + 1):
            if len(moving):
                guided = lengths is None and step < last
                score, exact, gradient = self.score(space, shift[moving], guided)
                better = score > best[moving]  # never of a score that is no number
                rows = moving[better]
                best[rows], solved[rows] = score[better], exact[better]
                kept[rows] = shift[rows]
            found.best.append(best.reshape(self.config.starts, -1).clone())
            found.lengths.append(rms(shift - start).flatten())
            if step in self.config.steps:
                points = Points(best.clone(), solved.clone(), *self.decode(kept))
                first = points if first is None else first
                lane = self.space.batch.lane
                shape = (lane.rows, lane.columns)
                found.attempts[step] = choose((points, first), self.config.starts, shape)
                found.seconds[step] = time.perf_counter() - began
            if step == last or not len(moving):
                continue
            on = exact < 1 if self.config.until_solved else exact <= 1
            if not bool(on.all()):
                moving = moving[on]
                if not len(moving):
                    continue
                space = space.narrow(on)
                adam.narrow(on)
            if gradient is not None:
                shift[moving] += adam.step(gradient[on])
            elif lengths is not None:
                numbers = moving // (len(best) // self.config.starts)
                noise = space.noise(step + 1, numbers)
                length = _like(lengths[step + 1][moving], noise)
                shift[moving] = start[moving] + noise / rms(noise) * length
        return found

    def starts(self) -> Tensor:
        """Return the shifts of all starts, [A, ...]; the first R are those of the questions."""
        config, space = self.config, self.space
        zero, unit = torch.zeros_like(space.origin), space.unit
        rows = len(zero) // config.starts
        noise = space.noise(0, torch.arange(len(zero), device=zero.device) // rows)
        kinds: list[Tensor] = [zero]
        with torch.no_grad():
            kinds += [space.of_demo(number) for number in range(config.demo_starts)]
        kinds += [config.perturbation * unit * noise] * config.perturbed_starts
        kinds += [unit * noise - space.origin] * config.random_starts
        parts = [kind[i * rows : (i + 1) * rows] for i, kind in enumerate(kinds)]
        return torch.cat(parts).float()

    def score(
        self, space: Space, shift: Tensor, guided: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the demos' likelihood and share solved [n], and the likelihood's gradient.

        Of the n starts that `space` is of.
        """
        point = shift.detach().requires_grad_(guided)
        with torch.set_grad_enabled(guided):
            score, exact = demo_likelihood(
                self.model,
                space.demos,
                space.contexts(point),
                self.config.act_steps,
                self.dtype,
            )
            gradient = torch.autograd.grad(score.sum(), point)[0] if guided else None
        return score.detach(), exact, gradient

    def decode(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answers to the queries [A, S] uint8, and their halting logits [A]."""
        model = Model(self.space.shifted(shift), self.model.decoder)
        output, _ = decode(model, self.space.batch, self.halting, self.dtype)
        return output.logits.argmax(dim=-1).to(torch.uint8), output.q_halt


class Adam:
    """Adam (Kingma and Ba, 1412.6980), ascending, each start for itself [A, ...]."""

    def __init__(self, lr: Tensor) -> None:
        self.lr, self.steps = lr, 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def narrow(self, kept: Tensor) -> None:
        """Forget all starts but those where `kept` [A] is true."""
        self.lr = self.lr[kept]
        if self.steps and isinstance(self.mean, Tensor) and isinstance(self.square, Tensor):
            self.mean, self.square = self.mean[kept], self.square[kept]

    def step(self, gradient: Tensor) -> Tensor:
        """Return the next step; gradients are clipped, and those that are no numbers count as 0."""
        gradient = gradient.float().nan_to_num(0.0, 0.0, 0.0)
        norm = gradient.flatten(1).norm(dim=1)
        gradient = gradient * _like((CLIP / norm.clamp(min=1e-12)).clamp(max=1.0), gradient)
        self.steps += 1
        beta1, beta2 = BETAS
        self.mean = beta1 * self.mean + (1 - beta1) * gradient
        self.square = beta2 * self.square + (1 - beta2) * gradient.square()
        scale = (self.square / (1 - beta2**self.steps)).sqrt() + EPSILON
        return self.lr / (1 - beta1**self.steps) * self.mean / scale


def choose(pools: Sequence[Points], starts: int, shape: tuple[int, int]) -> Attempts:
    """Return two attempts at each question, of the points of all pools [A each], best first.

    The second is the best point whose grid differs from the first's; the first again where none
    does. Points that are equally likely keep the order of pools and starts.
    """
    names = ("tokens", "q_halt", "likelihood", "solved")
    every = {
        name: torch.cat([getattr(pool, name).unflatten(0, (starts, -1)) for pool in pools])
        for name in names
    }  # [pools · R, B, ...]
    order = every["likelihood"].argsort(dim=0, descending=True, stable=True).cpu().numpy()
    tokens = every["tokens"].cpu().numpy()
    chosen = np.zeros((ATTEMPTS, order.shape[1]), dtype=np.int64)
    for question in range(order.shape[1]):
        places = order[:, question]
        grids = [(g.shape, g.tobytes()) for g in crop(tokens[places, question].reshape(-1, *shape))]
        other = next((i for i, grid in enumerate(grids) if grid != grids[0]), 0)
        chosen[:, question] = places[0], places[other]
    index = torch.from_numpy(chosen).to(every["tokens"].device)
    rows = torch.arange(index.shape[1], device=index.device)
    return Attempts(**{name: values[index, rows] for name, values in every.items()})


def _like(values: Tensor, other: Tensor) -> Tensor:
    """Return `values` [A] with as many axes as `other` [A, ...]."""
    return values.reshape(-1, *[1] * (other.dim() - 1))
