"""Stage `paper`: a LaTeX skeleton of the study, and the discussion's claims with its numbers."""

from pathlib import Path

from etrm.report.collect import collect
from etrm.report.paper import write_paper
from etrm.runtime.logs import job_log

with job_log(snakemake.log[0]):
    write_paper(
        Path(snakemake.output[0]).parent,
        snakemake.params.study,
        collect(snakemake.input.runs),
        captions=Path(snakemake.scriptdir).parent / "report",
        formats=snakemake.params.formats,
        baseline=snakemake.params.baseline,
    )
