"""The typed study: every key of `config/*.yaml`, its unit, its bounds and its meaning.

Defaults follow TRM (arXiv 2510.04871) and the experiment guide; `docs/deviations.md` has where they
differ from the official code. A study file says only its differences. `config/README.md` is
generated from this file by `python -m etrm.config.reference`. A comment behind a field is the name
that the official TRM code has for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etrm.config.data import DataConfig, EpisodesConfig
from etrm.config.execution import ExecutionConfig, FigureStyle, TrackingConfig
from etrm.config.health import GateConfig, HealthConfig
from etrm.config.refinement import RefinementConfig
from etrm.config.registry import context_options
from etrm.config.rules import ASCENDING, DISTINCT, GROUP, MAX_SEED, NAME, NONE_TWICE, TWO
from etrm.config.schema import ConfigProblem, option, tagged
from etrm.config.selection import SelectionConfig

STAGES = ("pretrain", "overfit", "full")  # in the order in which they run


@dataclass(frozen=True)
class ModelConfig:
    """The TRM decoder."""

    width: int = option("hidden size D", 512, ge=2)  # hidden_size
    heads: int = option("attention heads; width / heads must be even", 8, ge=1)  # num_heads
    layers: int = option("blocks of the network that all cycles apply", 2, "blocks", ge=1)
    expansion: float = option(
        "SwiGLU expansion; inner width 2/3 · expansion · width, rounded up to 256s", 4.0, gt=0
    )
    context_tokens: int = option("context tokens P prepended to the query", 16, "tokens", ge=1)
    H_cycles: int = option(
        "high-level cycles of an ACT step; the last has gradients", 3, "cycles", ge=1
    )
    L_cycles: int = option("low-level cycles in each high-level cycle", 6, "cycles", ge=1)
    positions: str = option(  # pos_encodings
        "`rope`: positions of the 30×30 canvas in reading order, as TRM; `rope_2d`: half of"
        " each head turns with the row, half with the column",
        "rope",
        choices=("rope", "rope_2d"),
    )
    rope_theta: float = option("base of the rotary frequencies", 10000.0, gt=0)
    loss_type: str = option(
        "how logits become the probabilities of an answer, in the loss: `stablemax_cross_entropy`,"
        " in float64, as TRM; `softmax_cross_entropy`",
        "stablemax_cross_entropy",
        choices=("stablemax_cross_entropy", "softmax_cross_entropy"),
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield head sizes that the rotary positions cannot divide."""
        part = 4 if self.positions == "rope_2d" else 2
        if self.width % (part * self.heads):
            found = f"width {self.width} with {self.heads} heads"
            yield ConfigProblem("width", found, f"a multiple of {part} × heads")


# Settings of a decoder that no tensor's shape tells; the latter are other codes' names.
MAY_DIFFER = (
    *("heads", "expansion", "H_cycles", "L_cycles", "positions", "rope_theta", "rms_norm_eps"),
    *("no_ACT_continue", "loss_type", "seq_len", "pad_value"),
)


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's first weights."""

    init: str | None = option(
        "origin of the decoder's weights: the name of a pretraining experiment; or the path of a"
        " run folder of another study, of a checkpoint of official TRM (`step_…`, `.pt`, `.pth`,"
        " `.safetensors`) or nano-trm (`.ckpt`), or of a folder with one checkpoint. A path has a"
        " `/`, one of these endings, or exists; `~` is the home directory. null: from scratch",
        None,
        path=True,
    )
    init_seed: str = option(
        "seed of that pretraining: `first`, its first for every seed of this experiment, or"
        " `same`, seed n for seed n, which it must then have. Either way more seeds of it change"
        " nothing that is done",
        "first",
        choices=("first", "same"),
    )
    init_trust: bool = option(
        "let a strict experiment start from a checkpoint of unknown origin; its scores are then"
        " marked `held-out: not proven`",
        False,
    )
    init_differs: tuple[str, ...] = option(
        "settings in which those weights may have been trained otherwise, as the error about them"
        " names them: they change what the weights compute, but no tensor's shape",
        factory=tuple,
        choices=MAY_DIFFER,
        rule=NONE_TWICE,
    )
    init_sha256: str | None = option(
        "SHA-256 that the checkpoint file must have; null: any (it is recorded)", None
    )
    weights: str = option("averaged or raw weights of it", "ema", choices=("ema", "raw"))
    frozen_steps: int = option("train only the context source for this long", 0, "steps", ge=0)
    frozen: bool = option("train only the context source, from beginning to end", False)


