"""Stage `tables`: the results table, in every format."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.tables import results_table, write_results
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    table = results_table(collect(snakemake.input.runs))
    write_results(table, Path(snakemake.output[0]).with_suffix(""))
