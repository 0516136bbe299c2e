"""One experiment's record."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.experiment_record import write_record
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    name = snakemake.wildcards.experiment
    views = collect(snakemake.input.runs)
    mine = [view for view in views if view.experiment == name]
    # The baseline's record says that it is the baseline.
    baseline = next((v for v in views if v.experiment == snakemake.params.baseline), None)
    write_record(Path(snakemake.output[0]), mine, goal=snakemake.params.goal, baseline=baseline)