@dataclass(frozen=True)
class HaltingConfig:
    """Adaptive computation time."""

    max_steps: int = option("ACT steps after which a sample halts", 16, "ACT steps", ge=1)
    exploration_prob: float = option(  # halt_exploration_prob
        "share of training samples that must run for a random number of steps", 0.5, ge=0, le=1
    )
    loss_weight: float = option(
        "weight of the q-halt loss beside that of the language model", 0.5, ge=0
    )


@dataclass(frozen=True)
class TrainConfig:
    """One training run. A step is one ACT step of every slot of the batch, and one update."""

    steps: int = option("length of the run", 100_000, "steps", ge=1)
    batch_size: int = option("slots, over all lanes", 256, "samples", ge=1)  # global_batch_size
    tasks: int | None = option(
        "tasks (the guide's puzzle groups), the same for every seed; null: all", None, "tasks", ge=1
    )
    variants: int | None = option(
        "augmented puzzles per task that are trained on; null: all", None, "variants", ge=1
    )
    new_tasks_every: int | None = option(
        "training tasks, all of worlds, give way to as many new ones, the next of their endless"
        " sequences; null: never",
        None,
        "steps",
        ge=1,
    )
    lr: float = option("learning rate after warm-up", 1.0e-4, gt=0)
    warmup_steps: int = option("linear warm-up", 2000, "steps", ge=0)  # lr_warmup_steps
    betas: tuple[float, ...] = option(  # beta1, beta2
        "AdamATan2's two decay rates", factory=lambda: (0.9, 0.95), ge=0, lt=1, rule=TWO
    )
    weight_decay: float = option("decoupled weight decay", 0.1, ge=0)
    embedding_lr: float = option("learning rate of the puzzle embeddings (sign-SGD)", 1.0e-2, gt=0)
    embedding_weight_decay: float = option("weight decay of the puzzle embeddings", 0.1, ge=0)
    context_lr_scale: float = option("learning rate of the context source, over lr", 1.0, gt=0)
    context_frozen_steps: int = option("train only the decoder for this long", 0, "steps", ge=0)
    grad_clip: float | None = option("largest total gradient norm; null: no clipping", 1.0, gt=0)
    ema_decay: float = option("decay of the averaged weights", 0.999, ge=0, lt=1)  # ema_rate
    search_from: int | None = option(
        "steps after which the query is answered from a searched context: one step of latent"
        " search on the demos at every encoding, without a gradient through it, as in LPN; a step"
        " then answers every demo, too. null: never",
        None,
        "steps",
        ge=0,
    )
    search_lr: float = option(
        "length of that step, RMS, in units of the RMS of the context (or of 1, that of the"
        " decoder's stream, where it is smaller), as `refinement.lr`",
        0.03,
        gt=0,
    )
    cache_context: bool = option(
        "cache a sample's first encoding over its ACT steps: later steps give the encoder no"
        " gradient. Wrong, and here as the negative control only",
        False,
    )
    dtype: str = option("arithmetic of the forward pass", "fp32", choices=("fp32", "bf16"))
    hoist_casts: bool = option(
        "in bf16, cast each weight once a step: faster, but the gradients of its uses are summed in"
        " bf16; false: cast it at every use and sum them in float32, as official TRM",
        True,
    )
    log_every: int = option(
        "a row of metrics.parquet; there is one at step 10 as well", 10, "steps", ge=1
    )
    save_every: int = option("a checkpoint, from which a killed run resumes", 1000, "steps", ge=1)
    eval_every: int | None = option(
        "exact match over training episodes (`all.*`) and, in full runs, over the test inputs of"
        " validation tasks (`validation.*`); null: at the end only",
        None,
        "steps",
        ge=1,
    )
    eval_episodes: int | None = option(
        "episodes of each of the two, in any variant, a seeded draw; null: all",
        4096,
        "episodes",
        ge=1,
    )
    probe_every: int | None = option(
        "measures of contexts on fixed puzzles (`encoder/*`), also before step 1; null: never",
        200,
        "steps",
        ge=1,
    )
    probe_tasks: int = option(
        "tasks of that set, two variants each, seen through two sets of demos", 32, "tasks", ge=2
    )
    target_exact_accuracy: float | None = option(
        "stop as soon as that evaluation reaches this; null: run all steps", None, gt=0, le=1
    )
    stop_on_health: bool = option("let a failed health rule end the run with its diagnosis", False)

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield a target without an evaluation to reach it."""
        if self.target_exact_accuracy is not None and self.eval_every is None:
            expected = "a number of steps, because target_exact_accuracy is set"
            yield ConfigProblem("eval_every", "null", expected)


# Keys of `train` that no step depends on: runs that differ in these alone take the same steps.
BESIDE_STEPS = (
    *("steps", "log_every", "save_every", "eval_every", "eval_episodes", "probe_every"),
    *("target_exact_accuracy", "stop_on_health"),
)


@dataclass(frozen=True)
class EvaluationConfig:
    """Voting over augmented puzzles of the held-out tasks."""

    variants: int = option("augmented puzzles per task that vote", 1000, "variants", ge=1)
    tasks: int | None = option(
        "held-out tasks that are asked for, a fixed draw: scores are of this subset; null: all",
        None,
        "tasks",
        ge=1,
    )
    pass_k: tuple[int, ...] = option(
        "numbers of attempts",
        unit="attempts",
        factory=lambda: (1, 2, 5, 10, 100, 1000),
        ge=1,
        rule=ASCENDING,
    )
    batch_size: int = option("samples decoded at once", 256, "samples", ge=1)
    weights: str = option("averaged or raw weights", "ema", choices=("ema", "raw"))
    shuffled: bool = option(
        "also evaluate unchanged tasks with the demos of others, each test input with those of the"
        " next task in a fixed order: a model that reads its demos falls to chance",
        False,
    )
    halt_early: bool = option("stop a sample when its q-head says so; TRM runs all steps", False)
    jobs: int = option(
        "jobs that share one evaluation, by whole batches; changes no result", 1, "jobs", ge=1
    )


@dataclass(frozen=True)
class ExperimentSources:
    """The names, in `data.sources`, of the tasks of one experiment."""

    training: tuple[str, ...] | None = option(
        "sources that are trained on; null: data.training", None, rule=DISTINCT
    )
    evaluation: tuple[str, ...] | None = option(
        "sources that it is evaluated on; null: data.evaluation", None, rule=DISTINCT
    )


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One experiment. Keys that are not given come from `defaults`."""

    description: str = option("the question it answers, in one line", "")
    group: str | None = option(
        "a name that several experiments share: it is a target of `snakemake`", None, rule=GROUP
    )
    split: str = option(
        "`strict`: held-out tasks appear nowhere in training; `transductive`: their demos are"
        " trained on, their test outputs are not (TRM's protocol)",
        "strict",
        choices=("strict", "transductive"),
    )
    sources: ExperimentSources = option(
        "other sources of tasks than those of `data`: one study can compare sets of training tasks,"
        " or hold a control on other tasks. What is held out of strict training is that of all"
        " experiments",
        factory=ExperimentSources,
    )
    after: str | None = option(
        "a selection: one experiment for each of its candidates, with the keys of the candidate and"
        " the differences given here, which is trained where that is chosen; `{candidate}` in its"
        " description is the name. It has no overfit run and no gate of its own",
        None,
    )
    candidate: str | None = option(
        "the candidate that an experiment `after` a selection follows; null: each of them", None
    )
    continues: bool = option(
        "continue the full run of the candidate from its last step, with more `steps`, instead of"
        " beginning anew: successive halving over several selections",
        False,
    )
    seeds: tuple[int, ...] = option(
        "one run per seed", factory=lambda: (0,), ge=0, le=MAX_SEED, rule=DISTINCT
    )
    episodes: EpisodesConfig = option("training samples", factory=EpisodesConfig)
    model: ModelConfig = option("the decoder", factory=ModelConfig)
    context: Any = tagged(
        "the context before the query, TRM's puzzle embedding or its substitute",
        "source",
        context_options,
    )
    decoder: DecoderConfig = option("its first weights", factory=DecoderConfig)
    halting: HaltingConfig = option("adaptive computation time", factory=HaltingConfig)
    train: TrainConfig = option("training, in all stages", factory=TrainConfig)
    stages: dict[str, Any] = option(
        "differences to `train` for `pretrain`, `overfit` and `full`", factory=dict
    )
    health: HealthConfig = option("when a run is unhealthy", factory=HealthConfig)
    gate: GateConfig = option("the bar of an overfit run", factory=GateConfig)
    evaluation: EvaluationConfig = option(
        "voting over augmented puzzles of held-out tasks", factory=EvaluationConfig
    )
    refinement: RefinementConfig = option(
        "search guided by the demos of held-out tasks, after the evaluation",
        factory=RefinementConfig,
    )

    def problems(self) -> Iterator[ConfigProblem]:
        """Yield options of refinement, or of search in training, that its context source lacks."""
        wanted = self.refinement
        for stage in self.stage_names if self.is_trm else ():
            own = self.stages.get(stage)
            own = own if isinstance(own, Mapping) and "search_from" in own else None
            search_from = self.train.search_from if own is None else own["search_from"]
            if search_from is not None:
                path = "train.search_from" if own is None else f"stages.{stage}.search_from"
                expected = "null: a table of embeddings reads no demos"
                yield ConfigProblem(path, str(search_from), expected)
        if wanted.space == "latent" and not hasattr(self.context, "latent"):
            expected = "`tokens`, or a variational context.source, which has a latent"
            yield ConfigProblem("refinement.space", "'latent'", expected)
        if "fine_tuning" in wanted.methods and wanted.tuned == "encoder" and self.is_trm:
            expected = "`all`: a table of embeddings is no encoder, and `search` moves its row"
            yield ConfigProblem("refinement.tuned", "'encoder'", expected)

    @property
    def is_trm(self) -> bool:
        """Return whether it has learned puzzle embeddings: pretrained, not gated."""
        return bool(self.context.source == "embedding")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The training stages of this experiment, in order."""
        if self.after is not None:  # a selection takes the place of the gate
            return ("full",)
        return ("pretrain",) if self.is_trm else ("overfit", "full")

    @property
    def scored_stage(self) -> str | None:
        """The stage whose weights are evaluated on held-out tasks.

        A table of embeddings has rows only for the tasks that it was trained on: a strict one is
        asked about others only by the mean of its rows.
        """
        if self.is_trm:
            asked = self.split == "transductive" or self.context.unseen == "mean"
            return "pretrain" if asked else None
        return "full"


def candidates_of(of: Sequence[str], experiments: Mapping[str, ExperimentConfig]) -> list[str]:
    """Return the experiments that are named, or of a group that is, in the order of the study."""
    return [name for name, config in experiments.items() if name in of or config.group in of]


@dataclass(frozen=True)
class StudyConfig:
    """A whole study, validated."""

    study: str = option("name of the study; its results are in `<results>/<study>`", rule=NAME)
    results: str = option("folder of all results; `~` is the home directory", "results", path=True)
    threads: int = option("CPU threads of a training or evaluation job", 1, "threads", ge=1)
    data: DataConfig = option("tasks and augmentation", factory=DataConfig)
    experiments: dict[str, ExperimentConfig] = option("experiments by name", factory=dict)
    baseline: str | None = option(
        "experiment that the others are compared with, in records and in the table of comparisons;"
        " null: no comparisons",
        None,
    )
    finalists: tuple[str, ...] | None = option(
        "experiments, or groups of them, that are evaluated on the held-out tasks, chosen by their"
        " validation; all others end with their full run. null: all but the candidates of"
        " `selections`",
        None,
        rule=NONE_TWICE,
    )
    selections: dict[str, SelectionConfig] = option(
        "choices among experiments by rule, and the experiments that follow them", factory=dict
    )
    budget: float | None = option(
        "device-hours that the study may take: `etrm plan` shows those that fit and those cut;"
        " changes no result, and stops nothing",
        None,
        "hours",
        gt=0,
    )
    tracking: TrackingConfig = option("where metrics go", factory=TrackingConfig)
    execution: ExecutionConfig = option("speed and memory", factory=ExecutionConfig)
    figures: FigureStyle = option("the look of the figures", factory=FigureStyle)

    def candidates(self, selection: str) -> list[str]:
        """Return the experiments that a selection chooses from, in the order of the study."""
        return candidates_of(self.selections[selection].of, self.experiments)

    @property
    def all_candidates(self) -> set[str]:
        """The candidates of all selections."""
        return {name for selection in self.selections for name in self.candidates(selection)}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run with everything that can change its result, and nothing else."""

    experiment: str
    stage: str
    seed: int
    split: str
    sources: tuple[str, ...] | None  # of its training and evaluation tasks; None: all
    episodes: EpisodesConfig
    model: ModelConfig
    context: Any = tagged("", "source", context_options)
    decoder: DecoderConfig
    halting: HaltingConfig
    train: TrainConfig
    health: HealthConfig
