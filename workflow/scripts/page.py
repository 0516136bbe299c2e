"""Stage `page`: the study on one page, for a reader."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.page.build import write_page
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    write_page(
        Path(snakemake.output[0]),
        collect(snakemake.input.runs, snakemake.params.finalists),
        captions=Path(snakemake.scriptdir).parent / "report",
        baseline=snakemake.params.baseline,
        finalists=snakemake.params.finalists,
    )
