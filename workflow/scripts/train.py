"""Stages `pretrain`, `overfit` and `full`: one training run, on as many ranks as it has GPUs."""

from pathlib import Path

from etrm.config.execution import ExecutionConfig, TrackingConfig
from etrm.config.schema import parse
from etrm.config.study import RunConfig
from etrm.launch.job import Job
from etrm.launch.slurm import going_on, gpus_of, nodes_of, threads_of
from etrm.launch.torchrun import train
from etrm.runtime.logs import job_log
from etrm.study.gate import require_passed
from etrm.training.run import RunPaths

with job_log(snakemake.log[0], history=True), going_on():
    if snakemake.input.get("verdict"):
        require_passed(Path(snakemake.input.verdict))
    parent = snakemake.params.parent
    paths = RunPaths(
        tasks=Path(snakemake.input.tasks),
        augmentations=Path(snakemake.input.augmentations),
        parent=Path(parent) if parent else None,
        out=Path(snakemake.output[0]).parent,
        state=Path(snakemake.params.state),
        wandb=Path(snakemake.params.wandb),
        strict_parents=tuple(snakemake.config["strict_parents"]),
        keep_state=snakemake.rule == "train_full"
        and snakemake.wildcards.experiment in snakemake.config["continued"],
    )
    job = Job(
        run=parse(RunConfig, snakemake.params.run),
        paths=paths,
        tracking=parse(TrackingConfig, snakemake.config["tracking"], "tracking"),
        execution=parse(ExecutionConfig, snakemake.config["execution"], "execution"),
        threads=threads_of(snakemake.resources, snakemake.threads),
        log=Path(snakemake.log[0]),
        bar=False,
    )
    resources = snakemake.resources
    train(job, gpus_of(resources), nodes_of(resources))
