"""Stage `evaluate`: vote over the variants of the held-out tasks, and score."""

from pathlib import Path

import torch

from etrm.config.execution import TrackingConfig
from etrm.config.schema import parse
from etrm.config.study import EvaluationConfig
from etrm.evaluation.mirror import mirror_score
from etrm.evaluation.run import evaluate_run
from etrm.launch.slurm import preemptible, threads_of
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]), preemptible():
    torch.set_num_threads(threads_of(snakemake.resources, snakemake.threads))
    run, tasks = Path(snakemake.input.run[0]).parent, Path(snakemake.input.tasks)
    out = Path(snakemake.output[0]).parent
    evaluate_run(
        run_folder=run,
        tasks_path=tasks,
        augmentations_path=Path(snakemake.input.augmentations),
        config=parse(EvaluationConfig, snakemake.params.evaluation, "evaluation"),
        out=out,
        state=Path(snakemake.params.state),
        compile=snakemake.config["execution"]["compile"],
        shards=[Path(shard) for shard in snakemake.input.get("shards", [])],
    )
    tracking = parse(TrackingConfig, snakemake.config["tracking"], "tracking")
    mirror_score(tracking, Path(snakemake.config["wandb"]), run, out, tasks)
