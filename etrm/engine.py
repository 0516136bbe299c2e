"""The trainer: one model, its optimizers, the slots of every lane, and one step of all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from etrm.config.study import HaltingConfig, RunConfig
from etrm.context.embedding import PuzzleEmbedding
from etrm.data import random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.data.episodes import Sampler
from etrm.evaluate import all_variants, autocast, thin_out, training_metrics
from etrm.losses import SampleLoss, sample_losses
from etrm.metrics import Window, encoder_statistics
from etrm.models.act import Carry, Model, StepOutput, act_step, decide_halting, empty_carry
from etrm.models.build import num_parameters
from etrm.optim import EMA, AdamATan2, SignSGD, gradient_norm, warmed_up

CARRIED = ("z_H", "z_L", "state", "context", "steps", "halted")


class SlotError(ValueError):
    """Questions that cannot be shared out over the slots of a batch."""


@dataclass
class Lane:
    """The slots of one canvas side: where their samples come from, and what they hold."""

    sampler: Sampler
    carry: Carry
    slots: Tensor  # [B] int64: their numbers in the whole batch


class Trainer:
    """Trains a model on the questions of a corpus. A step is one ACT step of every slot.

    All lanes do their forward and backward pass, then there is one update: the loss is the mean
    over all slots of the batch.
    """

    def __init__(
        self, run: RunConfig, model: Model, corpus: Corpus, episodes: Sequence[Episodes]
    ) -> None:
        self.run, self.model, self.corpus = run, model, corpus
        self.train, self.halting = run.train, run.halting
        self.dtype = torch.bfloat16 if run.train.dtype == "bf16" else torch.float32
        self.step_number = 0
        self.episodes = list(episodes)
        self.lanes = self._lanes(episodes)
        self.ema = EMA(model, run.train.ema_decay)
        self.context_parameters = list(model.context.parameters())
        self.decoder_parameters = list(model.decoder.parameters())
        self.optimizer = self._optimizer()
        table = model.context if isinstance(model.context, PuzzleEmbedding) else None
        self.embedding = SignSGD(table, run.train.embedding_weight_decay) if table else None
        self.window = Window()
        self._since = (time.perf_counter(), 0)
        model.train()

    def step(self) -> None:
        """One ACT step of every slot, and one update."""
        self.step_number += 1
        contexts = []
        for lane in self.lanes:
            output, losses, halted = self._forward_backward(lane)
            share = len(lane.slots) / self.train.batch_size
            self.window.add_samples(losses, halted, lane.carry.steps, share)
            self.window.add(
                "train/steps_share",
                (halted * lane.carry.steps).sum() / self.halting.max_steps,
                halted.sum(),
            )
            if self.context_parameters:
                encoded = output.encoded.sum()
                self.window.add("grad/encoder_coverage", encoded, len(output.encoded))
                contexts.append(output.context.detach())
        last = self.step_number == self.train.steps  # its row is logged as well
        if contexts and (last or self.step_number % self.train.log_every == 0):
            for name, value in encoder_statistics(torch.cat(contexts)).items():
                self.window.add(name, value)
        self._update()

    def row(self) -> dict[str, float]:
        """The metrics since the last row, one transfer from the device."""
        means = self.window.row()
        share = means.get("grad/encoder_norm"), means.get("grad/total_norm")
        if share[0] is not None and share[1]:
            means["grad/encoder_share"] = share[0] / share[1]
        now, then = time.perf_counter(), self._since[0]
        done = (self.step_number - self._since[1]) * self.train.batch_size
        self._since = (now, self.step_number)
        means["train/lr"] = self.train.lr * warmed_up(self.step_number, self.train.warmup_steps)
        means["train/decoder_frozen"] = float(self._frozen())
        means["num_params"] = float(num_parameters(self.model))
        means["perf/examples_per_second"] = done / max(now - then, 1e-9)
        return {"step": float(self.step_number), **means}

    def evaluate(self) -> dict[str, float]:
        """`all.*` over the training questions in all their variants, with the averaged weights."""
        most = self.run.episodes.max_demos
        shown = [replace(lane, demos=lane.demos[:, :most]) for lane in self.episodes]
        lanes = all_variants(self.corpus, shown)
        lanes = thin_out(lanes, self.train.eval_episodes, self.run.seed)
        started, size = time.perf_counter(), max(self.train.batch_size, 64)
        with Averaged(self.model, self.ema):
            means = training_metrics(self.model, self.corpus, lanes, self.halting, size, self.dtype)
        # Throughput is that of training alone.
        self._since = (self._since[0] + time.perf_counter() - started, self._since[1])
        return means

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step_number,
            "model": self.model.state_dict(),
            "ema": self.ema.values,
            "optimizer": self.optimizer.state_dict(),
            "lanes": [_carry_state(lane.carry) for lane in self.lanes],
            "window": {"sums": self.window.sums, "weights": self.window.weights},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a trainer with the same configuration."""
        self.step_number = state["step"]
        self._since = (time.perf_counter(), self.step_number)
        self.model.load_state_dict(state["model"])
        self.ema.values = dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for lane, saved in zip(self.lanes, state["lanes"], strict=True):
            values = {name: saved[name] for name in CARRIED}
            lane.carry = Carry(batch=Batch(**saved["batch"]), **values)
        self.window.sums = dict(state["window"]["sums"])
        self.window.weights = dict(state["window"]["weights"])

    def _lanes(self, episodes: Sequence[Episodes]) -> list[Lane]:
        lanes, first = [], 0
        for lane, size in zip(episodes, share_out(episodes, self.train.batch_size), strict=True):
            slots = torch.arange(first, first + size, device=self.corpus.device)
            sampler = Sampler(self.corpus, lane, slots, self.run.seed, self.run.episodes)
            carry = empty_carry(self.model, sampler.batch(0), self.dtype)
            lanes.append(Lane(sampler, carry, slots))
            first += size
        return lanes

    def _optimizer(self) -> AdamATan2:
        train, groups = self.train, []
        for parameters, scale in (
            (self.decoder_parameters, 1.0),
            (self.context_parameters, train.context_lr_scale),
        ):
            if parameters:
                groups.append({"params": parameters, "scale": scale})
        return AdamATan2(groups, train.lr, (train.betas[0], train.betas[1]), train.weight_decay)

    def _forward_backward(self, lane: Lane) -> tuple[StepOutput, SampleLoss, Tensor]:
        incoming = lane.sampler.batch(self.step_number)
        with autocast(self.corpus.device, self.dtype):
            carry, output = act_step(self.model, lane.carry, incoming, self.train.cache_context)
        losses = sample_losses(output, carry.batch.labels)
        total = losses.total(self.halting.loss_weight, self.model.context.loss_weights)
        (total.sum() / self.train.batch_size).backward()
        carry.halted = self._halting(carry, output.q_halt.detach(), lane.slots, self.halting)
        lane.carry = carry
        return output, losses, carry.halted

    def _halting(
        self, carry: Carry, q_halt: Tensor, slots: Tensor, halting: HaltingConfig
    ) -> Tensor:
        seed, step = self.run.seed, self.step_number
        explore = random.uniform(seed, step, random.EXPLORE, slots)[:, 0]
        minimum = random.uniform(seed, step, random.MINIMUM, slots)[:, 0]
        return decide_halting(carry.steps, q_halt, halting, explore, minimum)

    def _frozen(self) -> bool:
        return self.step_number <= self.run.decoder.frozen_steps

    def _update(self) -> None:
        self._log_gradients()
        if self._frozen():
            for parameter in self.decoder_parameters:
                parameter.grad = None
        factor = warmed_up(self.step_number, self.train.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.lr * factor * group["scale"]
        self.optimizer.step()
        if self.embedding is not None:
            self.embedding.step(self.train.embedding_lr * factor)
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)

    def _log_gradients(self) -> None:
        """Clip; log all norms before clipping, and that of what the update uses after it."""
        encoder = gradient_norm(self.context_parameters)
        inner = gradient_norm(self.decoder_parameters)
        zero = self.corpus.grids.new_zeros((), dtype=torch.float32)
        parts = [zero if part is None else part for part in (encoder, inner)]
        total = torch.stack(parts).norm()
        clipped = parts[0] if self._frozen() else total  # of the gradients that are used
        if self.train.grad_clip is not None:
            factor = (self.train.grad_clip / (clipped + 1e-6)).clamp(max=1.0)
            for parameter in [*self.context_parameters, *self.decoder_parameters]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            clipped = clipped * factor
        if self.context_parameters:
            self.window.add("grad/encoder_norm", parts[0])
        self.window.add("grad/inner_norm", parts[1])
        self.window.add("grad/total_norm", total)
        self.window.add("grad/total_norm_clipped", clipped)


