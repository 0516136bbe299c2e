"""Stage `refine`: search guided by the demos of the held-out tasks, and its controls."""

from pathlib import Path

import torch

from etrm.config.refinement import RefinementConfig
from etrm.config.schema import parse
from etrm.launch.slurm import preemptible, threads_of
from etrm.refinement.run import refine_run
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]), preemptible():
    torch.set_num_threads(threads_of(snakemake.resources, snakemake.threads))
    refine_run(
        run_folder=Path(snakemake.input.run[0]).parent,
        tasks_path=Path(snakemake.input.tasks),
        augmentations_path=Path(snakemake.input.augmentations),
        config=parse(RefinementConfig, snakemake.params.refinement, "refinement"),
        out=Path(snakemake.output[0]).parent,
        state=Path(snakemake.params.state),
    )
