"""Stage `tables`: the results table, in every format."""

from pathlib import Path

from etrm.logs import job_log
from etrm.report.collect import collect
from etrm.report.tables import results_table, write_results

with job_log(snakemake.log[0]):
    table = results_table(collect(snakemake.input.runs))
    write_results(table, Path(snakemake.output[0]).with_suffix(""))
