"""Expected hours of stages, and the measurement or assumption that each number comes from.

Finished runs of the study come first: of the same experiment, else of the same model and batch.
Without them, FLOPs are counted (`work`), over the rate of the device (`devices`): as the project's
benchmarks measured it, else of its data sheet at an assumed utilisation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etrm.config.load import plain
from etrm.config.study import RunConfig
from etrm.study.layout import Layout, Run
from etrm.study.plan.devices import Device
from etrm.study.plan.entries import RESULTS, Entry
from etrm.study.plan.sizes import Sizes
from etrm.study.plan.spread import Spreads
from etrm.study.plan.work import Demand, Demands, refinement
from etrm.study.stale import StudyStatus

HOUR = 3600  # seconds

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """The speed of one finished run or evaluation."""

    run: Run
    stage: str  # of training, or `evaluate`
    kind: str  # equal where a sample costs the same
    per_second: float  # samples (of an evaluation: samples × ACT steps) on one device
    device: str


def measured(layout: Layout, status: StudyStatus) -> Iterator[Measured]:
    """Yield the speed of every finished run and evaluation whose record has its duration."""
    results = set(layout.results())
    for run in layout.runs():
        record = status.run(run).record
        if record is None:
            continue
        config = record["config"]
        samples = record["steps_done"] * config["train"]["batch_size"] / record.get("ranks", 1)
        found = [(run.stage, training_kind(config), samples, record)]
        score, refined = (
            status.score(run, stage).record if (run, stage) in results else None
            for stage in ("evaluation", "refinement")
        )
        if score is not None:
            done = score["predictions"] * config["halting"]["max_steps"]  # all take every step
            found.append(("evaluate", evaluation_kind(config, score["evaluation"]), done, score))
        if refined is not None:
            kind = refinement_kind(config, refined["refinement"])
            found.append(("refine", kind, refined["tasks_asked"], refined))
        for stage, kind, done, of in found:
            if done and (of.get("seconds") or 0.0) > 0:
                yield Measured(run, stage, kind, done / of["seconds"], of["device"])


def training_kind(config: Row) -> str:
    """Return a key that is equal for runs whose steps cost the same for each sample."""
    train = config["train"]
    some = [train[key] for key in ("batch_size", "dtype", "cache_context")]
    if train.get("search_from") is not None:
        some += [train["search_from"], train["steps"]]
    return _kind(config, some, config["decoder"]["frozen"])


def evaluation_kind(config: Row, evaluation: Row) -> str:
    """Return a key that is equal for evaluations whose ACT steps cost the same for each sample."""
    return _kind(config, config["train"]["dtype"], evaluation["batch_size"])


def refinement_kind(config: Row, refinement: Row) -> str:
    """Return a key that is equal for refinements whose tasks cost the same."""
    settings = {key: value for key, value in refinement.items() if key != "tasks"}
    return _kind(config, config["train"]["dtype"], config["halting"]["max_steps"], settings)


def _kind(config: Row, *more: Any) -> str:
    blocks = [config[name] for name in ("context", "model", "episodes")]
    return json.dumps([*blocks, *more], sort_keys=True)


@dataclass(frozen=True)
class Cost:
    """Cost of an entry, in its fields of the same names."""

    hours: float | None = None  # of one device; None: nothing says how fast it is
    measured: str | None = None  # the measurement, or the assumption
    hours_least: float | None = None  # where it ends as early as it may


@dataclass(frozen=True)
class Costs:
    """Expected hours of a study's stages on a device."""

    layout: Layout
    sizes: Sizes
    device: Device
    measured: Sequence[Measured] = ()  # finished runs and evaluations, on all devices

    @cached_property
    def demands(self) -> Demands:
        """Return the work of the study's runs on its tasks."""
        return Demands(Spreads(self.sizes.records))

    def of(self, entry: Entry) -> Cost:
        """Return the remaining cost of a stage: none for a verdict, or a restored result."""
        if entry.stage == "gate" or not entry.costs or entry.cached:
            return Cost(0.0, hours_least=0.0)
        if entry.stage in RESULTS:
            return self._result(entry)
        return self._training(entry)

    def _result(self, entry: Entry) -> Cost:
        """Return the cost of answers of a finished run, of an evaluation or a refinement."""
        experiment, sizes = self.layout.study.experiments[entry.experiment], self.sizes
        run = Run(entry.experiment, str(experiment.scored_stage), entry.seed)
        config, validation = self.layout.config_of(run), entry.stage == "validate"
        done: float | None
        if entry.stage == "refine":
            settings = experiment.refinement
            stage, kind = "refine", refinement_kind(plain(config), plain(settings))
            samples = sizes.answers(settings, self.layout.study.data.variants)
            done = min(settings.tasks or sizes.held_out, sizes.held_out)
        else:
            of = experiment.evaluation
            stage, kind = "evaluate", evaluation_kind(plain(config), plain(of))
            samples = sizes.answers(of, self.layout.study.data.variants, validation)
            # Rates of evaluations are in ACT steps, which another number of them scales with.
            done = samples and samples * config.halting.max_steps
        if samples is None or done is None:
            return Cost()
        found = self._of_runs(entry.experiment, stage, kind)
        if found is not None:
            hours = done / found[0] / HOUR
            return Cost(hours, found[1], hours)
        if stage == "refine":
            spread = self.demands.spreads.of(config, held_out=True)
            demand = refinement(config, experiment.refinement, spread)
        else:
            demand = self.demands.of(config, False, held_out=not validation)
        return self._by_flops(config, "eval", demand, samples)

    def _training(self, entry: Entry) -> Cost:
        config = self.layout.config_of(entry.run)
        train, steps = config.train, max(0, config.train.steps - entry.step)
        found = self._of_runs(entry.experiment, entry.stage, training_kind(plain(config)))
        if found is not None:
            hours, basis = steps * train.batch_size / found[0] / HOUR, found[1]
        else:
            samples, answers = steps * train.batch_size, self._answers_within(config, entry)
            cost = self._by_flops(config, "train", self.demands.of(config, True), samples)
            # Evaluations within; the seconds of finished runs include them.
            more = self._by_flops(config, "eval", self.demands.of(config, False), answers)
            if cost.hours is None or more.hours is None:
                return Cost()
            hours, basis = cost.hours + more.hours, cost.measured or ""
        return Cost(hours, basis, hours * self._least(config, entry.step))

    def _answers_within(self, config: RunConfig, entry: Entry) -> float:
        """Return the predictions that a run makes of training and validation tasks."""
        train, steps = config.train, max(0, config.train.steps - entry.step)
        puzzles = self.sizes.puzzles(config, self.layout.study.data.variants)
        questions = self.demands.spreads.of(config).questions or 0
        every = questions * puzzles / max(1, self.sizes.training)
        episodes = min(train.eval_episodes or every, every or math.inf)
        times = max(1, steps // train.eval_every) if train.eval_every else 1
        return episodes * times * (1 + (entry.stage == "full" and self.sizes.validation > 0))

    def _least(self, config: RunConfig, step: int) -> float:
        """Return the share of the remaining steps after which a run may end, or 1."""
        train, left = config.train, config.train.steps - step
        early = train.target_exact_accuracy is not None or train.stop_on_health
        if not early or not train.eval_every or left <= 0:
            return 1.0
        return min(1.0, (train.eval_every - step % train.eval_every) / left)

    def _by_flops(self, config: RunConfig, case: str, demand: Demand, samples: float) -> Cost:
        """Return the cost of so many samples at the rate of the device; `case`: train or eval."""
        models = ["etrm-standard", "trm"]
        if config.context.source == "embedding":
            models.reverse()
        endings = ("-heldout", "") if case == "eval" else ("",)
        cases = [f"{case}/{model}{ending}" for model in models for ending in endings]
        rate = self.device.rate(cases, config.train.dtype, demand.intensity)
        if rate is None:
            return Cost()
        hours = samples * demand.flops / rate.flops / HOUR
        basis = rate.measured + ("" if demand.counted else ", without those of the encoder")
        return Cost(hours, basis, hours)

    def _of_runs(self, experiment: str, stage: str, kind: str) -> tuple[float, str] | None:
        """Return samples per second of the nearest finished runs of this kind, and their name."""
        same = [m for m in self.measured if m.kind == kind and m.device == self.device.name]
        # Training and decoding are never compared; stages of training are, as the last resort.
        same = [
            m for m in same if m.stage == stage or not {m.stage, stage} & {"evaluate", "refine"}
        ]
        of_stage = [m for m in same if m.stage == stage]
        own = [m for m in of_stage if m.run.experiment == experiment]
        nearest = own or of_stage or same
        if not nearest:
            return None
        # Harmonic mean: the seconds of each sample are averaged, since hours are their sum.
        rate = len(nearest) / sum(1 / m.per_second for m in nearest)
        return rate, f"finished runs of {'its own' if own else 'the same model'}"
