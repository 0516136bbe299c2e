"""The parts of a study that change no result: tracking, execution, the look of figures."""

from __future__ import annotations

from dataclasses import dataclass

from etrm.config.rules import DISTINCT, Rule
from etrm.config.schema import option

PROJECT = Rule(
    "up to 128 printable characters, none of them / \\ # ? % :, as W&B has it",
    lambda v: 0 < len(v) <= 128 and v.isprintable() and not set(v) & set("/\\#?%:"),
)


@dataclass(frozen=True)
class TrackingConfig:
    """Tracking of metrics beside `metrics.parquet`. Changing it reruns nothing."""

    wandb: str = option(
        "`auto`: online with a key, else offline",
        "auto",
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = option("W&B project", "etrm", rule=PROJECT)


@dataclass(frozen=True)
class ExecutionConfig:
    """Processes and memory of runs. Changing it reruns nothing.

    It changes speed and memory, results only in the last digits of floating-point sums.
    """

    gpus: int = option(
        "GPUs of a training run on each node, one process (rank) each; on a machine without GPUs"
        " that many processes on the CPU. Also settable as a resource, which counts those of all"
        " nodes: `--set-resources train_full:gpu=4`",
        1,
        unit="GPUs",
        ge=1,
    )
    nodes: int = option(
        "machines of a training run; more than one only within a SLURM job, whose nodes share the"
        " results' file system. Also settable as a resource, with all that SLURM must then know:"
        " `--set-resources train_full:nodes=2 train_full:gpu=8 train_full:mpi=srun"
        " train_full:tasks=2 train_full:tasks_per_gpu=0`",
        1,
        unit="nodes",
        ge=1,
    )
    compile: str = option(
        "`torch.compile` the network's blocks; `auto`: on GPUs",
        "auto",
        choices=("auto", "on", "off"),
    )
    memory: float | None = option(
        "memory for the activations of a step, of a GPU or of all CPU processes of a node; a"
        " lane that needs more is computed in micro-batches, which sum to the same gradient. null:"
        " 70 % of a GPU's memory, 30 % of the machine's",
        None,
        unit="GiB",
        gt=0,
    )
    micro_batch: int | None = option(
        "most slots that a forward and backward pass takes; null: as many as `memory` allows",
        None,
        unit="samples",
        ge=1,
    )


@dataclass(frozen=True)
class FigureStyle:
    """The look of the figures."""

    formats: tuple[str, ...] = option(
        "files of each figure",
        factory=lambda: ("png", "pdf"),
        choices=("png", "pdf", "svg"),
        rule=DISTINCT,
    )
    dpi: int = option("resolution of PNG files", 200, unit="dots per inch", ge=50)
    font_scale: float = option("size of all text, relative", 1.0, gt=0)
    width: float = option("full width of a figure", 7.0, unit="inches", gt=0)
    qualitative_tasks: int = option(
        "tasks of the qualitative figure, as far as they fit", 4, unit="tasks", ge=1
    )
