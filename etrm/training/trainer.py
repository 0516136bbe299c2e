"""The trainer: one model, the slots of every lane, and one ACT step and update of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from etrm.config.execution import ExecutionConfig
from etrm.config.registry import SEARCH_STEP, load_definition
from etrm.config.study import HaltingConfig, RunConfig
from etrm.data import counter_random as random
from etrm.data.batch import Batch
from etrm.data.corpus import Corpus, Episodes
from etrm.evaluation.decode import LaneQuestions, all_variants, mean_metrics, thin_out
from etrm.models.act import Carry, Model, StepOutput, act_step, decide_halting
from etrm.models.build import num_parameters
from etrm.models.compute import DTYPES, Compute, compile_blocks, compiles, computing
from etrm.models.encoders.base import Encoded
from etrm.models.losses import SampleLoss, sample_losses
from etrm.models.memory import activation_budget
from etrm.runtime.distributed import Ranks
from etrm.training.contrast import Contrast
from etrm.training.lane_weights import LaneWeights
from etrm.training.metrics import EncoderStatistics, Window
from etrm.training.optim import averaged_weights, warmup_factor
from etrm.training.probe import Probe, make_probe
from etrm.training.renewal import Renewal
from etrm.training.slots import LaneSlots, gather_carries, make_lane_slots, restore_carries
from etrm.training.update import Updater

ONE, DEFAULTS = Ranks(), ExecutionConfig()
QUICK_CHECK = 10  # the step at which the experiment guide first looks at gradients


class Trainer:
    """Trains a model on the questions of a corpus. A step is one ACT step of every slot.

    All micro-batches of all ranks do their forward and backward pass, then there is one update:
    the loss is the mean over all slots of the batch, each with the weight of its lane. All ranks
    call the same methods.
    """

    def __init__(
        self,
        run: RunConfig,
        model: Model,
        corpus: Corpus,
        episodes: Sequence[Episodes],
        ranks: Ranks = ONE,
        execution: ExecutionConfig = DEFAULTS,
        compute: Compute | None = None,
        validation: tuple[Corpus, list[LaneQuestions]] | None = None,
        renewal: Renewal | None = None,
    ) -> None:
        """`episodes`: by lane. `compute`: the number format and its variants, default: `run`'s.

        `validation`: questions that `evaluate` asks beside those of training, of another corpus.
        `renewal`: where the tasks that give way to others come from.
        """
        self.run, self.model, self.corpus, self.ranks = run, model, corpus, ranks
        self.train, self.halting, self.episodes = run.train, run.halting, list(episodes)
        self.validation, self.renewal = validation, renewal
        self._period = 0  # of the tasks that slots take
        self.compute = compute or Compute(DTYPES[run.train.dtype], run.train.hoist_casts)
        self.step_number = 0  # of the step under way, or the last one done
        self.memory = activation_budget(corpus.device, execution, ranks.local_world_size)
        given = ranks, self.compute.dtype, execution, self.memory
        self.lane_slots = make_lane_slots(run, model, corpus, episodes, *given)
        self.lane_weights = LaneWeights(episodes, run.train.batch_size, corpus.device)
        self.updater = Updater(run, model, ranks)
        self.ema = self.updater.ema
        self.has_context = "context" in self.updater.parameters.flat
        self.window = Window()
        self.contrast = Contrast(model, corpus.device)
        self._row_time, self._row_step = time.perf_counter(), 0  # of the last row
        if compiles(execution.compile, corpus.device):
            compile_blocks(model)
        model.train()

    def step(self) -> None:
        """Do one ACT step of every slot, and one update."""
        self.step_number += 1
        self._renew()
        weights = self.lane_weights.by_lane
        number_halted = torch.zeros_like(weights)  # [lanes]
        statistics = EncoderStatistics() if self.row_due() else None
        for group in self.lane_slots:
            weight = weights[group.lane]
            output, losses, halted = self._forward_backward(group)
            steps, share = group.carry.steps, len(group.slots) / self.train.batch_size
            self.window.add_samples(losses, halted, steps, share, weight)
            if self.halting.max_steps > 1:  # of one step, the share says nothing of the q-head
                used = (halted * steps).sum() / self.halting.max_steps
                self.window.add("train/steps_share", used * weight, halted.sum() * weight)
            number_halted[group.lane] += halted.sum()
            if self.has_context:
                encoded = output.encoded.sum()  # samples whose encoding carries a gradient
                size = len(output.encoded)
                self.window.add("grad/encoder_coverage", encoded * weight, size * weight)
            if statistics is not None:
                statistics.add(self.model.context.representation(output.encoding))
        self.contrast.advance(self.train.batch_size, self.ranks)
        if statistics is not None:
            self._add_shared(statistics.values(self.ranks))
        self._update()
        if self.row_due() and len(self.episodes) > 1:
            shares = zip(self.episodes, self.lane_weights.share, strict=True)
            self._add_shared({f"train/lane_share/{e.lane}": share for e, share in shares})
        self.lane_weights.advance(number_halted, self.ranks)
        # The probe measures the updated weights, and changes none.
        if self._due(self.train.probe_every) and self.probe is not None:
            self._add_shared(self.probe.measure(self.model, self.compute))

    def _renew(self) -> None:
        """Let slots take tasks of the step's period, from this step on."""
        if (
            self.renewal is None
            or (period := self.renewal.period(self.step_number)) == self._period
        ):
            return
        self._period = period
        drawn = self.renewal.draw(period)
        for group in self.lane_slots:
            group.take_from(*drawn)

    def row_due(self) -> bool:
        """Return whether a row of this step is logged."""
        return self._due(self.train.log_every) or self.step_number == QUICK_CHECK

    def row(self) -> dict[str, float]:
        """Return the metrics since the last row, in one transfer from the device."""
        means, step = self.window.row(self.ranks), self.step_number
        frozen = self.updater.frozen(step)
        now, samples = time.perf_counter(), (step - self._row_step) * self.train.batch_size
        means["train/lr"] = self.train.lr * warmup_factor(step, self.train.warmup_steps)
        means["train/decoder_frozen"] = float("decoder" in frozen)
        means["train/encoder_frozen"] = float("context" in frozen)
        means["num_params"] = float(num_parameters(self.model))
        means["perf/examples_per_second"] = samples / max(now - self._row_time, 1e-9)
        self._row_time, self._row_step = now, step
        return {"step": float(step), **means}

    def initial_row(self) -> dict[str, float]:
        """Return the probe's measures of the first weights, at step 0; empty without a probe.

        The measures of a random encoder are the floor of those that are learned.
        """
        if self.train.probe_every is None or self.probe is None:
            return {}
        self._add_shared(self.probe.measure(self.model, self.compute))
        means, self._row_time = self.window.row(self.ranks), time.perf_counter()
        return {"step": 0.0, **means}

    @cached_property
    def probe(self) -> Probe | None:
        """Fixed questions on which representations are measured; None without an encoder."""
        demos = self.model.context.needs_demos
        return make_probe(self.run, self.corpus, self.episodes) if demos else None

    def evaluate(self) -> dict[str, float]:
        """Return `all.*` over the training questions in all variants, with averaged weights.

        With validation tasks, `validation.*` as well, over their test inputs in all variants, and
        `validation.gap`: by how much exact match is higher in training.
        """
        started = time.perf_counter()
        most = self.run.episodes.max_demos if self.model.context.needs_demos else 0
        lanes = all_variants(self.corpus, [lane.truncate_demos(most) for lane in self.episodes])
        asked = {"all": (self.corpus, lanes)}
        if self.validation is not None:
            asked["validation"] = self.validation
        row: dict[str, float] = {}
        with averaged_weights(self.model, self.ema):
            for name, (corpus, questions) in asked.items():
                means = self._ask(corpus, questions)
                row |= {f"{name}.{metric}": mean for metric, mean in means.items()}
        if self.validation is not None:
            row["validation.tasks"] = float(len(self.validation[0].tasks))
        if {"all.exact_accuracy", "validation.exact_accuracy"} <= row.keys():
            row["validation.gap"] = row["all.exact_accuracy"] - row["validation.exact_accuracy"]
        self._row_time += time.perf_counter() - started  # throughput is that of training alone
        return row

    def _ask(self, corpus: Corpus, lanes: list[LaneQuestions]) -> dict[str, float]:
        lanes = thin_out(lanes, self.train.eval_episodes, self.run.seed)
        # Without activations to keep, a pass takes more samples than in training.
        size, dtype = max(self.train.batch_size, 64), self.compute.dtype
        given = self.model, corpus, lanes, self.halting, size, dtype
        return mean_metrics(*given, self.ranks, self.memory)

    def state_dict(self) -> dict[str, Any] | None:
        """Return all that the next step depends on, for any number of ranks; None off rank 0."""
        lanes, totals = gather_carries(self.lane_slots, self.ranks), self.window.totals(self.ranks)
        if lanes is None:
            return None
        return {
            "step": self.step_number,
            "model": self.model.state_dict(),
            "ema": self.ema.values,
            "optimizer": self.updater.optimizer.state_dict(),
            "lanes": lanes,
            "lane_weights": self.lane_weights.state_dict(),
            "window": totals,  # of the row under way
            "bank": self.contrast.bank,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the `state_dict()` of a trainer of the same run, on any number of ranks."""
        self.step_number = self._row_step = state["step"]
        self._row_time = time.perf_counter()
        self.model.load_state_dict(state["model"])
        for name, value in self.ema.values.items():
            value.copy_(state["ema"][name])
        self.updater.optimizer.load_state_dict(state["optimizer"])
        restore_carries(self.lane_slots, state["lanes"])
        self.lane_weights.load_state_dict(state["lane_weights"])
        self.contrast.load_state(state["bank"])
        self.window = Window()
        if self.ranks.is_rank_zero:  # the sums so far are of all ranks: counted once
            self.window.load(state["window"], self.corpus.device)

    def micro_batches_per_lane(self) -> dict[str, int]:
        """Return the number of this rank's passes by lane."""
        lanes = [group.sampler.episodes.lane for group in self.lane_slots]
        return {str(lane): lanes.count(lane) for lane in sorted(set(lanes))}

    def _forward_backward(self, group: LaneSlots) -> tuple[StepOutput, SampleLoss, Tensor]:
        """Do an ACT step of a micro-batch; return its output, losses, and who halted [B] bool."""
        incoming = group.batch(self.step_number)
        model, cache = self.model, self.train.cache_context
        with computing(model, self.compute):
            carry, output = act_step(model, group.carry, incoming, cache, search=self._search())
            if self.contrast.active:
                output.losses["contrastive"] = self.contrast.loss(carry.batch, output.encoding)
        losses = sample_losses(output, carry.batch.labels)
        total = losses.total(self.halting.loss_weight, self.model.context.loss_weights)
        weight = self.lane_weights.by_lane[group.lane]
        # Before the backward pass, during which the host prepares the next batch.
        carry.halted = self._halting(carry, output.q_halt.detach(), group.slots, self.halting)
        group.carry = carry
        if group.host_tracker is not None:
            group.host_tracker.record_halted(carry.halted)
        (total.sum() * weight / self.train.batch_size).backward()  # added up over micro-batches
        return output, losses, carry.halted

    def _search(self) -> Callable[[Batch, Encoded], Tensor] | None:
        """Return the search that this step's contexts are moved by; None before there is any."""
        start = self.train.search_from
        if start is None or self.step_number <= start:
            return None
        step = load_definition(SEARCH_STEP)
        return partial(step, self.model, lr=self.train.search_lr, dtype=self.compute.dtype)

    def _halting(
        self, carry: Carry, q_halt: Tensor, slots: Tensor, halting: HaltingConfig
    ) -> Tensor:
        seed, step = self.run.seed, self.step_number
        explore = random.uniform(seed, step, random.EXPLORE, slots)[:, 0]
        minimum = random.uniform(seed, step, random.MINIMUM, slots)[:, 0]
        return decide_halting(carry.steps, q_halt, halting, explore, minimum)

    def _due(self, every: int | None) -> bool:
        """Return whether this step is one of `every` steps, or the last, whose row is logged."""
        last = self.step_number == self.train.steps
        return every is not None and (last or self.step_number % every == 0)

    def _add_shared(self, values: Mapping[str, Tensor]) -> None:
        """Add values that every rank has to the metrics: counted on rank 0 alone."""
        weight = float(self.ranks.is_rank_zero)
        for name, value in values.items():
            self.window.add(name, value * weight, weight)

    def _update(self) -> None:
        self._add_shared(self.updater.apply(self.step_number, self.lane_weights.by_slot))
