"""One experiment's record."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.experiment_record import Baseline, write_record
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    name = snakemake.wildcards.experiment
    views = collect(snakemake.input.runs)
    mine = [view for view in views if view.experiment == name]
    named, path = snakemake.params.baseline, Path(snakemake.output[0])
    other = next((view for view in views if view.experiment == named), None)
    write_record(
        path,
        mine,
        goal=snakemake.params.goal,
        baseline=None if named is None else Baseline(named, other),
        wandb=path.parents[1] / "wandb",
    )
