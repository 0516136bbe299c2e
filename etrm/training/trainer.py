"""The trainer: one model, its optimizers, the slots of every lane, and one step of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.config.study import HaltingConfig, RunConfig
from etrm.data import counter_random as random
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import all_variants, thin_out, training_metrics
from etrm.models.act import Carry, Model, StepOutput, act_step, decide_halting
from etrm.models.build import num_parameters
from etrm.models.compute import DTYPES, Compute, compile_blocks, compiles, computing
from etrm.models.encoders.embedding import PuzzleEmbedding
from etrm.models.losses import SampleLoss, contrastive_loss, sample_losses
from etrm.runtime.distributed import Ranks
from etrm.training.metrics import Window, encoder_statistics
from etrm.training.micro_batches import budget, most_slots
from etrm.training.optim import EMA, AdamATan2, FlatParameters, SignSGD, warmed_up
from etrm.training.probe import Probe, make_probe
from etrm.training.slots import Lane, gather, make_lanes, scatter

ONE, AS_IT_COMES = Ranks(), ExecutionConfig()


class Trainer:
    """Trains a model on the questions of a corpus. A step is one ACT step of every slot.

    All lanes do their forward and backward pass, on all ranks, then there is one update: the loss
    is the mean over all slots of the batch. Methods are called on all ranks alike.
    """

    def __init__(
        self,
        run: RunConfig,
        model: Model,
        corpus: Corpus,
        episodes: Sequence[Episodes],
        ranks: Ranks = ONE,
        execution: ExecutionConfig = AS_IT_COMES,
        compute: Compute | None = None,
    ) -> None:
        """`compute`: number format and ways of computing, by default those of `run`."""
        self.run, self.model, self.corpus, self.ranks = run, model, corpus, ranks
        self.train, self.halting = run.train, run.halting
        self.compute = compute or Compute(DTYPES[run.train.dtype])
        self.step_number = 0
        self.episodes = list(episodes)
        room = budget(execution, corpus.device, ranks.local_world_size)
        self.lanes = make_lanes(
            run,
            model,
            corpus,
            episodes,
            ranks,
            self.compute.dtype,
            lambda lane: most_slots(run, model, lane, execution, room),
        )
        self.ema = EMA(model, run.train.ema_decay)
        context, decoder = list(model.context.parameters()), list(model.decoder.parameters())
        self.parameters = FlatParameters({"decoder": decoder, "context": context})
        self.optimizer = self._optimizer()
        table = model.context if isinstance(model.context, PuzzleEmbedding) else None
        self.embedding = SignSGD(table, run.train.embedding_weight_decay) if table else None
        self.window = Window()
        # Contexts of all slots at the last step, and their tasks: the contrastive loss' others.
        self.bank: tuple[Tensor, Tensor] | None = None
        self._since = (time.perf_counter(), 0)
        if compiles(execution.compile, corpus.device):
            compile_blocks(model)
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
            if "context" in self.parameters.flat:
                encoded = output.encoded.sum()
                self.window.add("grad/encoder_coverage", encoded, len(output.encoded))
                contexts.append(output.context.detach())
        self._remember(contexts)
        last = self.step_number == self.train.steps  # its row is logged as well
        if contexts and (last or self.step_number % self.train.log_every == 0):
            every = self.ranks.all_gather(torch.cat(contexts), self.train.batch_size)
            for name, value in encoder_statistics(every).items():
                self._note(name, value)
        self._update()
        every_n = self.train.probe_every
        if every_n and (last or self.step_number % every_n == 0):
            for name, value in self._probed().items():
                self._note(name, value)

    def row(self) -> dict[str, float]:
        """The metrics since the last row, one transfer from the device."""
        means = self.window.row(self.ranks)
        share = means.get("grad/encoder_norm"), means.get("grad/total_norm")
        if share[0] is not None and share[1]:
            means["grad/encoder_share"] = share[0] / share[1]
        now, then = time.perf_counter(), self._since[0]
        done = (self.step_number - self._since[1]) * self.train.batch_size
        self._since = (now, self.step_number)
        means["train/lr"] = self.train.lr * warmed_up(self.step_number, self.train.warmup_steps)
        means["train/decoder_frozen"] = float("decoder" in self._frozen())
        means["train/encoder_frozen"] = float("context" in self._frozen())
        means["num_params"] = float(num_parameters(self.model))
        means["perf/examples_per_second"] = done / max(now - then, 1e-9)
        return {"step": float(self.step_number), **means}

    @cached_property
    def probe(self) -> Probe | None:
        """The fixed questions on which representations are measured; None without an encoder."""
        if not self.model.context.needs_demos:
            return None
        return make_probe(self.run, self.corpus, self.episodes)

    def _probed(self) -> dict[str, Tensor]:
        return {} if self.probe is None else self.probe.measure(self.model, self.compute)

    def evaluate(self) -> dict[str, float]:
        """`all.*` over the training questions in all their variants, with the averaged weights."""
        most = self.run.episodes.max_demos if self.model.context.needs_demos else 0
        shown = [lane.showing(most) for lane in self.episodes]
        lanes = all_variants(self.corpus, shown)
        lanes = thin_out(lanes, self.train.eval_episodes, self.run.seed)
        started, size = time.perf_counter(), max(self.train.batch_size, 64)
        with Averaged(self.model, self.ema):
            means = training_metrics(
                self.model, self.corpus, lanes, self.halting, size, self.compute.dtype, self.ranks
            )
        # Throughput is that of training alone.
        self._since = (self._since[0] + time.perf_counter() - started, self._since[1])
        return means

    def state_dict(self) -> dict[str, Any] | None:
        """All that the next step depends on, whatever the ranks; None but on rank 0."""
        lanes, totals = gather(self.lanes, self.ranks), self.window.totals(self.ranks)
        if lanes is None:
            return None
        return {
            "step": self.step_number,
            "model": self.model.state_dict(),
            "ema": self.ema.values,
            "optimizer": self.optimizer.state_dict(),
            "lanes": lanes,
            "window": totals,
            "bank": self.bank,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a trainer with the same configuration, on any ranks."""
        self.step_number = state["step"]
        self._since = (time.perf_counter(), self.step_number)
        self.model.load_state_dict(state["model"])
        for name, value in self.ema.values.items():
            value.copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        scatter(self.lanes, state["lanes"])
        if state["bank"] is not None:
            vectors, tasks = (tensor.to(self.corpus.device) for tensor in state["bank"])
            self.bank = (vectors, tasks)
        # The sums so far are counted once, by rank 0.
        self.window = Window()
        self.window.load(state["window"] if self.ranks.is_rank_zero else {}, self.corpus.device)

    def micro_batches(self) -> dict[str, int]:
        """Passes of this rank by canvas side."""
        sides = [lane.side for lane in self.lanes]
        return {str(side): sides.count(side) for side in sorted(set(sides))}

    def _optimizer(self) -> AdamATan2:
        train, scales = self.train, {"decoder": 1.0, "context": self.train.context_lr_scale}
        groups = [
            {"params": [flat], "scale": scales[name]} for name, flat in self.parameters.flat.items()
        ]
        return AdamATan2(groups, train.lr, (train.betas[0], train.betas[1]), train.weight_decay)

    def _forward_backward(self, lane: Lane) -> tuple[StepOutput, SampleLoss, Tensor]:
        incoming = lane.batch(self.step_number)
        with computing(self.model, self.compute):
            carry, output = act_step(self.model, lane.carry, incoming, self.train.cache_context)
        losses = sample_losses(output, carry.batch.labels)
        if self.model.context.loss_weights.get("contrastive"):
            losses.context["contrastive"] = self._contrastive(lane, carry, output)
        total = losses.total(self.halting.loss_weight, self.model.context.loss_weights)
        (total.sum() / self.train.batch_size).backward()
        carry.halted = self._halting(carry, output.q_halt.detach(), lane.slots, self.halting)
        lane.carry = carry
        if lane.followed is not None:
            lane.followed.note(carry.halted)
        return output, losses, carry.halted

    def _halting(
        self, carry: Carry, q_halt: Tensor, slots: Tensor, halting: HaltingConfig
    ) -> Tensor:
        seed, step = self.run.seed, self.step_number
        explore = random.uniform(seed, step, random.EXPLORE, slots)[:, 0]
        minimum = random.uniform(seed, step, random.MINIMUM, slots)[:, 0]
        return decide_halting(carry.steps, q_halt, halting, explore, minimum)

    def _contrastive(self, lane: Lane, carry: Carry, output: StepOutput) -> Tensor:
        vectors = output.context.mean(dim=1)
        if self.bank is None:
            return vectors.new_zeros(len(vectors))
        temperature = self.run.context.contrastive_temperature
        return contrastive_loss(vectors, carry.batch.task, lane.slots, *self.bank, temperature)

    def _remember(self, contexts: list[Tensor]) -> None:
        """Keep this step's contexts of all slots for the contrastive loss of the next."""
        if self.model.context.loss_weights.get("contrastive"):
            tasks = torch.cat([lane.carry.batch.task for lane in self.lanes])
            vectors = torch.cat([each.mean(dim=1) for each in contexts])
            slots = self.train.batch_size
            self.bank = self.ranks.all_gather(vectors, slots), self.ranks.all_gather(tasks, slots)

    def _frozen(self) -> set[str]:
        """Parts that this step does not train."""
        decoder, step = self.run.decoder, self.step_number
        frozen = {"decoder"} if decoder.frozen or step <= decoder.frozen_steps else set()
        return frozen | ({"context"} if step <= self.train.context_frozen_steps else set())

    def _note(self, name: str, value: Tensor) -> None:
        """A value that all ranks have: counted once."""
        weight = float(self.ranks.is_rank_zero)
        self.window.add(name, value * weight, weight)

    def _update(self) -> None:
        self.ranks.sum_(self.parameters.gradient)
        self._clip_gradients()
        factor = warmed_up(self.step_number, self.train.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.lr * factor * group["scale"]
        with self._held():
            self.optimizer.step()
        if self.embedding is not None:
            lr = self.train.embedding_lr * factor
            self.embedding.step(lr, self.ranks, self.train.batch_size)
        self.parameters.gradient.zero_()
        self.ema.update(self.model)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Within the block, a frozen part has no gradient, so that no update touches it."""
        flat = self.parameters.flat
        held = {name: flat[name].grad for name in self._frozen() if name in flat}
        for name in held:
            flat[name].grad = None
        yield
        for name, gradient in held.items():
            flat[name].grad = gradient

    def _clip_gradients(self) -> None:
        """Clip; log all norms before clipping, and that of what the update uses after it."""
        norms = {name: self.parameters.part(name).norm() for name in ("context", "decoder")}
        total = torch.stack(list(norms.values())).norm()
        frozen = self._frozen()
        used = [norm * (name not in frozen) for name, norm in norms.items()]
        clipped = torch.stack(used).norm() if frozen else total
        if self.train.grad_clip is not None:
            factor = (self.train.grad_clip / (clipped + 1e-6)).clamp(max=1.0)
            self.parameters.gradient.mul_(factor)
            clipped = clipped * factor
        if "context" in self.parameters.flat:
            self._note("grad/encoder_norm", norms["context"])
        self._note("grad/inner_norm", norms["decoder"])
        self._note("grad/total_norm", total)
        self._note("grad/total_norm_clipped", clipped)


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
