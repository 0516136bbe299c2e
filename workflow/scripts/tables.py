"""Stage `tables`: all tables of the study, in every format."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.write import write_tables
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    views, folder = collect(snakemake.input.runs), Path(snakemake.output[0]).parent
    write_tables(views, folder, snakemake.params.baseline)
