"""FLOPs of the samples of a run: the means over its lanes, of the decoder and of its encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from etrm.config.refinement import RefinementConfig
from etrm.config.study import RunConfig
from etrm.models.build import context_of_sizes
from etrm.models.encoders.base import ContextSource
from etrm.models.flops import (
    FROZEN_BACKWARD,
    LINEAR_BACKWARD,
    Work,
    act_step,
    bytes_moved,
    training_step,
)
from etrm.refinement.costs import Costs
from etrm.study.plan.spread import LaneShare, Spread, Spreads

BYTES = {"bf16": 2, "fp32": 4}  # of a number


@dataclass(frozen=True)
class Demand:
    """Work that is asked for."""

    flops: float
    bytes: float  # moved by unfused kernels
    counted: bool = True  # false: without that of the encoder, which does not count its own

    @property
    def intensity(self) -> float:
        """Return FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Demands:
    """The work of the runs of a study, counted once for all that are alike."""

    spreads: Spreads
    _known: dict[object, Demand] = field(default_factory=dict)

    def of(self, run: RunConfig, trained: bool, held_out: bool = False) -> Demand:
        """Return the work of an ACT step of training, or of a prediction."""
        spread = self.spreads.of(run, held_out)
        settings = (run.decoder.frozen, run.train.dtype, run.halting.max_steps, searching(run))
        key = (run.model, run.context, *settings, trained, id(spread))
        if key not in self._known:
            self._known[key] = training(run, spread) if trained else answer(run, spread)
        return self._known[key]


def training(run: RunConfig, spread: Spread) -> Demand:
    """Return the work of one ACT step of one sample, forward and backward."""
    of = _Run(run)
    linear = FROZEN_BACKWARD if run.decoder.frozen else LINEAR_BACKWARD

    def flops(lane: LaneShare) -> float:
        decoder = training_step(run.model, lane.cells, of.context(lane))
        encoder = of.encoder(lane)
        if of.source.loss_weights.get("contrastive"):  # its query's own pair is encoded as well
            encoder *= 1 + 1 / max(1.0, float((lane.demos.concat > 0).sum(axis=1).mean()))
        backward = decoder.backward(linear=linear) + encoder.backward()
        demo = decoder.forward + decoder.backward(linear=FROZEN_BACKWARD) + encoder.forward
        search = searching(run) * lane.demos.concat.shape[1] * demo  # as many as any sample has
        return decoder.forward + encoder.forward + backward + search

    return Demand(spread.mean(flops), spread.mean(lambda lane: of.moved(lane, True)), of.counted)


def searching(run: RunConfig) -> float:
    """Return the share of a run's steps that search."""
    start, steps = run.train.search_from, run.train.steps
    return 0.0 if start is None else max(0.0, 1.0 - start / steps)


def answer(run: RunConfig, spread: Spread) -> Demand:
    """Return the work of one prediction: all ACT steps of one sample."""
    of, steps = _Run(run), run.halting.max_steps
    encodings = 1 if of.source.initial_state(1) is None else steps

    def flops(lane: LaneShare) -> float:
        step = act_step(run.model, lane.cells, of.context(lane))
        return step.forward * steps + of.encoder(lane).forward * encodings

    moved = spread.mean(lambda lane: steps * of.moved(lane, False))
    return Demand(spread.mean(flops), moved, of.counted)


def refinement(run: RunConfig, config: RefinementConfig, spread: Spread) -> Demand:
    """Return the work of refining the answer to one question in one variant, by all methods."""
    of = _Run(run)

    def flops(lane: LaneShare) -> float:
        demos = (lane.demos.concat > 0).sum(axis=1).tolist()
        costs = Costs(run.model, lane.cells, of.context(lane), demos, run.halting, config)
        return costs.all() / len(demos)

    step = spread.mean(lambda lane: act_step(run.model, lane.cells, of.context(lane)).forward)
    work = spread.mean(flops)
    moved = spread.mean(lambda lane: of.moved(lane, False))
    return Demand(work, work / step * moved, of.counted)


class _Run:
    """A run's encoder on the lanes of its samples."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.source: ContextSource = context_of_sizes(run.context, run.model)
        self.counted = True

    def context(self, lane: LaneShare) -> int:
        """Return P."""
        return self.source.context_size(lane.most)

    def encoder(self, lane: LaneShare) -> Work:
        """Return the work of encoding a sample once."""
        work = self.source.work(lane.demos) if self.source.needs_demos else Work()
        self.counted = self.counted and work is not None
        return (work or Work()) * (1 / len(lane.demos.concat))

    def moved(self, lane: LaneShare, trained: bool) -> float:
        """Return the bytes of an ACT step of a sample."""
        item, model = BYTES[self.run.train.dtype], self.run.model
        demos = float(lane.demos.concat.sum(axis=1).mean())
        encoder = self.source.activation_bytes(demos, item)
        return bytes_moved(model, lane.cells + self.context(lane), encoder, item, trained)
