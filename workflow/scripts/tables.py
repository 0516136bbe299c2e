"""Stage `tables`: all tables of the study, in every format."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.write_tables import write_tables
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    views = collect(snakemake.input.runs, snakemake.params.finalists)
    write_tables(views, Path(snakemake.output[0]).parent, snakemake.params.baseline)
