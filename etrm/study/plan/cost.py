"""Expected hours of stages, and the measurement that each number comes from.

Finished runs of the study come first: of the same experiment, else of the same model and batch.
Without them, the project's benchmarks of the device count, as far as they are of the same sizes.
Nothing is guessed that has not been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etrm.config.load import plain
from etrm.config.registry import context_options
from etrm.config.study import EpisodesConfig, HaltingConfig, ModelConfig, RunConfig
from etrm.study.layout import Layout, Run
from etrm.study.plan.entries import Entry
from etrm.study.plan.measured import Device, Measured, Row, evaluation_kind, training_kind
from etrm.study.plan.sizes import Sizes

HOUR = 3600  # seconds


@dataclass(frozen=True)
class Cost:
    """Cost of an entry, in its fields of the same names."""

    hours: float | None = None  # of one device; None: nothing of its size has been measured
    measured: str | None = None  # the measurement
    at_most: bool = False  # it may end early


@dataclass(frozen=True)
class Costs:
    """Expected hours of a study's stages on a device."""

    layout: Layout
    sizes: Sizes  # of evaluations
    device: Device | None  # None: nothing has been measured on any
    measured: Sequence[Measured] = ()  # finished runs and evaluations, on all devices

    def of(self, entry: Entry) -> Cost:
        """Return the remaining cost of a stage: none for a verdict, or a restored result."""
        if entry.stage == "gate" or not entry.job or entry.cached:
            return Cost(0.0)
        return self._evaluation(entry) if entry.stage == "evaluate" else self._training(entry)

    def _training(self, entry: Entry) -> Cost:
        config = self.layout.config_of(entry.run)
        train, halting, steps = config.train, config.halting, config.train.steps - entry.step
        early = train.target_exact_accuracy is not None or train.stop_on_health
        samples = max(0, steps) * train.batch_size
        found = self._of_runs(entry.experiment, entry.stage, training_kind(plain(config)))
        if found is not None:
            return Cost(samples / found[0] / HOUR, found[1], early)
        row, within = self._row(config, "train"), self._row(config, "eval")
        if row is None:
            return Cost()
        seconds = samples / row["examples_per_second"]
        # Evaluations on training episodes; the seconds of finished runs include them.
        if within is not None and train.eval_episodes is not None:
            times = max(1, steps // train.eval_every) if train.eval_every else 1
            seconds += times * train.eval_episodes * _seconds(within, halting)
        return Cost(seconds / HOUR, _basis(row, config), early)

    def _evaluation(self, entry: Entry) -> Cost:
        experiment = self.layout.study.experiments[entry.experiment]
        stage = experiment.scored_stage
        assert stage is not None  # only scored stages have such an entry
        config = self.layout.config_of(Run(entry.experiment, stage, entry.seed))
        samples = self.sizes.predictions(experiment, self.layout.study.data.variants)
        if samples is None:
            return Cost()
        kind = evaluation_kind(plain(config), plain(experiment.evaluation))
        # Rates of evaluations are in ACT steps, which another number of them scales with.
        found = self._of_runs(entry.experiment, "evaluate", kind)
        if found is not None:
            return Cost(samples * config.halting.max_steps / found[0] / HOUR, found[1])
        row = self._row(config, "eval", "-heldout") or self._row(config, "eval")
        if row is None:
            return Cost()
        return Cost(samples * _seconds(row, config.halting) / HOUR, _basis(row, config))

    def _of_runs(self, experiment: str, stage: str, kind: str) -> tuple[float, str] | None:
        """Return samples per second of the nearest finished runs of this kind, and their name."""
        device = self.device.name if self.device else None
        same = [m for m in self.measured if m.kind == kind and m.device == device]
        # Training and decoding are never compared; stages of training are, as the last resort.
        same = [m for m in same if (m.stage == "evaluate") == (stage == "evaluate")]
        of_stage = [m for m in same if m.stage == stage]
        own = [m for m in of_stage if m.run.experiment == experiment]
        nearest = own or of_stage or same
        if not nearest:
            return None
        # Harmonic mean: the seconds of each sample are averaged, since hours are their sum.
        rate = len(nearest) / sum(1 / m.per_second for m in nearest)
        return rate, f"finished runs of {'its own' if own else 'the same model'}"

    def _row(self, config: RunConfig, case: str, suffix: str = "") -> Row | None:
        """Return the benchmark of this model on canvas lanes, if it is of these sizes.

        Benchmarks have the default decoder and canvas, with the `standard` encoder or a table of
        embeddings; the first stands for all other encoders.
        """
        same_model = config.model == ModelConfig(context_tokens=config.model.context_tokens)
        same_canvas = config.episodes.canvas == EpisodesConfig().canvas
        model = "trm" if config.context.source == "embedding" else "etrm-standard"
        wanted = (f"{case}/{model}{suffix}", "lanes", config.train.dtype)
        rows = self.device.rows if self.device and same_model and same_canvas else ()
        return next((r for r in rows if (r["case"], r["layout"], r["dtype"]) == wanted), None)


def _basis(row: Row, config: RunConfig) -> str:
    source = config.context.source
    same = source == "embedding" or config.context == context_options()["standard"]()()
    return f"benchmark {row['case']}" + ("" if same else " (as etrm-standard)")


def _seconds(row: Row, halting: HaltingConfig) -> float:
    """Return seconds of a sample through all ACT steps; benchmarks take the default number."""
    whole, step = 1 / row["examples_per_second"], row["seconds_per_step"]
    return float(whole + (halting.max_steps - HaltingConfig().max_steps) * step)
