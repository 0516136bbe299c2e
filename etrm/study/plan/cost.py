"""What stages are expected to take, and from which measurement each number comes.

Finished runs of the study come first: of the same experiment, else of the same model and batch.
Without them the project's benchmarks of the device are used, as far as they are of the sizes in
question. What nobody has measured is not guessed.
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

HOUR = 3600
# The model that benchmarks measure in place of one with this context source.
TRM, ETRM = "trm", "etrm-standard"


@dataclass(frozen=True)
class Cost:
    """Hours of one device; None: nothing of the kind has been measured."""

    hours: float | None = None
    basis: str | None = None  # the measurement
    at_most: bool = False  # it may end early


@dataclass(frozen=True)
class Costs:
    """Expected hours of a study's stages on a device."""

    layout: Layout
    sizes: Sizes
    device: Device | None
    measured: Sequence[Measured] = ()

    def of(self, entry: Entry) -> Cost:
        """What is left of a stage; nothing for a verdict, or for what is taken back."""
        if entry.stage == "gate" or not entry.job or entry.kept:
            return Cost(0.0)
        return self._evaluation(entry) if entry.stage == "evaluate" else self._training(entry)

    def _training(self, entry: Entry) -> Cost:
        config = self.layout.config_of(entry.run)
        train, steps = config.train, max(0, config.train.steps - entry.step)
        early = train.target_exact_accuracy is not None or train.stop_on_health
        found = self._of_runs(entry.experiment, entry.stage, training_kind(plain(config)))
        if found is not None:
            return Cost(steps * train.batch_size / found[0] / HOUR, found[1], early)
        row = self._row(config, "train")
        if row is None:
            return Cost()
        seconds = steps * train.batch_size / row["examples_per_second"]
        seconds += self._evaluations_within(config, steps)
        return Cost(seconds / HOUR, _basis(row, config), early)

    def _evaluations_within(self, config: RunConfig, steps: int) -> float:
        """Seconds of the evaluations on training episodes; finished runs have them in theirs."""
        row, train = self._row(config, "eval"), config.train
        if row is None or train.eval_episodes is None:
            return 0.0
        times = max(1, steps // train.eval_every) if train.eval_every else 1
        return times * train.eval_episodes * _seconds(row, config.halting)

    def _evaluation(self, entry: Entry) -> Cost:
        experiment = self.layout.study.experiments[entry.experiment]
        stage = experiment.scored_stage
        assert stage is not None  # only what is scored has such an entry
        config = self.layout.config_of(Run(entry.experiment, stage, entry.seed))
        samples = self.sizes.predictions(experiment, self.layout.study.data.variants)
        if samples is None:
            return Cost()
        kind = evaluation_kind(plain(config), plain(experiment.evaluation))
        found = self._of_runs(entry.experiment, "evaluate", kind)
        if found is not None:
            return Cost(samples * config.halting.max_steps / found[0] / HOUR, found[1])
        row = self._row(config, "eval", "-heldout") or self._row(config, "eval")
        if row is None:
            return Cost()
        return Cost(samples * _seconds(row, config.halting) / HOUR, _basis(row, config))

    def _of_runs(self, experiment: str, stage: str, kind: str) -> tuple[float, str] | None:
        """Samples per second of the nearest that went as fast, and whose these are."""
        same = [m for m in self.measured if m.kind == kind and self._here(m)]
        same = [m for m in same if (m.stage == "evaluate") == (stage == "evaluate")]
        of_stage = [m for m in same if m.stage == stage]
        own = [m for m in of_stage if m.run.experiment == experiment]
        nearest = own or of_stage or same
        if not nearest:
            return None
        # The mean of seconds for each sample, which is what hours are made of.
        rate = len(nearest) / sum(1 / m.per_second for m in nearest)
        return rate, "finished runs of its own" if own else "finished runs of the same model"

    def _here(self, found: Measured) -> bool:
        return self.device is not None and found.device == self.device.name

    def _row(self, config: RunConfig, case: str, suffix: str = "") -> Row | None:
        """The benchmark of this model on canvas lanes, if it is of these sizes."""
        if self.device is None or not _benchmarked(config):
            return None
        model = TRM if config.context.source == "embedding" else ETRM
        wanted = (f"{case}/{model}{suffix}", "lanes", config.train.dtype)
        for row in self.device.rows:
            if (row["case"], row["layout"], row["dtype"]) == wanted:
                return row
        return None


def _benchmarked(config: RunConfig) -> bool:
    """Are the decoder and its canvas those of the benchmarks, which are the defaults?"""
    same_model = config.model == ModelConfig(context_tokens=config.model.context_tokens)
    return same_model and config.episodes.canvas == EpisodesConfig().canvas


def _basis(row: Row, config: RunConfig) -> str:
    source = config.context.source
    measured = source == "embedding" or config.context == context_options()["standard"]()()
    return f"benchmark {row['case']}" + ("" if measured else " (as etrm-standard)")


def _seconds(row: Row, halting: HaltingConfig) -> float:
    """Of one sample through all its ACT steps; benchmarks have as many as is the default."""
    whole, step = 1 / row["examples_per_second"], row["seconds_per_step"]
    return float(whole + (halting.max_steps - HaltingConfig().max_steps) * step)
