"""Stage `validate`: the answers of a candidate to validation tasks."""

from pathlib import Path

import torch

from etrm.config.schema import parse
from etrm.config.study import EvaluationConfig
from etrm.evaluation.validation import validate_run
from etrm.launch.slurm import preemptible, threads_of
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]), preemptible():
    torch.set_num_threads(threads_of(snakemake.resources, snakemake.threads))
    validate_run(
        run_folder=Path(snakemake.input.run[0]).parent,
        tasks_path=Path(snakemake.input.tasks),
        augmentations_path=Path(snakemake.input.augmentations),
        config=parse(EvaluationConfig, snakemake.params.validation, "evaluation"),
        out=Path(snakemake.output[0]).parent,
        state=Path(snakemake.params.state),
        compile=snakemake.config["execution"]["compile"],
    )
