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
    parents = snakemake.input.get("parent") or []
    paths = RunPaths(
        tasks=Path(snakemake.input.tasks),
        augmentations=Path(snakemake.input.augmentations),
        parent=Path(parents[0]).parent if parents else None,
        out=Path(snakemake.output[0]).parent,
        state=Path(snakemake.params.state),
        wandb=Path(snakemake.params.wandb),
    )
    tracking = parse(TrackingConfig, snakemake.config["tracking"], "tracking")
    train_run(parse(RunConfig, snakemake.params.run), paths, tracking, bar=False)