class Averaged:
    """Within the block, a model's parameters are the averaged ones."""

    def __init__(self, model: Model, ema: EMA) -> None:
        self.model, self.ema = model, ema
        self._raw: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for name, parameter in self.model.named_parameters():
            self._raw[name], parameter.data = parameter.data, self.ema.values[name]

    def __exit__(self, *_: object) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data = self._raw[name]


def share_out(episodes: Sequence[Episodes], slots: int) -> list[int]:
    """Slots per lane in proportion to its questions (largest remainders), at least one each."""
    if not episodes:
        raise SlotError(
            "found no training question, expected at least one: the tasks trained on have too few"
            " pairs (for episodes.queries), or all of them are held out"
        )
    if slots < len(episodes):
        sides = [lane.side for lane in episodes]
        raise SlotError(
            f"train.batch_size: found {slots}, expected at least one slot for each of the canvas"
            f" lanes {sides}; raise it or use fewer lanes"
        )
    total = sum(len(lane) for lane in episodes)
    exact = [len(lane) * slots / total for lane in episodes]
    sizes = [max(1, int(share)) for share in exact]
    while sum(sizes) != slots:
        grow = 1 if sum(sizes) < slots else -1
        able = [i for i, size in enumerate(sizes) if size + grow >= 1]
        best = max(able, key=lambda i: grow * (exact[i] - sizes[i]))
        sizes[best] += grow
    return sizes


def _carry_state(carry: Carry) -> dict[str, Any]:
    return {"batch": carry.batch.tensors(), **{n: getattr(carry, n) for n in CARRIED}}
