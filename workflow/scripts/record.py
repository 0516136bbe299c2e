"""One experiment's record."""

from pathlib import Path

from etrm.logs import job_log
from etrm.report.collect import collect
from etrm.report.records import write_record

with job_log(snakemake.log[0]):
    name = snakemake.wildcards.experiment
    views = collect(snakemake.input.runs)
    mine = [view for view in views if view.experiment == name]
    others = [view for view in views if view.experiment != name]
    baseline = others[0] if others else None
    write_record(Path(snakemake.output[0]), mine, goal=snakemake.params.goal, baseline=baseline)
