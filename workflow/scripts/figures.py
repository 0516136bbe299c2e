"""Stage `figures`: all figures of the study."""

from pathlib import Path

from etrm.config import parse
from etrm.config.health import HealthConfig
from etrm.config.study import FigureStyle
from etrm.logs import job_log
from etrm.report.collect import collect
from etrm.report.write import write_figures

with job_log(snakemake.log[0]):
    write_figures(
        collect(snakemake.input.runs),
        tasks_path=Path(snakemake.input.tasks),
        folder=Path(snakemake.output[0]).parent,
        style=parse(FigureStyle, snakemake.params.style, "figures"),
        health=parse(HealthConfig, snakemake.params.health, "health"),
    )
