"""Expected hours of stages, and the measurement that each number comes from.

Finished runs of the study come first: of the same experiment, else of the same model and batch.
Without them, the project's benchmarks of the device count, as far as they are of the same sizes.
Nothing is guessed that has not been measured.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etrm.config.data import EpisodesConfig
from etrm.config.load import plain
from etrm.config.registry import context_options
from etrm.config.study import HaltingConfig, ModelConfig, RunConfig
from etrm.study.layout import Layout, Run
from etrm.study.plan.entries import Entry
from etrm.study.plan.jobs import PlanError
from etrm.study.plan.sizes import Sizes
from etrm.study.stale import StudyStatus

# Of the project, not of the package: an installed copy has none.
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
HOW = "python -m benchmarks"
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


@dataclass(frozen=True)
class Device:
    """The device whose hours are counted."""

    name: str  # as PyTorch calls it
    rows: Sequence[Row] = field(default=(), repr=False)  # its benchmarks

    @property
    def gpu(self) -> bool:
        """Return whether it is a GPU, whose hours are GPU-hours."""
        return family(self.name) != "cpu"

    @property
    def measured(self) -> str:
        """Return the date of its latest benchmark."""
        return max(str(row.get("measured")) for row in self.rows)

    @property
    def unit(self) -> str:
        """Return `GPU-hours`, or hours on that CPU."""
        return "GPU-hours" if self.gpu else f"hours on {slug(self.name)}"


def measured(layout: Layout, status: StudyStatus) -> Iterator[Measured]:
    """Yield the speed of every finished run and evaluation whose record has its duration."""
    scored, refined = set(layout.scored()), set(layout.refined())
    for run in layout.runs():
        record = status.run(run).record
        if record is None:
            continue
        config, seconds = record["config"], record.get("seconds") or 0.0
        done = record["steps_done"] * config["train"]["batch_size"]  # samples
        if done and seconds > 0:
            rate = done / seconds / record.get("ranks", 1)
            yield Measured(run, run.stage, training_kind(config), rate, record["device"])
        score = status.score(run).record if run in scored else None
        if score is not None and (score.get("seconds") or 0.0) > 0:
            done = score["predictions"] * config["halting"]["max_steps"]  # all take every step
            kind = evaluation_kind(config, score["evaluation"])
            yield Measured(run, "evaluate", kind, done / score["seconds"], score["device"])
        found = status.score(run, "refinement").record if run in refined else None
        if found is not None and (found.get("seconds") or 0.0) > 0:
            kind, rate = (
                refinement_kind(config, found["refinement"]),
                found["tasks_asked"] / found["seconds"],
            )
            yield Measured(run, "refine", kind, rate, found["device"])


def training_kind(config: Row) -> str:
    """Return a key that is equal for runs whose steps cost the same for each sample."""
    train = config["train"]
    some = [train[key] for key in ("batch_size", "dtype", "cache_context")]
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


def devices(found: Sequence[Measured], folder: Path = BENCHMARKS) -> list[Device]:
    """Return the devices of finished runs, most used first, then benchmarked ones, GPUs first."""
    benchmarks = sorted(_read(folder), key=lambda d: (d.gpu, d.measured), reverse=True)
    rows = {family(device.name): device.rows for device in reversed(benchmarks)}
    used = [name for name, _ in Counter(m.device for m in found).most_common()]
    of_runs = [Device(name, rows.get(family(name), ())) for name in used]
    known = {family(name) for name in used}  # those have their benchmarks already
    return of_runs + [device for device in benchmarks if family(device.name) not in known]


def chosen(known: Sequence[Device], name: str | None) -> Device | None:
    """Return the first device, or the one that `name`, or a part of its name, fits.

    Raises `PlanError` with the names of all where none fits, or several do.
    """
    if name is None:
        return known[0] if known else None
    exact = [device for device in known if slug(device.name) == slug(name)]
    fitting = exact or [device for device in known if slug(name) in slug(device.name)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(device.name for device in known) or f"none: {HOW} measures one"
    found = "several devices" if fitting else "no device"
    raise PlanError(f"--gpu {name}: found {found} of that name; measured are {names}")


def family(name: str) -> str:
    """Return a key of devices that are as fast: runs and benchmarks name CPUs differently."""
    return "cpu" if slug(name).startswith("cpu") else slug(name)


def slug(name: str) -> str:
    """Return `cpu-2-cores` for `cpu-2-cores (x86_64)`, as benchmarks name their files."""
    plain = name.partition(" (")[0] if name.startswith("cpu") else name
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _read(folder: Path) -> Iterator[Device]:
    for path in sorted(folder.glob("*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            yield Device(str(rows[0]["device"]), rows)
        except (OSError, ValueError, LookupError, TypeError):
            raise PlanError(
                f"{path}: found no rows of benchmarks, expected a file of {HOW}: measure again, or"
                " remove the file"
            ) from None


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
        if entry.stage == "refine":
            return self._refinement(entry)
        return self._evaluation(entry) if entry.stage == "evaluate" else self._training(entry)

    def _refinement(self, entry: Entry) -> Cost:
        experiment = self.layout.study.experiments[entry.experiment]
        run = Run(entry.experiment, str(experiment.scored_stage), entry.seed)
        kind = refinement_kind(plain(self.layout.config_of(run)), plain(experiment.refinement))
        found, held_out = self._of_runs(entry.experiment, "refine", kind), self.sizes.held_out
        if found is None or not held_out:
            return Cost()
        tasks = min(experiment.refinement.tasks or held_out, held_out)
        return Cost(tasks / found[0] / HOUR, found[1])

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
        # Evaluations on training and validation tasks; the seconds of finished runs include them.
        if within is not None and train.eval_episodes is not None:
            times = max(1, steps // train.eval_every) if train.eval_every else 1
            times *= 1 + (entry.stage == "full" and self.sizes.validation > 0)
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
