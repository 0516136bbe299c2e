"""Stage `evaluate`, one of several jobs that share it: decode a shard of the questions."""

from pathlib import Path

import torch

from etrm.config.schema import parse
from etrm.config.study import EvaluationConfig
from etrm.evaluation.run import evaluate_shard
from etrm.evaluation.shards import Shard
from etrm.launch.slurm import preemptible, threads_of
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]), preemptible():
    torch.set_num_threads(threads_of(snakemake.resources, snakemake.threads))
    evaluate_shard(
        run_folder=Path(snakemake.input.run[0]).parent,
        tasks_path=Path(snakemake.input.tasks),
        augmentations_path=Path(snakemake.input.augmentations),
        config=parse(EvaluationConfig, snakemake.params.evaluation, "evaluation"),
        out=Path(snakemake.output[0]),
        shard=Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
        state=Path(snakemake.params.state),
        compile=snakemake.config["execution"]["compile"],
    )
