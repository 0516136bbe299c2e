"""Stages `pretrain`, `overfit` and `full`: one training run."""

from pathlib import Path

import torch

from etrm.config import parse
from etrm.config.study import RunConfig, TrackingConfig
from etrm.logs import job_log
from etrm.pipeline import require_passed
from etrm.train import RunPaths, train_run

with job_log(snakemake.log[0]):
    if snakemake.input.get("verdict"):
        require_passed(Path(snakemake.input.verdict))
    torch.set_num_threads(snakemake.threads)
    parent = snakemake.params.parent
    paths = RunPaths(
        tasks=Path(snakemake.input.tasks),
        augmentations=Path(snakemake.input.augmentations),
        parent=Path(parent) if parent else None,
        out=Path(snakemake.output[0]).parent,
        state=Path(snakemake.params.state),
        wandb=Path(snakemake.params.wandb),
        strict_parents=tuple(snakemake.config["strict_parents"]),
    )
    tracking = parse(TrackingConfig, snakemake.config["tracking"], "tracking")
    train_run(parse(RunConfig, snakemake.params.run), paths, tracking, bar=False)
